"""Rotary attention and a mixture of experts: text and visual embeddings become hidden states.

In: embeddings [B, T, D]. Out: hidden states [B, T, D], and the routers' balance term if asked for.

The one idea: a layer adds to what it was given, first what attention gathers from the tokens
before, then what the experts that a token chose (experts.py) make of it. The cache holds the keys
and values of what has been decoded, so that a new token costs a row and not the whole sequence.

Sources: DeepSeek-AI 2024 (DeepSeek-V2; here with plain multi-head attention, `use_mla` false),
Su et al. 2021 (rotary positions), Shazeer 2020 (SwiGLU).
Parameter names are those of the official checkpoint, but for the stacked experts.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .attention import Attention, KVCache, causal_mask, rows_at, window_mask
from .experts import Experts
from .norm import RMSNorm
from .rotary import rotary_tables
from .shape.config import DecoderConfig
from .window_blocks import WindowBlocks, window_blocks


class MLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    def __init__(self, width: int, inner: int):
        super().__init__()
        self.gate_proj = nn.Linear(width, inner, bias=False)
        self.up_proj = nn.Linear(width, inner, bias=False)
        self.down_proj = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Router(nn.Module):
    """Scores in float32, softmax, greedy top-k."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.k, self.normalise = config.num_experts_per_tok, config.norm_topk_prob
        self.scale = config.routed_scaling_factor
        self.weight = nn.Parameter(torch.empty(config.n_routed_experts, config.hidden_size))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [..., D] -> chosen experts [..., K], their weights [..., K], all scores [..., E]."""
        with torch.autocast(x.device.type, enabled=False):
            scores = F.linear(x.float(), self.weight.float()).softmax(dim=-1)  # [..., E]
        weight, chosen = scores.topk(self.k, dim=-1, sorted=False)
        if self.normalise:
            weight = weight / (weight.sum(-1, keepdim=True) + 1e-20)
        return chosen, weight * self.scale, scores


def balance_term(scores: Tensor, chosen: Tensor, token_mask: Tensor) -> Tensor:
    """sum over sequences of sum_e f_e * P_e: how unevenly one layer's experts are used.

    scores [B, T, E], chosen [B, T, K], token_mask [B, T] (True where a token takes part); of packed
    sequences, scores and chosen are [1, T, ...] and token_mask says whose each token is. f_e is the
    share of choices that went to expert e times E, P_e its mean probability. Balanced use gives 1
    per sequence. DeepSeekMoE (Dai et al. 2024), sequence-wise form.
    """
    B, T, E = scores.shape
    token_mask = token_mask.to(scores.dtype)
    tokens = token_mask.sum(1, keepdim=True)  # [B, 1]
    picks = F.one_hot(chosen, E).sum(2).to(scores.dtype) * token_mask[..., None]  # [B, T, E]
    share = picks.sum(1) * E / (tokens * chosen.shape[-1])  # [B, E]
    mean_score = (scores * token_mask[..., None]).sum(1) / tokens  # [B, E]
    return (share * mean_score).sum()


class MixtureOfExperts(nn.Module):
    """Routed experts plus shared experts, which every token visits."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.gate = Router(config)
        self.experts = Experts(config)
        shared = config.n_shared_experts * config.moe_intermediate_size
        self.shared_experts = MLP(config.hidden_size, shared) if shared else None

    def forward(self, x: Tensor, token_mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        B, T, D = x.shape
        chosen, weight, scores = self.gate(x)
        balance = None if token_mask is None else balance_term(scores, chosen, token_mask)
        y = self.experts(x.view(B * T, D), chosen.view(B * T, -1), weight.view(B * T, -1))
        y = y.view(B, T, D)
        return (y if self.shared_experts is None else y + self.shared_experts(x)), balance


@dataclass(frozen=True)
class Layout:
    """Where the tokens of x [B, T, D] stand, and what is asked of them.

    valid         [B, S] bool, True for real tokens, those already in the cache included; None: all
                  are real, or padding stands to the right, where causality alone hides it
    lengths       of packed samples, in x [1, T, D] one after another; empty: a sample in each row
    prompts       tokens of each sample that a reference sliding window leaves in sight of all later
                  ones; empty: all of x is prompt, or goes on with what the cache knows of it
    token_mask    [B, T] bool: asks for the balance term over these tokens
    output_index  flat positions [L] in [B*T] whose hidden states alone are asked for, [1, L, D]: no
                  other needs the last layer's output projection and MLP (not with token_mask, which
                  looks at all)
    """

    valid: Tensor | None = None
    lengths: Sequence[int] = ()
    prompts: Sequence[int] = ()
    token_mask: Tensor | None = None
    output_index: Tensor | None = None

    def __post_init__(self):
        assert self.output_index is None or self.token_mask is None


class DecoderLayer(nn.Module):
    """Attention, then an MLP or a mixture of experts, each added to what it was given."""

    def __init__(self, config: DecoderConfig, layer: int):
        super().__init__()
        self.is_last = layer == config.num_hidden_layers - 1
        self.self_attn = Attention(config, layer)
        if config.is_dense(layer):
            self.mlp = MLP(config.hidden_size, config.intermediate_size)
        else:
            self.mlp = MixtureOfExperts(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        mask: Tensor | WindowBlocks | None,
        cache: KVCache | None,
        layout: Layout,
    ) -> tuple[Tensor, Tensor | None]:
        """x [B, T, D] -> the same (of the last layer what the layout asks for), balance term."""
        wanted = layout.output_index if self.is_last else None
        where = (mask, cache, layout.lengths, layout.prompts, wanted)
        given = x if wanted is None else rows_at(x, wanted)
        x = given + self.self_attn(self.input_layernorm(x), cos, sin, *where)
        y = self.post_attention_layernorm(x)
        if isinstance(self.mlp, MixtureOfExperts):
            y, balance = self.mlp(y, layout.token_mask)
        else:
            y, balance = self.mlp(y), None
        return x + y, balance


def decode(
    layers: nn.ModuleList,
    norm: nn.Module,
    config: DecoderConfig,
    x: Tensor,
    layout: Layout = Layout(),
    cache: KVCache | None = None,
    recompute: int = 0,
    in_blocks: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Embeddings x [B, T, D] -> (hidden states, [B, T, D] or as the layout asks; balance term).

    The activations of the first `recompute` layers are not kept but computed again in the backward
    pass: the first, since theirs would wait the longest. in_blocks: a window is one kernel's work
    (window_blocks.py).
    """
    B, T, _ = x.shape
    past = cache.length if cache is not None else 0
    lengths, valid = layout.lengths, layout.valid
    if lengths:
        assert (B, T) == (1, sum(lengths)) and valid is None and cache is None
        positions = torch.cat([torch.arange(n, device=x.device) for n in lengths])[None]
    elif valid is None:
        positions = torch.arange(past, past + T, device=x.device).expand(B, T)
    else:
        first = valid.int().argmax(1, keepdim=True)  # [B, 1] padding on the left has no position
        positions = (torch.arange(past, past + T, device=x.device) - first).clamp(min=0)
    # One query sees all keys; a longer piece after a filled cache needs the mask spelled out.
    if valid is None and past:
        valid = torch.ones(B, cache.places(past + T), dtype=torch.bool, device=x.device)
    mask = None if valid is None else causal_mask(valid.bool(), T)
    # An answer that the window covers is causal like any other.
    window, spans = config.sliding_window, lengths or [T] * len(layout.prompts)
    if not window or all(n - prompt <= window for n, prompt in zip(spans, layout.prompts)):
        layout = replace(layout, prompts=())
    elif mask is not None:  # spelled out already: for looking at, not for training
        mask = mask & window_mask(torch.tensor(layout.prompts, device=x.device), T, window)
        layout = replace(layout, prompts=())
    elif in_blocks:
        mask = window_blocks(lengths, layout.prompts, T, window, x.device)
        layout = replace(layout, lengths=(), prompts=())
    cos, sin = rotary_tables(positions, config.head_dim, config.rope_theta)
    balance = None
    for number, layer in enumerate(layers):
        inputs = (x, cos, sin, mask, cache, layout)
        if number < recompute and torch.is_grad_enabled():
            x, term = checkpoint(layer, *inputs, use_reentrant=False)  # dropout repeats itself
        else:
            x, term = layer(*inputs)
        if term is not None:
            balance = term if balance is None else balance + term
    if cache is not None:
        cache.length += T
    return norm(x), balance
