"""The decoder against slow, readable references."""

import os
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from deepsynth_min.model.attention import KVCache, attend, attention
from deepsynth_min.model.decoder import DecoderLayer, Layout, RMSNorm, Router, balance_term, decode
from deepsynth_min.model.experts import (
    Experts,
    mixture_of_experts,
    mixture_of_experts_cpu,
    mixture_of_experts_grouped,
)
from deepsynth_min.model.norm import rms_norm
from deepsynth_min.model.rotary import apply_rotary, rotary_tables, rotate
from deepsynth_min.model.shape.config import DecoderConfig

CONFIG = DecoderConfig(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    moe_intermediate_size=16,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    n_routed_experts=6,
    num_experts_per_tok=3,
    max_position_embeddings=64,
)

FORMS = (mixture_of_experts_grouped, mixture_of_experts_cpu)


def random_layers() -> tuple[torch.nn.ModuleList, RMSNorm]:
    torch.manual_seed(1)
    layers = torch.nn.ModuleList(DecoderLayer(CONFIG, i) for i in range(3))
    for parameter in layers.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return layers, RMSNorm(32, 1e-6)


@pytest.fixture
def two_threads():
    """Each on a core of its own where there are two: conftest keeps a test process to one."""
    kept = os.sched_getaffinity(0)
    os.sched_setaffinity(0, range(os.cpu_count()))
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)
    os.sched_setaffinity(0, kept)


def random_experts() -> Experts:
    torch.manual_seed(0)
    experts = Experts(CONFIG)
    for weight in experts.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    return experts


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("unused", [(), (0,), (2, 5)])
def test_experts_equal_the_loop_forward_and_backward(unused, form):
    experts = random_experts()
    x = torch.randn(20, 32, requires_grad=True)
    scores = torch.rand(20, 6)
    scores[:, list(unused)] = -1
    chosen, weight = scores.topk(3).indices, torch.rand(20, 3, requires_grad=True)
    inputs = [x, weight, experts.gate_up, experts.down]
    upstream = torch.randn(20, 32)
    mixed = form(experts, x, chosen, weight)
    looped = mixture_of_experts(experts, x, chosen, weight)
    assert torch.allclose(mixed, looped, atol=1e-5)
    for ours, reference in zip(
        torch.autograd.grad(mixed, inputs, upstream), torch.autograd.grad(looped, inputs, upstream)
    ):
        assert torch.allclose(ours, reference, atol=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_frozen_experts_pass_the_gradient_on(form):
    experts = random_experts().requires_grad_(False)
    x, chosen = torch.randn(20, 32, requires_grad=True), torch.rand(20, 6).topk(3).indices
    weight, upstream = torch.rand(20, 3, requires_grad=True), torch.randn(20, 32)
    ours, reference = (
        torch.autograd.grad(form(experts, x, chosen, weight), [x, weight], upstream)
        for form in (form, mixture_of_experts)
    )
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(ours, reference))


@pytest.mark.parametrize("form", FORMS)
def test_equal_steps_give_gradients_that_are_equal_to_the_bit(two_threads, form):
    # Large enough for several threads: only then did an indexed gradient differ from call to call.
    experts = Experts(replace(CONFIG, hidden_size=192, n_routed_experts=16))
    for parameter in experts.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    x, upstream = torch.randn(200, 192, requires_grad=True), torch.randn(200, 192)
    chosen, weight = torch.rand(200, 16).topk(4).indices, torch.rand(200, 4, requires_grad=True)
    inputs = [x, weight, *experts.parameters()]
    first, *others = (
        torch.autograd.grad(form(experts, x, chosen, weight), inputs, upstream) for _ in range(10)
    )
    for other in others:
        assert all(a.equal(b) for a, b in zip(first, other))


def test_an_expert_that_got_no_token_has_a_gradient_of_zeros():
    experts = random_experts()
    chosen = torch.tensor([[0, 1, 2]]).expand(10, 3)
    experts(torch.randn(10, 32), chosen, torch.rand(10, 3)).square().sum().backward()
    assert experts.gate_up.grad[3:].eq(0).all() and experts.gate_up.grad[:3].ne(0).any()


def test_grouped_experts_take_part_in_autocast():
    experts = random_experts()
    x, weight = torch.randn(20, 32), torch.rand(20, 3)
    chosen = torch.rand(20, 6).topk(3).indices
    full = experts(x, chosen, weight)
    with torch.autocast("cpu", torch.bfloat16):
        half = experts(x, chosen, weight)
    assert half.dtype == torch.float32 and not torch.equal(half, full)
    assert (half - full).norm() / full.norm() < 0.02


def test_the_router_honours_normalisation_and_scale():
    torch.manual_seed(0)
    x = torch.randn(4, 7, 32)
    plain = Router(CONFIG)
    torch.nn.init.normal_(plain.weight, std=0.1)
    config = DecoderConfig(
        **{**CONFIG.__dict__, "norm_topk_prob": True, "routed_scaling_factor": 2.5}
    )
    scaled = Router(config)
    scaled.load_state_dict(plain.state_dict())
    chosen, weight, scores = plain(x)
    assert torch.allclose(weight, scores.gather(-1, chosen)) and (weight.sum(-1) < 1).all()
    assert torch.allclose(scaled(x)[1], 2.5 * weight / weight.sum(-1, keepdim=True), atol=1e-6)


