"""Attention of the decoder: what a token gathers from the tokens before it, and their cache.

In: hidden states [B, T, D] and rotary tables. Out: the same shape.

The one idea: a layer without a mask is one fused call for each sample, and a mask is spelled out
only where padding stands to the left. The cache holds the keys and values of what has been decoded.

With a reference sliding window (`sliding_window`), a token of the answer sees the whole prompt and
of the answer the last tokens alone, itself included. Neither training nor generation then costs
more for each token of a long answer than for one of a short one. A GPU has one kernel for it
(window_blocks.py).

Sources: Vaswani et al. 2017, Su et al. 2021 (rotary positions), Ainslie et al. 2023 (groups),
arXiv 2606.23050 (the reference sliding window of Unlimited-OCR).
"""

import copy
from collections.abc import Sequence
from functools import partial
from itertools import repeat

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .rotary import rotate
from .shape.config import DecoderConfig
from .window_blocks import WindowBlocks, attend_in_blocks

CHUNK = 512  # tokens of an answer that attend in one call, at least, where there is a window


class KVCache:
    """Keys and values of every layer: [layers, 2, B, H, capacity, d]; doubled when it is full.

    `length` tokens have been decoded; the decoder appends and advances it after a forward. With a
    window, the prompt stays and the answer's last tokens stand behind it in a ring: token t of the
    answer at place t % window.
    """

    def __init__(
        self,
        config: DecoderConfig,
        batch: int,
        capacity: int,
        dtype: torch.dtype | None,
        device: torch.device | str,
        prompt: int = 0,
    ):
        """capacity: tokens that there is memory for at first; with a window there is for all.
        prompt: tokens, padding included, that a window leaves in sight."""
        heads, d = config.num_key_value_heads, config.head_dim
        self.prompt, self.window = prompt, config.sliding_window
        places = prompt + self.window if self.window else capacity
        size = (config.num_hidden_layers, 2, batch, heads, places, d)
        self.store = torch.zeros(size, dtype=dtype, device=device)
        self.length = 0

    def places(self, tokens: int) -> int:
        """Places that so many tokens take."""
        return min(tokens, self.prompt + self.window) if self.window else tokens

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """A piece's keys and values [B, H, T, d] -> those of all that it may see. With a window,
        the prompt's piece ends where it ends, and then tokens come one by one."""
        if self.window and self.length >= self.prompt:
            assert k.shape[2] == 1, "an answer is decoded token by token"
            place = self.prompt + (self.length - self.prompt) % self.window
            self.store[layer, 0, :, :, place] = k[:, :, 0]
            self.store[layer, 1, :, :, place] = v[:, :, 0]
            end = self.places(self.length + 1)
            return self.store[layer, 0, :, :, :end], self.store[layer, 1, :, :, :end]
        end = self.length + k.shape[2]
        assert not self.window or end <= self.prompt
        if end > self.store.shape[4]:
            more = max(end - self.store.shape[4], self.store.shape[4])
            shape = (*self.store.shape[:4], more, self.store.shape[5])
            self.store = torch.cat([self.store, self.store.new_zeros(shape)], dim=4)
        self.store[layer, 0, :, :, self.length : end] = k
        self.store[layer, 1, :, :, self.length : end] = v
        return self.store[layer, 0, :, :, :end], self.store[layer, 1, :, :, :end]

    def rows(self, chosen: slice) -> "KVCache":
        """A cache of some rows, in the same memory."""
        part = copy.copy(self)
        part.store = self.store[:, :, chosen]
        return part

    def reorder(self, rows: Tensor) -> None:
        """Row b becomes what row rows[b] was; layer by layer, so that one is copied at a time."""
        for layer in self.store[..., : self.length, :]:
            layer.copy_(layer[:, rows])


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """The plain form: softmax(q k^T / sqrt(d)) v over the keys that mask [.., T, S] lets see.

    q [B, H, T, d]; k, v [B, H, S, d] -> [B, H, T, d].
    """
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5  # [B, H, T, S]
    return scores.masked_fill(~mask, -torch.inf).softmax(dim=-1) @ v


def attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, enable_gqa: bool = False
) -> Tensor:
    """`attention` by torch's fused kernel, causal or by mask; q, k, v [B, H, T, d] -> [B, H, T, d].

    enable_gqa: k and v have fewer heads, each for a group of q's.
    """
    T = q.shape[2]
    fused = partial(F.scaled_dot_product_attention, enable_gqa=enable_gqa)
    # A CPU's kernel takes 512 keys at a time, and computes those that causality hides as well: of
    # a shorter sequence the first half's queries are better shown the first half's keys alone.
    if mask is None and q.device.type == "cpu" and 256 <= T <= 512:
        half = T // 2
        seen = torch.ones(T - half, T, dtype=torch.bool).tril(half)
        first = fused(*(part[:, :, :half] for part in (q, k, v)), is_causal=True)
        return torch.cat([first, fused(q[:, :, half:], k, v, seen)], 2)
    return fused(q, k, v, mask, is_causal=mask is None)


