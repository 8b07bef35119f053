"""Attention of the decoder: what a token gathers from the tokens before it, and their cache.

In: hidden states [B, T, D] and rotary tables. Out: the same shape.

The one idea: a layer without a mask is one fused call for each sample, and a mask is spelled out
only where padding stands to the left. The cache holds the keys and values of what has been decoded.

Sources: Vaswani et al. 2017, Su et al. 2021 (rotary positions), Ainslie et al. 2023 (groups).
"""

import copy
from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import DecoderConfig
from .rotary import rotate


class KVCache:
    """Keys and values of every layer: [layers, 2, B, H, capacity, d]; doubled when it is full.

    `length` tokens are filled; the decoder appends at `length` and advances it after a forward.
    """

    def __init__(
        self,
        config: DecoderConfig,
        batch: int,
        capacity: int,
        dtype: torch.dtype | None,
        device: torch.device | str,
    ):
        heads, d = config.num_key_value_heads, config.head_dim
        size = (config.num_hidden_layers, 2, batch, heads, capacity, d)
        self.store = torch.zeros(size, dtype=dtype, device=device)
        self.length = 0

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        end = self.length + k.shape[2]
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


class Attention(nn.Module):
    """Multi-head attention with rotary positions; fewer key/value heads are shared in groups."""

    def __init__(self, config: DecoderConfig, layer: int):
        super().__init__()
        self.layer, self.head_dim = layer, config.head_dim
        width, kv_width = config.hidden_size, config.num_key_value_heads * config.head_dim
        self.shared_kv = config.num_key_value_heads != config.num_attention_heads
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, kv_width, bias=False)
        self.v_proj = nn.Linear(width, kv_width, bias=False)
        self.o_proj = nn.Linear(width, width, bias=False)

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        mask: Tensor | None = None,
        cache: KVCache | None = None,
        lengths: Sequence[int] = (),
    ) -> Tensor:
        B, T, D = x.shape
        q, k, v = (
            project(x).view(B, T, -1, self.head_dim).transpose(1, 2)  # [B, H, T, d]
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if cache is not None:
            k, v = cache.append(self.layer, k, v)
        # Packed samples: each attends to itself, in a call of its own, and no mask is needed.
        parts = [part.split(lengths, 2) if lengths else [part] for part in (q, k, v)]
        out = [attend(*own, mask, enable_gqa=self.shared_kv) for own in zip(*parts)]
        out = torch.cat(out, 2) if lengths else out[0]  # [B, H, T, d]
        return self.o_proj(out.transpose(1, 2).reshape(B, T, D))


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
