"""Linear layers: y = x W^T + b, on a CPU by the faster of the two libraries that PyTorch brings.

In: x [..., in]. Out: [..., out].

The one idea: on x86 PyTorch gives a product of float32 to MKL, whatever the processor, and only one
of 16 bits to oneDNN. MKL does not know AMD's processors as well as oneDNN does (bench/NOTES.md has
the figures). The operator that torch.compile writes for a linear reaches it, and here it gets a
gradient. Everything else is left to `F.linear`: GPUs, 16 bits, builds without oneDNN, and small
products, for oneDNN makes a kernel for each new shape, which takes it a millisecond, and lengths of
batches are new all the time.

`torch.backends.mkldnn.flags(enabled=False)` leaves all of them to `F.linear`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LARGE = 2**26  # multiplications; about as many as one core does in two milliseconds
_PRESENT = torch.backends.mkldnn.is_available() and "AVX" in torch.backends.cpu.get_cpu_capability()


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class _Product(torch.autograd.Function):
    """x [M, in], weight [out, in] -> [M, out]."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        wanted = ctx.needs_input_grad
        ctx.save_for_backward(x if wanted[1] else None, weight if wanted[0] else None)
        return _onednn(x, weight, bias)

    @staticmethod
    def backward(ctx, grad: Tensor):
        (x, weight), wanted = ctx.saved_tensors, ctx.needs_input_grad
        d_x = _onednn(grad, weight.t()) if wanted[0] else None
        d_weight = _onednn(grad.t(), x.t()) if wanted[1] else None
        return d_x, d_weight, grad.sum(0) if wanted[2] else None


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [..., in] times weight [out, in], plus bias -> [..., out], as `F.linear`."""
    small = x.numel() * len(weight) < LARGE or not (_PRESENT and torch.backends.mkldnn.enabled)
    other = x.device.type != "cpu" or not x.dtype == weight.dtype == torch.float32
    if small or other or torch.is_autocast_enabled("cpu"):
        return F.linear(x, weight, bias)
    rows = x.reshape(-1, x.shape[-1])  # [M, in]
    return _Product.apply(rows, weight, bias).view(*x.shape[:-1], len(weight))


class Linear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)
