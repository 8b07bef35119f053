"""Quantised linears and experts: the frozen base of QLoRA, in 4 or 8 bits a weight.

In: a model, on the meta device or filled. Out: the same model, in which every linear and every
stack of experts of the decoder's layers holds its weight packed. Embedding, head, norms, routers,
projector and the vision towers stay what they are: they are small, or read by value.

The format. A 4-bit number can only say one of 16 things, so weights are cut into blocks of 64
neighbours; each block keeps its largest magnitude (absmax, float32), and each weight the nearest of
16 levels in [-1, 1] times that. NF4's levels are quantiles of the normal distribution, so that, for
weights that are normally distributed (trained ones nearly are), every level is used equally often;
FP4's are the values of a 4-bit float. int8 has 255 even levels and one absmax for each row.

The arithmetic, in bytes per weight:
    4 bit       1/2 (level) + 4/64 (absmax)                                     = 0.5625
    4 bit, double quantisation: absmax themselves in 8 bits, in blocks of 256
                1/2 + 1/64 + 4/(64*256), and 4 bytes a tensor (their mean)      = 0.5159
    int8        1 + 4/width                                                     = 1.0031 at 1280
    bf16        2
Of the official model's 6.67 GB the decoder's linears and experts are 5.2 GB in bf16, 1.34 GB in NF4
with double quantisation; with the parts that stay in bf16 (1.47 GB) the model is 2.8 GB.

The one idea: a packed weight is only ever unpacked as a whole and for one product, and again in the
backward pass instead of being kept. So what is computed is exactly the product with the unpacked
weight, and the adapter (lora.py) beside it cannot tell. The price is time: each use first writes
the weight in the compute type. bitsandbytes' own fused 4-bit product is faster for single rows and
does not know stacked experts; its kernels for packing and unpacking are what is used here, on CPU
too.

Source: Dettmers et al. 2023 (QLoRA), Dettmers et al. 2022 (LLM.int8: rows).
"""

import logging
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from ..model.experts import Experts, compute_dtype, mixture_of_experts_grouped, product_by_group

BLOCK, BLOCK_OF_ABSMAX = 64, 256
PART = 2**20  # weights packed at a time; whole blocks


@dataclass(frozen=True)
class QuantConfig:
    kind: str = "nf4"  # nf4, fp4 or int8
    double: bool = True  # the 4-bit kinds: absmax in 8 bits too


@cache
def _library():
    # On some CPUs it asks for a kernel from the hub, for a product that is not used here.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    import bitsandbytes.functional  # seconds, for which --help need not wait

    return bitsandbytes.functional


@cache
def _absmax_levels(device: torch.device) -> Tensor:
    """The 256 levels in which double quantisation stores absmax: one table for all weights."""
    with torch.device("cpu"):  # even where the model is being built on the meta device
        return _library().create_dynamic_map().to(device)


