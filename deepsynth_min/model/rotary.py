"""Rotary position embedding: queries and keys are turned by angles that grow with their position.

In: positions [B, T]; queries or keys [B, H, T, d]. Out: the same, turned, so that a dot
product of two depends on the distance between their positions alone. Source: Su et al. 2021.
"""

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx


def rotary_tables(positions: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines for `rotate`: positions [B, T] -> two [B, 1, T, head_dim], float32."""
    exponents = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32)
    frequencies = theta ** (-exponents / head_dim)  # [head_dim/2]
    angles = positions[..., None].float() * frequencies  # [B, T, head_dim/2]
    angles = torch.cat([angles, angles], dim=-1)[:, None]  # [B, 1, T, head_dim]
    return angles.cos(), angles.sin()


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The plain form: turns the pairs (x[i], x[i + d/2]) by their angle; x [B, H, T, d]."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    if x.device.type == "cpu":
        return _with_partners(x * cos, x, sin).to(x.dtype)
    # A GPU computes in float32 and writes in x's type: half the bytes, and a rounding more.
    return _with_partners(torch.mul(x, cos, out=torch.empty_like(x)), x, sin)


def _with_partners(out: Tensor, x: Tensor, sin: Tensor) -> Tensor:
    """Adds to out, which is x * cos, what each number gets of the other of its pair."""
    half, sin = x.shape[-1] // 2, sin[..., : x.shape[-1] // 2]
    out[..., :half].addcmul_(x[..., half:], sin, value=-1)
    out[..., half:].addcmul_(x[..., :half], sin)
    return out


class _Rotary(torch.autograd.Function):
    """The gradient of a turn is the turn back: only the angles are kept."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotated(x, cos, sin)

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        return _rotated(grad, cos, -sin), None, None


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`apply_rotary` with its gradient by hand: half the passes over memory, and x is not kept."""
    return _Rotary.apply(x, cos, sin)
