"""Head and cross-entropy on label positions only, in chunks: hidden states become (sum, count).

In: hidden states of the scored positions [L, D], their targets [L], the head's weight [V, D].
Out: the summed loss as a float32 scalar; L is the count.

The one idea: with V = 129280 the logits of a whole batch, not the model, are what fills the memory.
Only answer tokens are scored, so only their rows meet the head, `CHUNK` at a time, and each chunk's
logits are thrown away and computed again in the backward pass. A loss is a sum and a count
everywhere in this package: means of means weigh short answers more than long ones.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

IGNORE = -100  # label of a position that is not scored
CHUNK = 1024  # rows of logits alive at a time: 0.5 GB in float32 at V = 129280


def _chunk_loss(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    logits = F.linear(hidden, weight)  # [rows, V]
    return F.cross_entropy(logits.float(), targets, reduction="sum")


def summed_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """hidden [L, D], weight [V, D], targets [L] -> sum of -log p(target), float32 scalar."""
    total = torch.zeros((), dtype=torch.float32, device=hidden.device)
    for rows, goals in zip(hidden.split(CHUNK), targets.split(CHUNK)):
        if torch.is_grad_enabled():
            total = total + checkpoint(_chunk_loss, rows, weight, goals, use_reentrant=False,
                                       preserve_rng_state=False)
        else:
            total = total + _chunk_loss(rows, weight, goals)
    return total
