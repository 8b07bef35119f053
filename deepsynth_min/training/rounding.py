"""Stochastic rounding: what keeps small updates of bf16 weights, on average.

In: float32, and a generator. Out: bf16.
"""

import torch
from torch import Tensor


def generator_on(device: torch.device, seed: int) -> torch.Generator:
    """One on the device, begun with the seed."""
    return torch.Generator(device).manual_seed(seed)


def round_at_random(
    values: Tensor,
    generator: torch.Generator,
    shape: torch.Size | None = None,
    rows: slice = slice(None),
) -> Tensor:
    """float32 -> bf16, up or down with the probability that keeps the mean.

    values may be some rows of a tensor of `shape`: the numbers drawn are those of the whole one.

    A bf16 number is the upper half of a float32's bits. A random number added to the lower half
    carries into the upper one as often as the lower half is large.
    """
    bits = values.view(torch.int32)
    noise = torch.randint(
        0, 2**16, shape or bits.shape, generator=generator, dtype=torch.int32, device=bits.device
    )[rows]
    return ((bits + noise) & -(2**16)).view(torch.float32).to(torch.bfloat16)
