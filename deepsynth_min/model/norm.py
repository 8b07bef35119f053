"""RMSNorm: a row is divided by its root mean square, and each column scaled.

In: x [..., D]. Out: the same shape and type; computed in float32.

The one idea: `rms_norm` is the formula. For a GPU torch has a kernel for it and for its gradient;
for a CPU it has neither, and what autograd makes of the formula passes over the rows a dozen times.
`_RMSNormCPU`, whose gradient is written by hand, takes half of that.

Source: Zhang & Sennrich 2019.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The plain form: x / sqrt(mean(x^2) + eps) * weight; x [..., D], weight [D] -> [..., D]."""
    mean_square = x.square().mean(-1, keepdim=True)  # [..., 1]
    return x / (mean_square + eps).sqrt() * weight


class _RMSNormCPU(torch.autograd.Function):
    """`rms_norm` of float32 rows in fewer passes: the backward keeps the rows' scales alone."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        scale = (x.square().mean(-1, keepdim=True) + eps).rsqrt_()  # [..., 1]
        ctx.save_for_backward(x, weight, scale)
        return (x * scale).mul_(weight)

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, scale = ctx.saved_tensors
        product = grad * x
        d_weight = product.flatten(0, -2).t() @ scale.flatten()  # [D]
        along_x = (product @ weight)[..., None] * scale.pow(3) / -x.shape[-1]  # [..., 1]
        d_x = torch.mul(grad, weight, out=product).mul_(scale).addcmul_(x, along_x)
        return d_x, d_weight, None


class RMSNorm(nn.Module):
    """`rms_norm` with its weight, by the device's fast form."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu":
            return _RMSNormCPU.apply(x.float(), self.weight.float(), self.eps).to(x.dtype)
        if x.dtype == self.weight.dtype:
            return rms_norm_by_kernel(x, self.weight, self.eps)
        return rms_norm_by_kernel(x.float(), self.weight.float(), self.eps).to(x.dtype)


def rms_norm_by_kernel(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Torch's kernel for a GPU, which computes in float32 whatever type it reads. Without autocast,
    which would first make float32 of it."""
    with torch.autocast(x.device.type, enabled=False):
        return F.rms_norm(x, x.shape[-1:], weight, eps)