def window_mask(prompts: Tensor, T: int, window: int) -> Tensor:
    """The plain form of the window: which of T keys each of T queries sees, bool [B, 1, T, T].

    prompts [B]: tokens of each sample that all later ones see.
    """
    position = torch.arange(T, device=prompts.device)
    query, key = position[:, None], position[None]
    of_prompt = key < prompts[:, None, None, None]  # [B, 1, 1, T]
    return (key <= query) & (of_prompt | (query - key < window))


def attend_window(
    q: Tensor, k: Tensor, v: Tensor, prompt: int, window: int, enable_gqa: bool = False
) -> Tensor:
    """`attention` by `window_mask` of one sample, [1, H, T, d], in calls of `attend`.

    The prompt, and as much of the answer as the window covers, is causal. After that a chunk of the
    answer attends to the prompt and to what the windows of its tokens reach, side by side: of both
    there is as much for each chunk, so that cost and memory grow with T and not with its square.
    """
    T, head = q.shape[2], prompt + window
    out = [attend(*(part[:, :, :head] for part in (q, k, v)), None, enable_gqa)]
    size = max(CHUNK, window)
    for start in range(head, T, size):
        end, first = min(start + size, T), start - window + 1
        keys, values = (
            torch.cat([part[:, :, :prompt], part[:, :, first:end]], 2) for part in (k, v)
        )
        distance = (
            torch.arange(start, end, device=q.device)[:, None]
            - torch.arange(first, end, device=q.device)[None]
        )
        near = (distance >= 0) & (distance < window)  # [end - start, end - first]
        mask = F.pad(near, (prompt, 0), value=True)
        out.append(attend(q[:, :, start:end], keys, values, mask, enable_gqa))
    return torch.cat(out, 2)


class Attention(nn.Module):
    """Multi-head attention with rotary positions; fewer key/value heads are shared in groups."""

    def __init__(self, config: DecoderConfig, layer: int):
        super().__init__()
        self.layer, self.head_dim = layer, config.head_dim
        width, kv_width = config.hidden_size, config.num_key_value_heads * config.head_dim
        self.shared_kv = config.num_key_value_heads != config.num_attention_heads
        self.window = config.sliding_window
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, kv_width, bias=False)
        self.v_proj = nn.Linear(width, kv_width, bias=False)
        self.o_proj = nn.Linear(width, width, bias=False)

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        mask: Tensor | WindowBlocks | None = None,
        cache: KVCache | None = None,
        lengths: Sequence[int] = (),
        prompts: Sequence[int] = (),
        output_index: Tensor | None = None,
    ) -> Tensor:
        """x [B, T, D] -> the same; of the positions of output_index alone, [1, L, D].

        lengths, prompts, output_index: as in decoder.Layout.
        """
        B, T, D = x.shape
        q, k, v = (
            project(x).view(B, T, -1, self.head_dim).transpose(1, 2)  # [B, H, T, d]
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if cache is not None:
            k, v = cache.append(self.layer, k, v)
        if isinstance(mask, WindowBlocks):
            out = attend_in_blocks(q, k, v, mask, self.shared_kv)
        elif lengths or prompts:
            out = self._by_sample(q, k, v, lengths, prompts)
        else:
            out = attend(q, k, v, mask, self.shared_kv)  # [B, H, T, d]
        out = out.transpose(1, 2).reshape(B, T, D)
        return self.o_proj(out if output_index is None else rows_at(out, output_index))

    def _by_sample(
        self, q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int], prompts: Sequence[int]
    ) -> Tensor:
        """Each sample attends to itself, in a call of its own, and no mask is needed."""
        axis = 2 if lengths else 0  # packed one after another, or a sample in each row
        parts = zip(*(part.split(lengths or 1, axis) for part in (q, k, v)))
        out = [
            attend_window(*own, prompt, self.window, self.shared_kv)
            if prompt is not None and own[0].shape[2] > prompt + self.window
            else attend(*own, None, self.shared_kv)
            for own, prompt in zip(parts, prompts or repeat(None))
        ]
        return torch.cat(out, axis)


def rows_at(x: Tensor, index: Tensor) -> Tensor:
    """x [B, T, D] at flat positions index [L] in B*T: [1, L, D]."""
    return x.flatten(0, 1).index_select(0, index)[None]


def causal_mask(valid: Tensor, length: int) -> Tensor:
    """Keys that each of the last `length` queries may see: valid [B, S] -> bool [B, 1, length, S].

    Padding to the left of the first real token sees only itself: meaningless, but finite.
    """
    S = valid.shape[1]
    position = torch.arange(S, device=valid.device)
    query = position[S - length :, None]
    seen = (position <= query) & valid[:, None, None, :]  # [B, 1, length, S]
    before_first = valid.long().cumsum(1)[:, None, S - length :, None] == 0  # [B, 1, length, 1]
    return seen | ((position == query) & before_first)
