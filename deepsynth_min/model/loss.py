"""Head and cross-entropy on label positions only, in chunks: hidden states become (sum, count).

In: hidden states of the scored positions [L, D], their targets [L], the head's weight [V, D].
Out: the summed loss as a float32 scalar; L is the count.

The one idea: with V = 129280 the logits of a whole batch, not the model, are what fills the memory.
Only answer tokens are scored, so only their rows meet the head, `CHUNK` at a time. And the gradient
of a cross-entropy is known as soon as its logits are, softmax minus one-hot: so each chunk's share
of the gradients is taken at once, from the same memory, and its logits are neither kept nor
computed again. Backward only scales. (Liger Kernel, Hsu et al. 2024, does the same on a GPU.)

A loss is a sum and a count everywhere in this package: means of means weigh short answers more than
long ones.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

IGNORE = -100  # label of a position that is not scored
CHUNK = 384  # rows of logits alive at a time: 0.2 GB in float32 at V = 129280


def cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """The plain form: the sum of -log softmax(hidden weight^T)[target], float32 scalar.

    hidden [L, D], weight [V, D], targets [L]; all logits [L, V] are alive at once.
    """
    return F.cross_entropy(F.linear(hidden, weight).float(), targets, reduction="sum")


class _SummedCrossEntropy(torch.autograd.Function):
    """hidden [L, D] and weight [V, D] of the compute type, targets [L] -> sum, float32."""

    @staticmethod
    def forward(ctx, hidden, weight, targets, training: bool):
        wanted = [training and needed for needed in ctx.needs_input_grad[:2]]
        d_hidden = torch.empty_like(hidden) if wanted[0] else None
        d_weight = torch.zeros_like(weight) if wanted[1] else None
        total = torch.zeros((), device=hidden.device)
        for start in range(0, len(hidden), CHUNK):
            own = slice(start, start + CHUNK)
            rows, goals = hidden[own], targets[own, None]
            logits = F.linear(rows, weight).float()  # [rows, V]
            # All in the memory of the logits: torch's logsumexp would take as much again.
            total -= logits.gather(1, goals).sum()
            top = logits.amax(-1, keepdim=True)
            sums = logits.sub_(top).exp_().sum(-1, keepdim=True)
            total += (sums.log() + top).sum()
            if not any(wanted):
                continue
            change = logits.div_(sums)  # softmax, and then minus one-hot
            change.scatter_add_(1, goals, torch.full_like(sums, -1))
            change = change.to(hidden.dtype)
            if wanted[0]:
                torch.mm(change, weight, out=d_hidden[own])
            if wanted[1]:
                d_weight.addmm_(change.t(), rows)
            del logits, change  # before the next chunk's are made
        ctx.save_for_backward(d_hidden, d_weight)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        # In place: autograd refuses a second backward, for the saved tensors have changed.
        return *(None if d is None else d.mul_(grad) for d in ctx.saved_tensors), None, None


def summed_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """`cross_entropy` in chunks: CHUNK rows of logits are alive at a time, none are kept."""
    device = hidden.device.type
    kind = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    with torch.autocast(device, enabled=False):
        hidden, weight = hidden.to(kind), weight.to(kind)
        return _SummedCrossEntropy.apply(hidden, weight, targets, torch.is_grad_enabled())
