"""A language model as an encoder: SAM's features and learned queries go in, queries come out.

In: SAM's features of pages [N, D, h, w]. Out: the queries' outputs, [N, h*w, D], one page token
each. There are as many learned queries as features: a page of another size has queries of its own.

The one idea: a decoder-only language model (Qwen2) reads the features as its prompt, the queries as
its answer. Features see each other both ways, like a prefix; query i sees all features and the
queries up to itself. So the order in which a page is read is learned, and need not be that of its
rows; where a query looked is not known, hence no row ends are put between page tokens.

Sources: Wei et al. 2026 (DeepSeek-OCR-2), Qwen team 2024 (Qwen2), Ainslie et al. 2023 (grouped
keys and values). Parameter names are those of the official checkpoint.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..decoder import MLP
from ..norm import RMSNorm
from ..rotary import rotary_tables, rotate
from ..shape.config import QwenConfig
from .sam_clip import Embedding


def prefix_mask(prefix: int, length: int) -> Tensor:
    """Which positions each position sees, bool [length, length]: those of the prefix, and all up to
    itself."""
    position = torch.arange(length)
    return (position < prefix) | (position <= position[:, None])


def prefix_attention(q: Tensor, k: Tensor, v: Tensor, prefix: int) -> Tensor:
    """The plain form: softmax(q k^T / sqrt(d)) v over what `prefix_mask` allows; q, k, v and the
    result [N, H, T, d]."""
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5  # [N, H, T, T]
    hidden = ~prefix_mask(prefix, q.shape[2]).to(q.device)
    return scores.masked_fill(hidden, float("-inf")).softmax(dim=-1) @ v


def _attend(q: Tensor, k: Tensor, v: Tensor, prefix: int) -> Tensor:
    """`prefix_attention` in two fused calls: the features need no mask, for they see no query, and
    the queries one of half the size."""
    T, fused = q.shape[2], F.scaled_dot_product_attention
    features = fused(*(part[:, :, :prefix] for part in (q, k, v)))
    seen = torch.ones(T - prefix, T, dtype=torch.bool, device=q.device).tril(prefix)
    return torch.cat([features, fused(q[:, :, prefix:], k, v, seen)], dim=2)


class QwenAttention(nn.Module):
    """Multi-head attention with rotary positions; each key/value head serves a group of queries."""

    def __init__(self, config: QwenConfig):
        super().__init__()
        width, self.head_dim = config.dim, config.dim // config.heads
        self.group = config.heads // config.key_value_heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, config.key_value_heads * self.head_dim)
        self.v_proj = nn.Linear(width, config.key_value_heads * self.head_dim)
        self.o_proj = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, prefix: int) -> Tensor:
        N, T, D = x.shape
        q, k, v = (
            project(x).view(N, T, -1, self.head_dim).transpose(1, 2)  # [N, H, T, d]
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        # Written out: with a mask, few fused kernels know groups.
        k, v = (part.repeat_interleave(self.group, dim=1) for part in (k, v))
        return self.o_proj(_attend(q, k, v, prefix).transpose(1, 2).reshape(N, T, D))


class QwenLayer(nn.Module):
    """Attention, then SwiGLU, each added to what it was given."""

    def __init__(self, config: QwenConfig):
        super().__init__()
        self.self_attn = QwenAttention(config)
        self.mlp = MLP(config.dim, config.mlp_dim)
        self.input_layernorm = RMSNorm(config.dim, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.dim, config.rms_norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, prefix: int) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, prefix)
        return x + self.mlp(self.post_attention_layernorm(x))


class QwenLayers(nn.Module):
    """Qwen2 without its embedding and its head."""

    def __init__(self, config: QwenConfig):
        super().__init__()
        self.layers = nn.ModuleList(QwenLayer(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.dim, config.rms_norm_eps)


def query_name(side: int) -> str:
    """What the queries of pages of `side` px are called."""
    return f"query_{side}"


class QueryEncoder(nn.Module):
    """SAM's features [N, D, h, w] -> the queries' outputs [N, h*w, D]."""

    def __init__(self, config: QwenConfig):
        super().__init__()
        self.config = config
        self.model = nn.ModuleDict({"model": QwenLayers(config)})  # the official names say it twice
        for side in config.page_sides:
            queries = Embedding((side // 64) ** 2, config.dim)
            self.add_module(query_name(side), queries)

    @property
    def layers(self) -> nn.ModuleList:
        return self.model["model"].layers

    def queries(self, height: int, width: int) -> Tensor:
        """The learned queries [h*w, D] for features [h, w]. Raises ValueError if there are none."""
        sides = self.config.page_sides
        if height != width or height * 64 not in sides:
            raise ValueError(
                f"pages of {width * 64} x {height * 64} px: there are queries for {sides}"
            )
        tables = [getattr(self, query_name(side)).weight for side in sides]
        # Cut from one table: those that no page of a batch uses get a gradient, of zeros.
        return torch.cat(tables).split([len(table) for table in tables])[sides.index(height * 64)]

    def forward(self, features: Tensor) -> Tensor:
        n, _, h, w = features.shape
        queries = self.queries(h, w).expand(n, -1, -1)
        features = features.flatten(2).transpose(1, 2).to(queries.dtype)
        x = torch.cat([features, queries], dim=1)  # [N, 2*h*w, D]
        config, positions = self.config, torch.arange(x.shape[1], device=x.device)[None]
        cos, sin = rotary_tables(positions, config.dim // config.heads, config.rope_theta)
        for layer in self.layers:
            x = layer(x, cos, sin, prefix=h * w)
        return self.model["model"].norm(x)[:, h * w :]  # [N, h*w, D]
