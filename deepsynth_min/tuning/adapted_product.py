"""An adapted linear in few passes: three products forward, and nothing beside them.

In: x [..., in], a frozen weight W [out, in] as it is or packed (quant.py), its frozen bias b [out]
if it has one, A [R, in], B [out, R]. Out: x W^T + b + scale (x A^T) B^T, [..., out], in the compute
type.

The one idea: written as a sum of two products, the low-rank one's [M, out] is made, scaled and
added in passes of its own, and so is its gradient [M, in]. Here the product with B (backward: with
A) adds to what the base's product left in memory and scales on the way: two passes in place of six.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx

from ..model.experts import compute_dtype
from .quant import Packed


def adapted_product(
    x: Tensor, weight: Tensor | Packed, bias: Tensor | None, A: Tensor, B: Tensor, scale: float
) -> Tensor:
    """As above; the plain form is `LoraLinear.plain` in lora.py."""
    for frozen in (weight, bias):
        assert not (isinstance(frozen, Tensor) and frozen.requires_grad), "the base is frozen"
    rows = x.reshape(-1, x.shape[-1]).to(compute_dtype(x))  # [M, in]
    return _AdaptedProduct.apply(rows, weight, bias, A, B, scale).view(*x.shape[:-1], -1)


class _AdaptedProduct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx,
        x: Tensor,
        weight: Tensor | Packed,
        bias: Tensor | None,
        A: Tensor,
        B: Tensor,
        scale: float,
    ) -> Tensor:
        A, B = A.to(x.dtype), B.to(x.dtype)
        low = x @ A.t()  # [M, R]
        packed = isinstance(weight, Packed)
        ctx.packed, ctx.scale = weight if packed else None, scale
        ctx.save_for_backward(x, A, B, low, None if packed else weight)
        bias = None if bias is None else bias.to(x.dtype)
        return F.linear(x, _unpacked(weight, x.dtype), bias).addmm_(low, B.t(), alpha=scale)

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, A, B, low, weight = ctx.saved_tensors
        d_low, d_x = grad @ B, None  # [M, R], before its scale
        if ctx.needs_input_grad[0]:
            d_x = grad @ _unpacked(weight if ctx.packed is None else ctx.packed, grad.dtype)
            d_x.addmm_(d_low, A, alpha=ctx.scale)  # [M, in]
        d_A, d_B = (_scaled(a.t(), b, ctx.scale) for a, b in ((d_low, x), (grad, low)))
        return d_x, None, None, d_A.float(), d_B.float(), None


def _unpacked(weight: Tensor | Packed, dtype: torch.dtype) -> Tensor:
    return weight.unpack(dtype) if isinstance(weight, Packed) else weight.to(dtype)


def _scaled(a: Tensor, b: Tensor, scale: float) -> Tensor:
    return a.new_empty(len(a), b.shape[1]).addmm_(a, b, beta=0, alpha=scale)
