"""AdamW step, schedule, clipping and loss scaler against plain formulas."""

import math

import pytest
import torch
from torch import nn

from deepsynth_min.errors import UserError
from deepsynth_min.model.deepseek_ocr import DeepseekOCR, place_of
from deepsynth_min.settings import OptimSettings
from deepsynth_min.training import optim
from deepsynth_min.training.optim import (
    LossScaler,
    clip_and_step,
    cosine_rate,
    make_adamw,
    own_rates,
)
from deepsynth_min.tuning import freeze
from deepsynth_min.tuning.lora import LoraConfig, attach
from deepsynth_min.tuning.targets import choose


def test_the_schedule_rises_linearly_and_falls_along_a_half_cosine():
    rates = [cosine_rate(s, 100, 2.0, 0.1, 0.25) for s in range(100)]
    assert rates[:10] == pytest.approx([0.2 * (s + 1) for s in range(10)])
    assert rates[10] == 2.0 and rates[99] == pytest.approx(0.5)
    middle = 2.0 * (0.25 + 0.75 * 0.5 * (1 + math.cos(math.pi * 44 / 89)))
    assert rates[54] == pytest.approx(middle)
    assert all(a >= b for a, b in zip(rates[10:], rates[11:]))


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_the_schedule_is_positive_in_the_shortest_runs(steps):
    assert all(0 < cosine_rate(s, steps, 1.0, 0.5, 0.1) <= 1.0 for s in range(steps))


def reference_step(weight, gradient, m, v, step, rate, betas, decay):
    """AdamW as in the paper, in float64."""
    m = betas[0] * m + (1 - betas[0]) * gradient
    v = betas[1] * v + (1 - betas[1]) * gradient**2
    update = (m / (1 - betas[0] ** step)) / ((v / (1 - betas[1] ** step)).sqrt() + 1e-8)
    return weight * (1 - rate * decay) - rate * update, m, v


@pytest.mark.parametrize("clip", [0.0, 0.5])
@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_a_step_equals_the_papers_formula_with_clipping_and_scaling(clip, scale):
    torch.manual_seed(0)
    layer = nn.Linear(5, 4, bias=False)
    optimizer = torch.optim.AdamW(
        layer.parameters(), lr=0, betas=(0.9, 0.95), weight_decay=0.1, fused=True
    )
    scaler = LossScaler(scale != 1, "cpu", initial=scale)
    weight = layer.weight.detach().double()
    m = v = torch.zeros_like(weight)
    for step in range(1, 5):
        gradient = torch.randn(4, 5)
        layer.weight.grad = gradient * scale
        norm = clip_and_step(optimizer, scaler, rate=0.01, clip=clip)
        assert norm.item() == pytest.approx(gradient.norm().item(), rel=1e-5)
        used = gradient.double()
        if clip:
            used = used * min(1.0, clip / (gradient.norm().item() + 1e-6))
        weight, m, v = reference_step(weight, used, m, v, step, 0.01, (0.9, 0.95), 0.1)
        assert torch.allclose(layer.weight.detach().double(), weight, atol=1e-6)


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
@pytest.mark.parametrize("enabled", [True, False])
def test_a_step_with_a_gradient_that_is_not_finite_changes_nothing(bad, enabled):
    torch.manual_seed(0)
    layer = nn.Linear(5, 4, bias=False)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0, fused=True)
    scaler = LossScaler(enabled, "cpu", initial=8.0)
    layer.weight.grad = torch.randn(4, 5)
    clip_and_step(optimizer, scaler, 0.1, 1.0)
    state = {k: v.clone() for k, v in optimizer.state[layer.weight].items()}
    before = layer.weight.detach().clone()
    layer.weight.grad = torch.randn(4, 5)
    layer.weight.grad[2, 3] = bad
    clip_and_step(optimizer, scaler, 0.1, 1.0)
    assert torch.equal(layer.weight, before)
    assert all(torch.equal(v, state[k]) for k, v in optimizer.state[layer.weight].items())
    assert scaler.skipped.item() == 1
    assert scaler.scale.item() == (4.0 if enabled else 1.0)


def test_the_loss_scale_doubles_after_the_interval_and_starts_counting_anew_on_overflow():
    scaler, no, yes = LossScaler(True, "cpu", 8.0, interval=3), torch.tensor(0.0), torch.tensor(1.0)
    scales = []
    for overflow in (no, no, yes, no, no, no, no):
        scaler.update(overflow)
        scales.append(scaler.scale.item())
    assert scales == [8, 8, 4, 4, 4, 8, 8]


