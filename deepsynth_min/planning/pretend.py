"""The meta device under the name of cuda: the branch for GPUs is what runs on it.

In: any code that asks a tensor for its device. Out: what paper.py counts.

The one idea: a function mode stands between the code and torch. Meta tensors say that their device
is cuda, and what is asked for on cuda is made on the meta device. Autocast, which torch does not do
there, is done here by its rules; what is one fused kernel on a GPU and in pieces on the meta device
(attention, RMSNorm) is one kernel.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.overrides import TorchFunctionMode
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._pytree import tree_map_only
from torch.utils.checkpoint import checkpoint

from ..model import attention, decoder, loss
from ..model.encoders import relative_attention
from ..model.window_blocks import WindowBlocks
from ..training import adamw, compile as compiling
from ..tuning import quant
from .paper import Count, Kernel, extent, grouped_flops

CUDA = torch.device("cuda")


class _Attention(torch.autograd.Function):
    """A fused kernel: q, k, v and a mask in, the output and a row's scale out; scores stay inside.

    FLOPs of its two products, over the pairs of a query and a key of all heads; backward takes
    five. share: of the usual rate of fused attention.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
        pairs: int,
        count: Count,
        share: float = 1.0,
    ) -> Tensor:
        # As torch lays it out: a head's rows apart, as in what usually came in.
        out = torch.empty_like(q.transpose(1, 2)).transpose(1, 2)
        if q.shape[-1] != v.shape[-1]:
            out = out[..., : v.shape[-1]]
        scales = q.new_empty(q.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(q, k, v, mask, out, scales)
        ctx.count, ctx.share = count, share
        ctx.flops = 2 * pairs * (q.shape[-1] + v.shape[-1])
        tensors = [t for t in (q, k, v, mask, out, scales) if t is not None]
        size = sum(map(extent, tensors))
        count.add(Kernel("attention", "attention", size, ctx.flops, q.dtype, share=share))
        return out

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors  # a layer that is computed again gives them once
        tensors = [t for t in (*saved, grad) if t is not None]
        grads = [torch.empty_like(t) for t in saved[:3]]
        size = sum(map(extent, tensors + grads))
        kernel = Kernel(
            "attention backward", "attention", size, ctx.flops * 5 // 2, grad.dtype, launches=3
        )
        kernel.share = ctx.share
        ctx.count.add(kernel)
        return *grads, None, None, None, None


class _RMSNorm(torch.autograd.Function):
    """The kernel that torch has for it on a GPU."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, weight: Tensor, count: Count) -> Tensor:
        out, scale = torch.empty_like(x), x.new_empty(x.shape[:-1])
        ctx.save_for_backward(x, weight, scale)
        ctx.count = count
        count.memory("rms_norm", [x, weight], [out, scale])
        return out

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        d_x, d_weight = torch.empty_like(grad), torch.empty_like(saved[1])
        ctx.count.memory("rms_norm backward", [grad, *saved], [d_x, d_weight])
        return d_x, d_weight, None


class _Grouped(torch.autograd.Function):
    """A grouped product of another type than bf16: a product for each matrix (torch 2.13)."""

    @staticmethod
    def forward(ctx: FunctionCtx, a: Tensor, b: Tensor, count: Count) -> Tensor:
        ctx.save_for_backward(a, b)
        ctx.count = count
        out = a.new_empty(len(a), b.shape[-1])
        size = sum(map(extent, (a, b, out)))
        count.add(Kernel("_grouped_mm", "product", size, grouped_flops(a, b), a.dtype, len(b)))
        return out

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        a, b = ctx.saved_tensors
        grads = [torch.empty_like(t) if n else None for t, n in zip((a, b), ctx.needs_input_grad)]
        for made in grads:
            if made is not None:
                size = sum(map(extent, (a, b, grad)))
                work = grouped_flops(a, b)
                ctx.count.add(Kernel("_grouped_mm", "product", size, work, a.dtype, len(b)))
        return *grads, None


FLEX = 0.6  # of the rate of other fused attention: an assumption, for it looks up each score's bias


def _flex(count: Count) -> Callable:
    """flex_attention's kernel; what its `score_mod` looks things up in is read too."""

    def attention(q: Tensor, k: Tensor, v: Tensor, score_mod: Callable) -> Tensor:
        out = torch.empty_like(q)  # laid out as queries are
        held = [cell.cell_contents for cell in score_mod.__closure__]
        tensors = [t for t in (q, k, v, out, *held) if isinstance(t, Tensor)]
        work = 4 * q.numel() * k.shape[-2]
        kernel = Kernel("flex attention", "attention", sum(map(extent, tensors)), work, q.dtype)
        kernel.share = FLEX
        count.add(kernel)
        return out

    return attention


def _window(count: Count) -> Callable:
    """The same kernel with the blocks of a window, forward and backward: of the pairs it reads."""

    def attention(
        q: Tensor, k: Tensor, v: Tensor, blocks: WindowBlocks, enable_gqa: bool = False
    ) -> Tensor:
        return _Attention.apply(q, k, v, None, q.shape[1] * blocks.pairs, count, FLEX)

    return attention


# Autocast's rules, as far as the models need them (ATen/autocast_mode.h).
IN_16_BIT = {F.linear, F.conv2d, torch.einsum, torch.matmul, torch.mm, torch.bmm, torch.addmm}
IN_16_BIT |= {Tensor.matmul, Tensor.__matmul__, Tensor.mm, F.scaled_dot_product_attention}
# It does not know grouped products, which transformers would compute in float32 where float32
# weights train; to its favour it does here.
IN_16_BIT |= {torch._grouped_mm}
IN_FLOAT32 = {F.layer_norm, F.rms_norm, F.softmax, torch.softmax, Tensor.softmax, F.log_softmax}
IN_FLOAT32 |= {F.cross_entropy, Tensor.pow, torch.pow, torch.rsqrt, Tensor.rsqrt, Tensor.cumsum}


GET_DEVICE, GET_IS_CUDA = Tensor.device.__get__, Tensor.is_cuda.__get__


class PretendCuda(TorchFunctionMode):
    """The meta device under the name of cuda."""

    def __init__(self, count: Count):
        super().__init__()
        self.count = count
        self.casts: dict[int, Tensor] = {}  # of parameters, kept for the forward as autocast does

    def __torch_function__(
        self, func: Callable, types: tuple, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in (GET_DEVICE, GET_IS_CUDA):
            device = GET_DEVICE(args[0])
            told = CUDA if device.type == "meta" else device
            return told if func == GET_DEVICE else told.type == "cuda"
        if any(isinstance(given, torch.device) for given in (*args, *kwargs.values())):
            args, kwargs = tree_map_only(torch.device, _on_meta, (args, kwargs))
        if torch.is_autocast_enabled("cuda"):
            if func in IN_16_BIT:
                dtype = torch.get_autocast_dtype("cuda")
                args, kwargs = tree_map_only(Tensor, lambda t: self._cast(t, dtype), (args, kwargs))
            elif func in IN_FLOAT32:
                args, kwargs = tree_map_only(Tensor, _to_float32, (args, kwargs))
        if func is F.scaled_dot_product_attention and args[0].is_meta:
            return self._attention(*args, **kwargs)
        if func is F.rms_norm and args[0].is_meta:
            weight = kwargs["weight"] if "weight" in kwargs else args[2]
            return _RMSNorm.apply(args[0], weight, self.count)
        if func is torch._grouped_mm and args[0].is_meta and args[0].dtype != torch.bfloat16:
            return _Grouped.apply(*args[:2], self.count)
        return func(*args, **kwargs)

    def _cast(self, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        if not tensor.is_meta or not tensor.is_floating_point():
            return tensor
        if tensor.dtype == dtype:
            return tensor
        if not (tensor.requires_grad and tensor.is_leaf):
            return tensor.to(dtype)
        if id(tensor) not in self.casts:
            self.casts[id(tensor)] = tensor.to(dtype)
        return self.casts[id(tensor)]

    def _attention(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        d, width = q.shape[-1], v.shape[-1]
        if q.dtype != torch.float32 and (missing := -d % 8):  # as torch does before its kernels
            q, k, v = (F.pad(t, (0, missing)) for t in (q, k, v))
        pairs = q.shape[:-1].numel() * k.shape[-2] // (2 if is_causal else 1)
        return _Attention.apply(q, k, v, attn_mask, pairs, self.count)[..., :width]


def _on_meta(device: torch.device) -> torch.device:
    return torch.device("meta") if device.type == "cuda" else device


def _to_float32(tensor: Tensor) -> Tensor:
    half = tensor.dtype in (torch.bfloat16, torch.float16)
    return tensor.float() if half else tensor


@contextmanager
def _computed_again(pretend: PretendCuda) -> Iterator[None]:
    """A layer of --checkpoint-layers inside of backward, where no function mode is in force."""
    with pretend:
        yield
    pretend.casts.clear()


@contextmanager
def on_paper(
    processes: int = 1, little_memory: bool = False
) -> Iterator[tuple[Count, Callable[[], None]]]:
    """Inside, the device cuda is a GPU on paper; gives the `Count`, and what forgets the parameters
    that autocast has cast, to be called after each forward.

    processes: of several this is the first; what it sends them goes nowhere. little_memory: takes
    the loss as a CPU does, in the memory of its logits; all else stays as on a GPU.
    """
    with ExitStack() as stack:
        if processes > 1:
            dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=processes)
            stack.callback(dist.destroy_process_group)
        stack.callback(quant._absmax_levels.cache_clear)  # a table that is kept for the process
        # What torch asks before it turns autocast on, and transformers before a grouped product.
        common = torch.cuda.amp.common
        stack.enter_context(patch.object(common, "amp_definitely_not_available", lambda: False))
        stack.enter_context(patch.object(torch.cuda, "is_bf16_supported", lambda: True))
        stack.enter_context(patch.object(torch.cuda, "get_device_capability", lambda *_: (9, 0)))
        count = stack.enter_context(Count())
        stack.enter_context(patch.object(relative_attention, "_kernel", lambda *_: _flex(count)))
        stack.enter_context(patch.object(attention, "attend_in_blocks", _window(count)))
        stack.enter_context(patch.object(compiling, "has_compiler", lambda device: True))
        move = count.compiled_function(adamw.move)
        stack.enter_context(patch.object(adamw, "kernel", lambda device: move))
        pretend = stack.enter_context(PretendCuda(count))
        again = partial(
            checkpoint,
            context_fn=lambda: (nullcontext(), _computed_again(pretend)),
            determinism_check="none",  # it would see a device of another name
        )
        stack.enter_context(patch.object(decoder, "checkpoint", again))
        if little_memory:
            stack.enter_context(patch.object(loss, "_few_passes", loss._little_memory))
        yield count, pretend.casts.clear
