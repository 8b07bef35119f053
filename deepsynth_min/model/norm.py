"""RMSNorm: a row is divided by its root mean square, and each column scaled.

In: x [..., D]. Out: the same shape and type; computed in float32.

The one idea: for a GPU torch has a kernel for it and for its gradient, for a CPU neither, and what
autograd makes of the parts passes over the rows a dozen times. By hand it is half of that.

Source: Zhang & Sennrich 2019.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The plain form: x / rms(x) * weight over the last dimension, in float32; x [..., D]."""
    rows = x.float()
    scale = (rows.square().mean(-1, keepdim=True) + eps).rsqrt()  # [..., 1]
    return (rows * scale * weight.float()).to(x.dtype)


class _NormOnCPU(torch.autograd.Function):
    """`rms_norm` of float32 with its gradient by hand: x [..., D], weight [D] -> [..., D]."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        scale = (x.square().mean(-1, keepdim=True) + eps).rsqrt_()  # [..., 1]
        ctx.save_for_backward(x, weight, scale)
        return (x * scale).mul_(weight)

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, weight, scale = ctx.saved_tensors
        product = grad * x
        d_weight = product.flatten(0, -2).t() @ scale.flatten()
        along = (product @ weight)[..., None] * scale.pow(3) / -x.shape[-1]  # [..., 1]
        d_x = torch.mul(grad, weight, out=product).mul_(scale).addcmul_(x, along)
        return d_x, d_weight, None


class RMSNorm(nn.Module):
    """`rms_norm` with a weight, by torch's kernel on a GPU and by hand on a CPU."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        rows, weight = x.float(), self.weight.float()
        if x.device.type == "cpu":
            return _NormOnCPU.apply(rows, weight, self.eps).to(x.dtype)
        return F.rms_norm(rows, x.shape[-1:], weight, self.eps).to(x.dtype)