def test_parts_with_rates_of_their_own_move_as_by_an_optimizer_of_their_own(small_config):
    """The same schedule, clipping and decay; what has no rate of its own moves at --lr."""
    torch.manual_seed(0)
    model, plain = DeepseekOCR(small_config), DeepseekOCR(small_config)
    plain.load_state_dict(model.state_dict())
    for each in (model, plain):
        freeze.freeze(each, "all-but-sam")
    optim = OptimSettings(lr=1e-2, lr_projector=3e-2, lr_encoder=1e-3)
    ours = make_adamw(model, (0.9, 0.95), 0.1, rates=own_rates(model, optim))
    peaks = {"projector": 3e-2, "CLIP": 1e-3}
    held = {n: p for n, p in plain.named_parameters() if p.requires_grad}
    apart = {part: make_adamw(plain, (0.9, 0.95), 0.1) for part in {*map(place_of, held)}}
    for part, optimizer in apart.items():
        own = {id(p) for n, p in held.items() if place_of(n) == part}
        for group in optimizer.param_groups:
            group["params"] = [p for p in group["params"] if id(p) in own]
    for step in range(3):
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.grad = torch.randn_like(parameter)
                held[name].grad = parameter.grad.clone()
        clip_and_step(ours, LossScaler(False, "cpu"), cosine_rate(step, 3, 1e-2, 0.4, 0.2), 0)
        for part, optimizer in apart.items():
            rate = cosine_rate(step, 3, peaks.get(part, 1e-2), 0.4, 0.2)
            clip_and_step(optimizer, LossScaler(False, "cpu"), rate, 0)
    for name, parameter in held.items():
        assert torch.allclose(model.get_parameter(name), parameter, atol=1e-7, rtol=1e-6), name


def test_a_rate_of_a_part_multiplies_with_lora_plus(small_config):
    model = DeepseekOCR(small_config)
    attach(model, LoraConfig(2, 4.0), choose(model, ("attention", "encoder-but-sam")))
    freeze.freeze(model, "projector+lora")
    rates = own_rates(model, OptimSettings(lr=1e-2, lr_encoder=1e-3, lr_projector=4e-2))
    optimizer = make_adamw(model, (0.9, 0.95), 0.1, 8.0, rates=rates)
    names = {id(p): name for name, p in model.named_parameters()}
    factors = {names[id(p)]: g["rate_factor"] for g in optimizer.param_groups for p in g["params"]}
    encoder = "model.vision_model.transformer.layers.0.mlp.fc1.lora"
    assert factors[f"{encoder}.A"] == pytest.approx(0.1)
    assert factors[f"{encoder}.B"] == pytest.approx(0.8)
    assert factors["model.layers.0.self_attn.q_proj.lora.A"] == 1.0
    assert factors["model.layers.0.self_attn.q_proj.lora.B"] == 8.0
    assert factors["model.projector.layers.weight"] == factors["model.view_seperator"] == 4.0


def test_a_rate_of_what_does_not_train_is_refused(small_config):
    model = DeepseekOCR(small_config)
    freeze.freeze(model, "projector+decoder")
    assert own_rates(model, OptimSettings(lr=1.0)) == {}
    assert own_rates(model, OptimSettings(lr=1.0, lr_projector=0.5)) == {"projector": 0.5}
    with pytest.raises(UserError, match="--lr-encoder 0.1: none of its parameters trains"):
        own_rates(model, OptimSettings(lr=1.0, lr_encoder=0.1))


def test_decay_falls_on_matrices_only(small_config):
    model = DeepseekOCR(small_config)
    optimizer = make_adamw(model, (0.9, 0.95), 0.3)
    names = {id(p): name for name, p in model.named_parameters()}
    decay = {names[id(p)]: g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert decay["model.layers.1.mlp.experts.gate_up"] == 0.3
    assert decay["lm_head.weight"] == decay["model.sam_model.net_2.weight"] == 0.3
    for name in (
        "model.embed_tokens.weight",
        "model.norm.weight",
        "model.image_newline",
        "model.sam_model.pos_embed",
        "model.projector.layers.bias",
        "model.sam_model.blocks.0.attn.rel_pos_h",
    ):
        assert decay[name] == 0.0


@pytest.mark.parametrize("clip", (0.0, 0.5))
def test_scaling_in_the_optimizers_kernel_is_scaling_before_it(monkeypatch, clip):
    """As on a GPU; the kernel for a CPU does it alike."""

    def moved() -> list[torch.Tensor]:
        torch.manual_seed(0)
        model = nn.ModuleDict({"a": nn.Linear(4, 3), "b": nn.Linear(3, 2)})
        optimizer, scaler = (
            make_adamw(model, (0.9, 0.95), 0.1),
            LossScaler(True, torch.device("cpu"), 8.0),
        )
        norms = []
        for bad in (False, True, False):
            for parameter in model.parameters():
                parameter.grad = torch.randn_like(parameter) * 8
            if bad:
                model["a"].weight.grad[0, 0] = torch.inf
            norms.append(clip_and_step(optimizer, scaler, 1e-2, clip))
        return [*model.state_dict().values(), norms[0], norms[2]]

    before = moved()
    monkeypatch.setattr(optim, "_scales_in_kernel", lambda *_: True)
    for ours, reference in zip(moved(), before):
        torch.testing.assert_close(ours, reference, rtol=1e-6, atol=1e-7)
