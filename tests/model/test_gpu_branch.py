"""What runs on a GPU alone gives what runs on a CPU: the same arithmetic in other passes."""

import pytest
import torch
from golden import CASES, GOLDEN, TOLERANCE, difference, expected, golden_batch
from gpu_branch import GpuBranch
from small_steps import build, ragged_batch, step
from torch.nn.attention.flex_attention import flex_attention

from deepsynth_min.model import experts, loss, norm, rotary
from deepsynth_min.model.deepseek_ocr import DeepseekOCR
from deepsynth_min.model.encoders import relative_attention
from deepsynth_min.tuning.lora import LoraPair


@pytest.fixture
def flex(monkeypatch):
    """flex_attention as it is, without a compiler."""
    monkeypatch.setattr(relative_attention, "_kernel", lambda *_: flex_attention)


def with_flex(model: DeepseekOCR) -> DeepseekOCR:
    for block in model.model.sam_model.blocks:
        block.attn.by_score = True
    return model


def close(ours, reference) -> None:
    """Losses and gradients of `step`; sums are added up in another order here and there."""
    assert ours[0] == pytest.approx(reference[0], rel=1e-5)
    assert ours[1].keys() == reference[1].keys()
    for name, gradient in reference[1].items():
        assert (ours[1][name] - gradient).norm() <= 2e-5 * gradient.norm() + 1e-8, name


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("tune", ("decoder", "lora", "all"))
@pytest.mark.parametrize("packed", (False, True))
def test_loss_and_gradients_of_a_step_are_those_of_a_cpu(flex, small_config, tune, packed):
    model, batch = build(small_config, tune), ragged_batch()
    for module in model.modules():
        if isinstance(module, LoraPair):
            module.dropout = 0.0  # with it an adapter takes the plain way
    batch = batch.packed() if packed else batch
    reference = step(model, batch)
    with GpuBranch():
        ours = step(with_flex(model), batch)
    close(ours, reference)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_a_gpu_gives_the_official_features_and_logits(flex, case):
    model, e = with_flex(DeepseekOCR.from_pretrained(GOLDEN).requires_grad_(False)), expected()
    batch = golden_batch(case)
    with GpuBranch():
        sam, clip = model._towers(batch.pages)
        logits = model(batch)
        total, count = model.loss(batch)
    assert difference(sam, e[f"{case}.sam_features"]) < TOLERANCE
    assert difference(clip, e[f"{case}.clip_features"]) < TOLERANCE
    assert difference(logits, e[f"{case}.logits"]) < TOLERANCE
    assert abs(float(total) / count - e[f"{case}.loss"]) < 1e-5


def test_the_weighted_swiglu_by_hand_is_its_formula():
    torch.manual_seed(0)
    gate_up, weight = torch.randn(9, 12, requires_grad=True), torch.rand(9, 1, requires_grad=True)
    upstream = torch.randn(9, 6)
    ours, plain = (
        (out, *torch.autograd.grad(out, (gate_up, weight), upstream))
        for out in (
            experts.WeightedSwiGLU.apply(gate_up, weight),
            experts.weighted_swiglu(gate_up, weight),
        )
    )
    for mine, theirs in zip(ours, plain):
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-5)
    half = gate_up.detach().bfloat16()
    by_hand = experts.WeightedSwiGLU.apply(half, weight)
    assert torch.equal(by_hand, experts.weighted_swiglu(half, weight))  # rounded where it was


def test_sums_by_token_are_those_of_a_cpu():
    torch.manual_seed(0)
    rows, order = torch.randn(12, 4), torch.randperm(12)
    torch.testing.assert_close(
        experts._sum_by_look_up(rows, order, 3), experts._sum_by_token(rows, order, 3)
    )


def test_the_losses_forms_agree_also_where_the_model_is_sure():
    torch.manual_seed(0)
    logits, target = torch.randn(6, 50) * 3, torch.randint(0, 50, (6, 1))
    logits[0, target[0]] += 30  # probability 1 but for rounding
    logits[1, target[1]] += 9  # near 1
    logits[2, target[2]] -= 60  # 1e-28
    for dtype, tolerance in ((torch.float32, 1e-6), (torch.bfloat16, 1e-2)):
        given = logits.to(dtype)
        ours = loss._few_passes(given.clone(), target, True)
        theirs = loss._little_memory(given.clone(), target, True)
        torch.testing.assert_close(ours[0], theirs[0], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(ours[1], theirs[1], rtol=tolerance, atol=1e-7)
        assert loss._few_passes(given.clone(), target, False)[1] is None


@pytest.mark.parametrize("dtype, tolerance", ((torch.float32, 1e-6), (torch.bfloat16, 2**-7)))
def test_norms_and_turns_by_a_gpus_passes_are_the_formulas(dtype, tolerance):
    torch.manual_seed(0)
    x, weight = torch.randn(2, 3, 5, 8, dtype=dtype), torch.randn(8, dtype=dtype)
    by_kernel = norm.rms_norm_by_kernel(x, weight, 1e-6)
    plain = norm.rms_norm(x.float(), weight.float(), 1e-6).to(dtype)
    torch.testing.assert_close(by_kernel, plain, atol=tolerance, rtol=tolerance)
    cos, sin = rotary.rotary_tables(torch.arange(5).expand(2, 5), 8, 10000.0)
    with GpuBranch():
        turned = rotary.rotate(x, cos, sin)
    plain = rotary.apply_rotary(x.float(), cos, sin).to(dtype)
    torch.testing.assert_close(turned, plain, atol=4 * tolerance, rtol=tolerance)
    assert turned.dtype == dtype