class Packed(nn.Module):
    """One weight [..., out, in], packed. Buffers, never parameters: nothing here trains."""

    def __init__(self, weight: Tensor, config: QuantConfig):
        super().__init__()
        self.shape, self.kind, self.double = weight.shape, config.kind, config.double
        library, weight = _library(), weight.detach().contiguous()
        if config.kind == "int8":
            # The kernel reads float16: more digits than bf16, and weights are far from its ends.
            rows = weight.view(-1, weight.shape[-1]).half()
            levels, absmax, _ = library.int8_vectorwise_quant(rows)
            self.register_buffer("levels", levels.view(weight.shape))
            self.register_buffer("absmax", absmax.float())
            return
        n, device = weight.numel(), weight.device
        levels = torch.empty(-(-n // 2), 1, dtype=torch.uint8, device=device)  # two a byte
        absmax = torch.empty(-(-n // BLOCK), device=device)
        # In parts, for the kernel's own memory is many times its input.
        for start in range(0, n, PART):
            part, state = library.quantize_4bit(
                weight.view(-1)[start : start + PART], blocksize=BLOCK, quant_type=config.kind
            )
            levels[start // 2 :][: len(part)] = part
            absmax[start // BLOCK :][: len(state.absmax)] = state.absmax
        self.register_buffer("levels", levels)
        if config.double:
            mean = absmax.mean()
            code = _absmax_levels(device)
            absmax, state = library.quantize_blockwise(
                absmax - mean, code, blocksize=BLOCK_OF_ABSMAX
            )
            self.register_buffer("absmax_absmax", state.absmax)  # [weights / 64 / 256] float32
            self.register_buffer("absmax_mean", mean)
        self.register_buffer("absmax", absmax)  # float32, or with double quantisation uint8

    def unpack(self, dtype: torch.dtype) -> Tensor:
        """The weight, as near as its levels come."""
        if self.kind == "int8":
            scale = self.absmax.view(*self.shape[:-1], 1) / 127
            return (self.levels * scale).to(dtype)
        library, state2, mean = _library(), None, None
        if self.double:
            mean = self.absmax_mean
            state2 = library.QuantState(
                absmax=self.absmax_absmax,
                blocksize=BLOCK_OF_ABSMAX,
                dtype=torch.float32,
                code=_absmax_levels(self.absmax.device),
            )
        state = library.QuantState(
            absmax=self.absmax,
            shape=self.shape,
            dtype=dtype,
            blocksize=BLOCK,
            quant_type=self.kind,
            offset=mean,
            state2=state2,
        )
        return library.dequantize_4bit(self.levels, state)

    def stored_bytes(self) -> int:
        return sum(buffer.nbytes for buffer in self.buffers())


class _PackedProduct(torch.autograd.Function):
    """x [M, in] times a packed weight [out, in]; or, with row ends, times experts [E, out, in]."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, packed: Packed, ends: Tensor | None) -> Tensor:
        ctx.packed, ctx.ends = packed, ends
        weight = packed.unpack(x.dtype)
        if ends is None:
            return F.linear(x, weight)
        return product_by_group(x, weight.transpose(1, 2), ends)

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight = ctx.packed.unpack(grad.dtype)
        if ctx.ends is None:
            return grad @ weight, None, None
        return product_by_group(grad.contiguous(), weight, ctx.ends), None, None


def packed_product(x: Tensor, packed: Packed, ends: Tensor | None = None) -> Tensor:
    return _PackedProduct.apply(x.to(compute_dtype(x)), packed, ends)


class QuantLinear(nn.Module):
    """A linear without bias whose `weight` is packed as soon as it is received."""

    bias = None

    def __init__(self, linear: nn.Linear, config: QuantConfig):
        super().__init__()
        assert linear.bias is None, "the decoder's linears have no bias"
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.config, self.weight = config, linear.weight
        self.weight.requires_grad = False

    def receive(self, name: str, weight: Tensor) -> None:
        """Packs the weight in place of the parameter of that name, which must exist."""
        _receive(self, name, weight)

    def forward(self, x: Tensor) -> Tensor:
        return packed_product(x, self.weight)


class QuantExperts(nn.Module):
    """All routed experts of a layer, `gate_up` and `down` packed as soon as they are received."""

    def __init__(self, experts: Experts, config: QuantConfig):
        super().__init__()
        self.num_experts, self.width, self.inner = experts.num_experts, experts.width, experts.inner
        self.config, self.gate_up, self.down = config, experts.gate_up, experts.down
        self.gate_up.requires_grad = self.down.requires_grad = False

    def receive(self, name: str, weight: Tensor) -> None:
        _receive(self, name, weight)

    def project_in(self, rows: Tensor, ends: Tensor) -> Tensor:
        return packed_product(rows, self.gate_up, ends)  # [M, 2I]

    def project_out(self, inner: Tensor, ends: Tensor) -> Tensor:
        return packed_product(inner, self.down, ends)  # [M, D]

    def forward(self, x: Tensor, chosen: Tensor, weight: Tensor) -> Tensor:
        return mixture_of_experts_grouped(self, x, chosen, weight)


def _receive(module: nn.Module, name: str, weight: Tensor) -> None:
    assert isinstance(module._parameters.get(name), nn.Parameter), f"no unfilled {name}"
    delattr(module, name)
    setattr(module, name, Packed(weight, module.config))


def quantise(model: nn.Module, config: QuantConfig) -> None:
    """Makes the linears and experts of the decoder's layers quantised ones.

    On the meta device they wait for `weights.load_weights`, which fills them tensor by tensor;
    a filled model is packed at once.
    """
    kinds = {nn.Linear: QuantLinear, Experts: QuantExperts}
    for path, module in list(model.named_modules()):
        if not path.startswith("model.layers.") or type(module) not in kinds:
            continue
        owner, _, last = path.rpartition(".")
        quantised = kinds[type(module)](module, config)
        setattr(model.get_submodule(owner), last, quantised)
        for name, parameter in list(quantised.named_parameters()):
            if parameter.device.type != "meta":
                quantised.receive(name, parameter)


def packed_weights(model: nn.Module) -> dict[str, Packed]:
    """Path -> each packed weight of a model."""
    return {path: module for path, module in model.named_modules() if isinstance(module, Packed)}
