"""Forms of an operation against each other on this device: rows of gpu.py.

In: a device, and whether it is a dry run. Out: `line`s of gpu_checks.py, distances of each fast
form from the plain one of the same file, on the same random numbers, at the official model's width
(a dry run: narrower); in float32 they may differ by what another order of additions makes, in bf16
by its rounding. What is compiled takes bf16 first: that is what trains, and compiles sooner.
"""

import inspect
import time
from collections.abc import Iterator

import torch
from common import wait
from gpu_checks import APART, PRECISIONS, distance, line, off, worst
from torch import Tensor

from deepsynth_min.model.attention import attend, attend_window, attention, window_mask
from deepsynth_min.model.decoder import MixtureOfExperts
from deepsynth_min.model.encoders.relative_attention import (
    attend_by_score,
    attention_with_bias,
    distance_products,
)
from deepsynth_min.model.encoders.sam_clip import SamAttention, attend_with_columns
from deepsynth_min.model.experts import mixture_of_experts, mixture_of_experts_grouped
from deepsynth_min.model.loss import chunked_cross_entropy, cross_entropy
from deepsynth_min.model.shape.presets import PRESETS
from deepsynth_min.model.window_blocks import attend_in_blocks, window_blocks
from deepsynth_min.training.adamw import LowBitAdamW


def _sam(device: torch.device, dry: bool, dtype: torch.dtype) -> tuple[SamAttention, Tensor]:
    """A layer's attention and the grid that it sees: the official one's is 64 x 64."""
    config = PRESETS["tiny" if dry else "deepseek-ocr"].sam
    side = config.image_size // config.patch
    torch.manual_seed(0)
    made = SamAttention(config.width, config.heads, side).to(device, dtype)
    for table in (made.rel_pos_h, made.rel_pos_w):
        torch.nn.init.normal_(table, std=0.2)
    return made, torch.randn(1, side, side, config.width, device=device, dtype=dtype)


@torch.no_grad()
def encoder_forms(device: torch.device, dry: bool) -> Iterator[dict]:
    """SAM's global attention: the formula, columns in a fused kernel, a compiled kernel (flex)."""
    for precision, dtype in reversed(PRECISIONS.items()):
        if dry and precision == "bf16":
            continue  # on a CPU a compiled kernel takes a quarter of a minute
        layer, x = _sam(device, dry, dtype)
        n, h, w, width = x.shape
        qkv = layer.qkv(x).view(n, h, w, 3, layer.heads, -1).permute(3, 0, 4, 1, 2, 5)
        exact = attention_with_bias(
            *qkv.double(), *(bias.double() for bias in layer.double().axis_biases(qkv[0].double()))
        )
        layer.to(dtype)
        q, k, v = qkv
        bar = APART[precision]
        columns = attend_with_columns(q, k, v, *layer.axis_biases(q))
        yield off(f"SAM's attention, columns, {precision}", distance(columns, exact), bar)
        q, k, v = (part.flatten(2, 3) for part in qkv)
        products = distance_products(q, layer.rel_pos_h, layer.rel_pos_w, h, w)
        scored = attend_by_score(q, k, v, products, h, w).view(exact.shape)
        yield off(f"SAM's attention, flex, {precision}", distance(scored, exact), bar)


def decoder_forms(device: torch.device, dry: bool) -> Iterator[dict]:
    """Experts, attention and loss: the plain form and the fast one, with their gradients."""
    config = PRESETS["tiny" if dry else "deepseek-ocr"].decoder
    tokens, D = (64, config.hidden_size) if dry else (1024, config.hidden_size)
    for precision, dtype in PRECISIONS.items():
        bar, make = APART[precision], {"device": device, "dtype": dtype}
        torch.manual_seed(0)
        layer = MixtureOfExperts(config).to(**make)
        for weight in (*layer.experts.parameters(), layer.gate.weight):
            torch.nn.init.normal_(weight, std=weight.shape[-1] ** -0.5)
        x = torch.randn(tokens, D, **make, requires_grad=True)
        with torch.no_grad():
            chosen, weight, _ = layer.gate(x)

        def experts(form, x=x, layer=layer, chosen=chosen, weight=weight):
            out = form(layer.experts, x, chosen, weight.to(x.dtype))
            given = (x, layer.experts.gate_up, layer.experts.down)
            return [out, *torch.autograd.grad(out.float().square().mean(), given)]

        apart = worst(experts(mixture_of_experts_grouped), experts(mixture_of_experts))
        yield off(f"experts, grouped, {precision}", apart, bar)
        heads, d = config.num_attention_heads, config.head_dim
        q, k, v = (torch.randn(2, heads, tokens, d, **make, requires_grad=True) for _ in range(3))
        mask = torch.ones(tokens, tokens, dtype=torch.bool, device=device).tril()
        fused, plain = (
            [o, *_grads(o, (q, k, v))] for o in (attend(q, k, v, None), attention(q, k, v, mask))
        )
        yield off(f"causal attention, fused, {precision}", worst(fused, plain), bar)
        rows = torch.randn(64, D, **make, requires_grad=True)
        head = (torch.randn(config.vocab_size, D, **make) * D**-0.5).requires_grad_()
        target = torch.randint(config.vocab_size, (64,), device=device)
        chunked, whole = (
            [total, *torch.autograd.grad(total, (rows, head))]
            for total in (f(rows, head, target) for f in (chunked_cross_entropy, cross_entropy))
        )
        yield off(f"head and loss, chunked, {precision}", worst(chunked, whole), bar)


