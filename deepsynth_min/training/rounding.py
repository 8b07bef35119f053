"""Stochastic rounding: what keeps small updates of bf16 weights, on average.

In: float32, and a key. Out: bf16.

The one idea: the random bits of a number are a hash of its place, so nobody keeps or draws any: one
kernel makes them where it needs them, and every division into pieces or shards has the same.
"""

import torch
from torch import Tensor

MASK = 2**32 - 1


def mixed(x: Tensor) -> Tensor:
    """int64 -> 32 bits of each that look random; a bijection of 32 bits.

    Source: Wellons, "hash prospector" (two rounds of xor, shift and multiply); both factors lie
    below 2^31, so no product leaves int64.
    """
    x = x & MASK
    x = ((x ^ (x >> 15)) * 0x2C1B3C6D) & MASK
    x = ((x ^ (x >> 12)) * 0x297A2D39) & MASK
    return x ^ (x >> 15)


def random_bits(key: Tensor, begin: int, count: int) -> Tensor:
    """[count] int64 of 32 random bits, for the numbers at the places from `begin` on.

    key: int64 scalar, another for each tensor and each step.
    """
    return mixed(torch.arange(begin, begin + count, device=key.device) + key)


def round_at_random(values: Tensor, bits: Tensor) -> Tensor:
    """float32 -> bf16, up or down with the probability that keeps the mean, by 16 random bits.

    A bf16 number is the upper half of a float32's bits. A random number added to the lower half
    carries into the upper one as often as the lower half is large.
    """
    noise = (bits & 0xFFFF).to(torch.int32)
    return ((values.view(torch.int32) + noise) & -(2**16)).view(torch.float32).to(torch.bfloat16)
