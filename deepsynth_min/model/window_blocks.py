"""The reference sliding window on a GPU: one kernel for all samples, which skips what nobody sees.

In: queries, keys and values [B, H, T, d] of a batch, a sample in each row or packed in one, and the
`WindowBlocks` made once for it. Out: what attention.py's plain calls give, a call for each chunk.

The one idea: flex_attention works on blocks of 128 queries by 128 keys. Which blocks hold a pair
that `window_mask` lets see follows from where samples and prompts end, numbers that the host has:
so the list of blocks is made there, from the first and last token of each block, without a T x T
mask and without waiting for the device. Inside a block the kernel asks for each pair, but in blocks
that are seen whole.

A list may hold a block that nobody sees (where samples meet): that costs time and no rightness.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:  # it takes a while to import, and only a GPU needs it
    from torch.nn.attention.flex_attention import BlockMask

BLOCK = 128  # queries, and keys, of a block


@dataclass(frozen=True)
class WindowBlocks:
    """Which keys the queries of a batch see."""

    mask: "BlockMask"
    pairs: int  # of a query and a key, in the blocks that are read: for each head


def bounds(lengths: Sequence[int], prompts: Sequence[int], T: int) -> tuple[Tensor, Tensor]:
    """Where the sample of each query begins and where its prompt ends, [B, T] each.

    lengths: of samples packed in one row; empty: a sample in each row of T tokens.
    """
    sizes = torch.tensor(lengths or [T] * len(prompts))
    starts = sizes.cumsum(0) - sizes if lengths else torch.zeros_like(sizes)
    ends = starts + torch.tensor(prompts)
    return tuple(of_each.repeat_interleave(sizes).view(-1, T) for of_each in (starts, ends))


def seen_blocks(first: Tensor, prompt: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """Of the `bounds` [B, T] the blocks [B, n, n] in which some pair may be seen, and those in
    which every pair is."""
    first, prompt = (
        torch.cat([part, part[:, -1:].expand(-1, -part.shape[1] % BLOCK)], 1).unflatten(
            1, (-1, BLOCK)
        )
        for part in (first, prompt)  # as if the last query went on to the end of its block
    )
    own = torch.arange(first.shape[1]) * BLOCK
    query, key = own[:, None], own[None]  # the first of each block
    last_query, last_key = query + BLOCK - 1, key + BLOCK - 1
    least, most = (lambda part: part.amin(2)[..., None]), (lambda part: part.amax(2)[..., None])
    some = (key <= last_query) & (last_key >= least(first))
    some = some & ((key < most(prompt)) | (last_key > query - window))
    every = (last_key <= query) & (key >= most(first))
    every = every & ((last_key < least(prompt)) | (last_query - key < window))
    return some, every


def window_blocks(
    lengths: Sequence[int], prompts: Sequence[int], T: int, window: int, device: torch.device
) -> WindowBlocks:
    """lengths, prompts: as in decoder.Layout; T: tokens of a row; window: as in `window_mask`."""
    from torch.nn.attention.flex_attention import BlockMask

    first, prompt = bounds(lengths, prompts, T)
    some, every = seen_blocks(first, prompt, window)
    listed = []
    for blocks in (some & ~every, every):  # [B, 1, n] how many, [B, 1, n, n] which come first
        listed.append(blocks.sum(2, dtype=torch.int32)[:, None])
        order = blocks.int().argsort(dim=2, descending=True, stable=True)
        listed.append(order.int()[:, None])
    # Small and pageable, they are taken at once: the device is not waited for.
    first, prompt, *listed = (t.to(device, non_blocking=True) for t in (first, prompt, *listed))

    def sees(b: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        near = (key < prompt[b, query]) | (query - key < window)
        return (key <= query) & (key >= first[b, query]) & near

    made = BlockMask.from_kv_blocks(*listed, BLOCK_SIZE=BLOCK, mask_mod=sees, seq_lengths=(T, T))
    return WindowBlocks(made, int(some.sum()) * BLOCK**2)


@cache
def _kernel():
    from torch.nn.attention.flex_attention import flex_attention

    def attend(q: Tensor, k: Tensor, v: Tensor, block_mask: "BlockMask", enable_gqa: bool):
        # Not flex_attention itself: what is compiled of that counts wherever it is called, and of
        # the ninth form of a function torch writes no kernel any more.
        return flex_attention(q, k, v, block_mask=block_mask, enable_gqa=enable_gqa)

    return torch.compile(attend)  # written for the first T, and once more for any other


def attend_in_blocks(
    q: Tensor, k: Tensor, v: Tensor, blocks: WindowBlocks, enable_gqa: bool = False
) -> Tensor:
    """`attention` by the window; q [B, H, T, d], k and v the same or with fewer heads, each for a
    group of q's -> [B, H, T, d]."""
    return _kernel()(q, k, v, block_mask=blocks.mask, enable_gqa=enable_gqa)