def _grads(out: Tensor, given: tuple) -> tuple[Tensor, ...]:
    return torch.autograd.grad(out.float().square().mean(), given)


def window_forms(device: torch.device, dry: bool) -> Iterator[dict]:
    """A reference sliding window: the mask, chunks, and on a GPU a compiled kernel (flex), padded
    and packed, at two lengths each, with their gradients."""
    config, window = PRESETS["tiny" if dry else "deepseek-ocr"].decoder, 128
    for precision, dtype in reversed(PRECISIONS.items()):
        for prompt, T in ((70, 400),) if dry else ((300, 1100), (300, 2000)):
            torch.manual_seed(0)
            shape = (2, config.num_attention_heads, T, config.head_dim)
            made = {"device": device, "dtype": dtype, "requires_grad": True}
            given = q, k, v = tuple(torch.randn(shape, **made) for _ in range(3))
            mask = window_mask(torch.tensor([prompt] * 2, device=device), T, window)
            plain = attention(q, k, v, mask)
            exact = [plain, *_grads(plain, given)]
            by_sample = ((p[i : i + 1] for p in given) for i in (0, 1))
            one = torch.cat([attend_window(*own, prompt, window) for own in by_sample])
            what = f"window of {window} in {T} tokens, {precision}"
            apart = worst([one, *_grads(one, given)], exact)
            yield off(f"{what}: chunks", apart, APART[precision])
            if device.type != "cuda":
                continue
            padded = window_blocks((), (prompt,) * 2, T, window, device)
            one = attend_in_blocks(q, k, v, padded)
            apart = worst([one, *_grads(one, given)], exact)
            yield off(f"{what}: flex, padded", apart, APART[precision])
            packed = window_blocks((T, T), (prompt,) * 2, 2 * T, window, device)
            row = (p.transpose(0, 1).flatten(1, 2)[None] for p in given)  # [1, H, 2T, d]
            one = attend_in_blocks(*row, packed)[0].unflatten(1, (2, T)).transpose(0, 1)
            apart = worst([one, *_grads(one, given)], exact)
            yield off(f"{what}: flex, packed", apart, APART[precision])


def optimizer_forms(device: torch.device, dry: bool) -> Iterator[dict]:
    """AdamW over bf16 weights and with 8-bit moments: as it stands, and on a GPU one kernel; how
    far the sums of three updates are apart, and the time of a step."""
    count = 2**16 if dry else 2**26
    for dtype in (torch.float32, torch.bfloat16):
        moved, seconds = [], []
        for plainly in (True, False):
            torch.manual_seed(0)
            weight = torch.nn.Parameter(torch.randn(count, device=device).to(dtype))
            before, groups = weight.detach().clone(), [{"params": [weight], "weight_decay": 0.1}]
            optimizer = LowBitAdamW(groups, 1e-3, (0.9, 0.95), 1e-8, 0, in_8_bits=True)
            optimizer.kernel = None if plainly else optimizer.kernel
            for _ in range(3):
                weight.grad = torch.randn(count, device=device).to(dtype)
                wait(device)
                began = time.perf_counter()
                optimizer.step()
                wait(device)
            seconds.append(time.perf_counter() - began)
            moved.append(weight.detach().float() - before.float())
        what = f"AdamW, 8-bit moments, {str(dtype).removeprefix('torch.')} weights"
        if device.type == "cuda":
            yield off(f"{what}: one kernel", distance(*moved), 1e-2)
            yield line(f"{what}, {count:,} numbers: one kernel", 1e3 * seconds[1], "ms")
        yield line(f"{what}, {count:,} numbers: plain", 1e3 * seconds[0], "ms")


def varlen(device: torch.device, dry: bool) -> Iterator[dict]:
    """Packed samples: torch's kernel for lengths that vary, beside a call for each sample, which is
    what training does now; with the times of both, forward and backward."""
    if device.type != "cuda":
        yield line("packed attention, varlen", "no kernel on a CPU")
        return
    from torch.nn.attention.varlen import varlen_attn

    config, lengths = PRESETS["deepseek-ocr"].decoder, [393, 350, 400, 310] * 4
    shape = (sum(lengths), config.num_attention_heads, config.head_dim)
    q, k, v = (
        torch.randn(shape, device=device, dtype=torch.bfloat16, requires_grad=True)
        for _ in range(3)
    )
    ends = torch.tensor([0, *lengths], device=device).cumsum(0).int()
    most = max(lengths)
    new = "window_size" in inspect.signature(varlen_attn).parameters  # torch 2.13; before, a word
    causal = {"window_size": (-1, 0)} if new else {"is_causal": True}

    def one_kernel() -> Tensor:
        return varlen_attn(q, k, v, ends, ends, most, most, **causal)

    def by_sample() -> Tensor:
        split = ((p.transpose(0, 1)[None]).split(lengths, 2) for p in (q, k, v))
        return torch.cat([attend(*own, None)[0] for own in zip(*split)], 1).transpose(0, 1)

    ours, theirs = ([out, *_grads(out, (q, k, v))] for out in (by_sample(), one_kernel()))
    yield off("packed attention, varlen, bf16", worst(theirs, ours), APART["bf16"])
    for name, form in {"a call for each sample": by_sample, "varlen": one_kernel}.items():
        seconds = []
        for _ in range(10):
            torch.cuda.synchronize()
            began = time.perf_counter()
            _grads(form(), (q, k, v))
            torch.cuda.synchronize()
            seconds.append(time.perf_counter() - began)
        yield line(f"packed attention, {name}, 16 samples", 1e3 * sorted(seconds)[5], "ms")
