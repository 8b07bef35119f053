"""Head and cross-entropy on label positions only, in chunks: hidden states become (sum, count).

In: hidden states of the scored positions [L, D], their targets [L], the head's weight [V, D].
Out: the summed loss as a float32 scalar; L is the count.

The one idea: `cross_entropy` is the definition, but with V = 129280 the logits of a whole batch,
not the model, are what fills the memory. Only answer tokens are scored, so only their rows meet the
head, and `chunked_cross_entropy` takes `CHUNK` of them at a time. And the gradient of a
cross-entropy is known as soon as its logits are, softmax minus one-hot: so each chunk's share of
the gradients is taken at once, from the same memory, and its logits are neither kept nor computed
again. Backward only scales. (Liger Kernel, Hsu et al. 2024, does the same on a GPU.)

The weight's gradient is a sum over chunks. In bf16 each addition would round it: of 1,600 rows at
V = 8192 it was off by 2.8e-3, 1.66 times what one product of all rows is (1.67e-3). So chunks are
added up in float32: 1.60e-3, or of weights kept in bf16, whose gradient is rounded once more,
2.3e-3.

A loss is a sum and a count everywhere in this package: means of means weigh short answers more than
long ones.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

IGNORE = -100  # label of a position that is not scored
CHUNK = 384  # rows of logits alive at a time: 0.2 GB in float32 at V = 129280


def cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """The plain form: hidden [L, D], weight [V, D], targets [L] -> sum of -log p(target)."""
    logits = F.linear(hidden, weight).float()  # [L, V]
    log_p = logits.log_softmax(-1)  # [L, V]
    return -log_p.gather(1, targets[:, None]).sum()


def chunked_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """`cross_entropy` without the memory of all logits: float32 scalar, of autocast's product."""
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    with torch.autocast(device, enabled=False):
        hidden = hidden.to(dtype)
        return _ChunkedCrossEntropy.apply(hidden, weight, targets, torch.is_grad_enabled())


def _little_memory(logits: Tensor, target: Tensor, training: bool) -> tuple[Tensor, Tensor | None]:
    """(summed loss, its gradient by the logits [rows, V] in their type), all in the memory of the
    logits in float32: torch's logsumexp would take as much again."""
    dtype, logits = logits.dtype, logits.float()
    loss = -logits.gather(1, target).sum()
    top = logits.amax(-1, keepdim=True)  # [rows, 1]
    sums = logits.sub_(top).exp_().sum(-1, keepdim=True)  # [rows, 1]
    loss += (sums.log() + top).sum()
    if not training:
        return loss, None
    d_logits = logits.div_(sums)  # softmax, and then minus one-hot
    d_logits.scatter_add_(1, target, torch.full_like(sums, -1))
    return loss, d_logits.to(dtype)


def _few_passes(logits: Tensor, target: Tensor, training: bool) -> tuple[Tensor, Tensor | None]:
    """The same for a GPU, where passes over memory cost more than twice the memory does."""
    log_p = logits.float().log_softmax(-1)  # [rows, V]
    picked = log_p.gather(1, target)  # [rows, 1]
    if not training:
        return -picked.sum(), None
    d_logits = torch.exp(log_p, out=torch.empty_like(logits))
    # In float32: of a probability near 1 that has been rounded nothing would be left.
    d_logits.scatter_(1, target, picked.expm1().to(logits.dtype))
    return -picked.sum(), d_logits


class _ChunkedCrossEntropy(torch.autograd.Function):
    """hidden [L, D] of the compute type, weight [V, D] as it is kept (its gradient is of that type,
    and rounded to no other before), targets [L] -> sum, float32."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, hidden: Tensor, weight: Tensor, targets: Tensor, training: bool
    ) -> Tensor:
        hidden_trains, weight_trains = (training and needed for needed in ctx.needs_input_grad[:2])
        d_hidden = torch.empty_like(hidden) if hidden_trains else None
        kept, weight = weight.dtype, weight.to(hidden.dtype)
        sums = hidden.dtype if len(hidden) <= CHUNK else torch.float32
        d_weight = torch.zeros_like(weight, dtype=sums) if weight_trains else None
        total = torch.zeros((), device=hidden.device)
        for start in range(0, len(hidden), CHUNK):
            chunk = slice(start, start + CHUNK)
            rows, target = hidden[chunk], targets[chunk, None]
            form = _little_memory if hidden.device.type == "cpu" else _few_passes
            loss, d_logits = form(F.linear(rows, weight), target, hidden_trains or weight_trains)
            total += loss
            if hidden_trains:
                torch.mm(d_logits, weight, out=d_hidden[chunk])
            if weight_trains and sums == hidden.dtype:
                d_weight.addmm_(d_logits.t(), rows)
            elif weight_trains:
                d_weight += d_logits.t() @ rows
            del d_logits  # before the next chunk's are made
        if weight_trains and sums != hidden.dtype:
            d_weight = d_weight.to(kept)
        ctx.save_for_backward(d_hidden, d_weight)
        ctx.kept = kept
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        # In place: autograd refuses a second backward, for the saved tensors have changed.
        d_hidden, d_weight = (None if d is None else d.mul_(grad) for d in ctx.saved_tensors)
        return d_hidden, d_weight if d_weight is None else d_weight.to(ctx.kept), None, None