def test_rotary_attention_depends_on_distances_only():
    torch.manual_seed(0)
    q, k = torch.randn(1, 1, 5, 8), torch.randn(1, 1, 5, 8)

    def products(shift: int) -> torch.Tensor:
        cos, sin = rotary_tables(torch.arange(5)[None] + shift, 8, 10000.0)
        return rotate(q, cos, sin) @ rotate(k, cos, sin).transpose(-1, -2)

    assert torch.allclose(products(0), products(100), atol=1e-4)
    assert not torch.allclose(products(0), q @ k.transpose(-1, -2), atol=1e-2)


def same(ours, reference, inputs: list[torch.Tensor]) -> bool:
    """Whether two outputs and their gradients are equal but for rounding."""
    upstream = torch.randn_like(ours)
    gradients = [torch.autograd.grad(out, inputs, upstream) for out in (ours, reference)]
    pairs = zip((ours, *gradients[0]), (reference, *gradients[1]))
    return all(torch.allclose(a, b, atol=2e-5) for a, b in pairs)


def test_the_turn_written_by_hand_has_the_gradient_of_its_formula():
    x = torch.randn(2, 3, 5, 8, requires_grad=True)
    cos, sin = rotary_tables(torch.arange(5).expand(2, 5), 8, 10000.0)
    assert same(rotate(x, cos, sin), apply_rotary(x, cos, sin), [x])


def test_the_norm_written_by_hand_is_torchs():
    norm, x = RMSNorm(32, 1e-6), torch.randn(2, 5, 32, requires_grad=True)
    torch.nn.init.normal_(norm.weight)
    assert same(norm(x), F.rms_norm(x, (32,), norm.weight, 1e-6), [x, norm.weight])
    assert same(norm(x), rms_norm(x, norm.weight, 1e-6), [x, norm.weight])


@pytest.mark.parametrize("length", (255, 256, 301, 512, 513))
@pytest.mark.parametrize("shared_kv", (False, True))
def test_attention_in_halves_is_attention(length, shared_kv):
    fewer = 2 if shared_kv else 4
    q, k, v = (torch.randn(2, heads, length, 8, requires_grad=True) for heads in (4, fewer, fewer))
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    keys, values = (t.repeat_interleave(4 // t.shape[1], 1) for t in (k, v))
    plain = attention(q, keys, values, causal)
    assert same(attend(q, k, v, None, enable_gqa=shared_kv), plain, [q, k, v])


@pytest.mark.parametrize("pieces", [(12,), (5, 7), (5, 1, 1, 5), (1,) * 12])
@torch.no_grad()
def test_decoding_with_the_cache_equals_decoding_at_once(pieces):
    layers, norm = random_layers()
    x = torch.randn(2, 12, 32)
    whole, _ = decode(layers, norm, CONFIG, x)
    cache = KVCache(CONFIG, 2, 12, torch.float32, "cpu")
    parts = [decode(layers, norm, CONFIG, piece, cache=cache)[0] for piece in x.split(pieces, 1)]
    assert torch.allclose(torch.cat(parts, 1), whole, atol=1e-5)


@torch.no_grad()
def test_padding_changes_no_real_token():
    layers, norm = random_layers()
    x = torch.randn(1, 9, 32)
    alone, _ = decode(layers, norm, CONFIG, x)
    padding = torch.randn(1, 4, 32)
    valid = torch.ones(1, 9, dtype=torch.bool), torch.zeros(1, 4, dtype=torch.bool)
    right, _ = decode(layers, norm, CONFIG, torch.cat([x, padding], 1))
    left, _ = decode(
        layers, norm, CONFIG, torch.cat([padding, x], 1), Layout(torch.cat([valid[1], valid[0]], 1))
    )
    masked, _ = decode(
        layers, norm, CONFIG, torch.cat([x, padding], 1), Layout(torch.cat(valid, 1))
    )
    assert torch.allclose(right[:, :9], alone, atol=1e-5)
    assert torch.allclose(left[:, 4:], alone, atol=1e-5) and left.isfinite().all()
    assert torch.allclose(masked[:, :9], alone, atol=1e-5)


def test_the_balance_term_leaves_padding_out_and_is_one_for_even_use():
    torch.manual_seed(0)
    scores = torch.rand(2, 8, 6).softmax(-1)
    chosen = scores.topk(3).indices
    token_mask = torch.ones(2, 8, dtype=torch.bool)
    token_mask[1, 5:] = False
    apart = [
        balance_term(scores[i : i + 1, :n], chosen[i : i + 1, :n], token_mask[i : i + 1, :n])
        for i, n in ((0, 8), (1, 5))
    ]
    assert torch.allclose(balance_term(scores, chosen, token_mask), sum(apart))
    even = torch.arange(6).view(1, 2, 3)  # two tokens, each expert chosen once
    uniform = torch.full((1, 2, 6), 1 / 6)
    assert torch.allclose(balance_term(uniform, even, torch.ones(1, 2)), torch.ones(()))
