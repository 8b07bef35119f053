"""The optimizers beside fused AdamW: bf16 weights rounded at random, and 8-bit moments."""

import math
import warnings

import pytest
import torch
from adapter_runs import QUICK, write_base
from commands import words
from run_files import losses

from deepsynth_min import train
from deepsynth_min.data.tokenizer import EMBEDDED
from deepsynth_min.errors import UserError
from deepsynth_min.model import PRESETS
from deepsynth_min.model.deepseek_ocr import DeepseekOCR
from deepsynth_min.training import adamw
from deepsynth_min.training.adamw import BLOCK
from deepsynth_min.training.checkpoint import load, save, take_snapshot
from deepsynth_min.training.optim import (
    LossScaler,
    clip_and_step,
    make_adamw,
    prepare_state,
    total_norm,
)
from deepsynth_min.training.precision import set_parameter_types
from deepsynth_min.tuning import freeze

KINDS = ["adamw", "adamw8bit", "paged_adamw8bit"]
BETAS = (0.9, 0.95)


@pytest.fixture(autouse=True)
def quiet():
    """bitsandbytes warns that a CPU has nothing to page out to."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Paged optimizers are not supported on CPU")
        yield


def prepared(config, kind, weights="fp32"):
    torch.manual_seed(0)
    model = DeepseekOCR(config)
    freeze.freeze(model, "decoder")
    set_parameter_types(model, "bf16", weights)
    return model, make_adamw(model, BETAS, 0.01, kind=kind)


def step(model, optimizer, scaler, seed, bad=False):
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.grad = noise.to(parameter.dtype)
    if bad:
        model.lm_head.weight.grad[3, 3] = float("nan")
    clip_and_step(optimizer, scaler, 1e-3, 1.0)


def snapshot(model, optimizer):
    state = {
        (name, key): torch.as_tensor(value).clone()
        for name, p in model.named_parameters()
        for key, value in optimizer.state.get(p, {}).items()
    }
    return state | {name: p.detach().clone() for name, p in model.named_parameters()}


CASES = [(kind, weights) for kind in KINDS[:2] for weights in ("fp32", "bf16")]
CASES += [("paged_adamw8bit", "fp32")]


def test_bf16_weights_in_paged_moments_are_refused(capsys):
    given = "--precision bf16 --weights bf16 --optimizer paged_adamw8bit"
    for more in ("", "--dry-run"):
        assert train.main(words(f"{given} {more}")) == 2
        assert "with --weights bf16 use adamw8bit" in capsys.readouterr().err


@pytest.mark.parametrize("kind, weights", CASES)
def test_a_step_with_a_gradient_that_is_not_finite_changes_nothing(small_config, kind, weights):
    model, optimizer = prepared(small_config, kind, weights)
    scaler = LossScaler(False, "cpu")
    for bad_first in (True, False):
        step(model, optimizer, scaler, 0, bad=bad_first)
    before = snapshot(model, optimizer)
    step(model, optimizer, scaler, 1, bad=True)
    after = snapshot(model, optimizer)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert scaler.skipped.item() == 2


@pytest.mark.parametrize("kind, weights", CASES)
def test_a_resumed_optimizer_goes_on_exactly(small_config, kind, weights, tmp_path):
    model, optimizer = prepared(small_config, kind, weights)
    scaler = LossScaler(False, "cpu")
    for seed in range(2):
        step(model, optimizer, scaler, seed)
    facts = {"best": None, "best_metric": "loss", "stale": 0, "score": None, "unlogged": []}
    path = save(
        tmp_path, take_snapshot(model, optimizer, scaler, {"step": 2, **facts}), model, EMBEDDED
    )
    other, resumed = prepared(small_config, kind, weights)
    assert load(path, other, resumed, LossScaler(False, "cpu"), {})["step"] == 2
    for m, o in ((model, optimizer), (other, resumed)):
        step(m, o, scaler, 2)
    a, b = snapshot(model, optimizer), snapshot(other, resumed)
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.slow
def test_bf16_weights_reach_the_loss_of_float32_ones_on_the_embedded_task(small_config, tmp_path):
    base, reached = write_base(tmp_path / "base", small_config), {}
    for weights in ("fp32", "bf16"):
        options = words(
            "--model {} --precision bf16 --weights {} --out {} --batch-size 8 --max-steps 80 "
            "--val-samples 8 --eval-every 0 --save-every 0 --max-pages 1 --overflow truncate "
            "--data embedded",
            *(base, weights, tmp_path / weights),
        )
        assert train.main([*QUICK, *options]) == 0
        reached[weights] = losses(tmp_path / weights)
    assert reached["fp32"][-1] < reached["fp32"][0] - 2
    assert reached["bf16"][-1] < 1.02 * reached["fp32"][-1]


@pytest.mark.parametrize("kind", KINDS[1:])
def test_8_bit_moments_take_a_byte_each_and_move_like_32_bit_ones(small_config, kind):
    scaler, moved, size = LossScaler(False, "cpu"), {}, {}
    for which in ("adamw", kind):
        model, optimizer = prepared(small_config, which)
        start = model.lm_head.weight.detach().clone()
        for seed in range(4):
            step(model, optimizer, scaler, seed)
        moved[which] = model.lm_head.weight.detach() - start
        large = model.lm_head.weight
        size[which] = sum(
            v.nbytes
            for k, v in optimizer.state[large].items()
            if torch.is_tensor(v) and "qmap" not in k
        )
        numbers = large.numel()
    assert size["adamw"] == 8 * numbers + 4
    assert size[kind] == 2 * numbers + 2 * 4 * numbers / 256 + 4 * (kind == "adamw8bit")
    assert torch.cosine_similarity(*(m.flatten() for m in moved.values()), dim=0) > 0.98


def test_8_bit_moments_over_bf16_weights_move_them_as_float32_ones_on_average(small_config):
    """Gradients that push one way: each step is far below the distance of bf16 numbers."""
    moved = {}
    for weights in ("fp32", "bf16"):
        model, optimizer = prepared(small_config, "adamw8bit", weights)
        start = model.lm_head.weight.detach().float().clone()
        for _ in range(20):
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.grad = torch.ones_like(parameter)
            clip_and_step(optimizer, LossScaler(False, "cpu"), 1e-5, 0.0)
        moved[weights] = (model.lm_head.weight.detach().float() - start).mean()
    assert moved["fp32"] < -1e-4 and abs(moved["bf16"] / moved["fp32"] - 1) < 0.05


@pytest.mark.parametrize("weights", ["fp32", "bf16"])
def test_a_parameter_in_several_pieces_moves_as_in_one(small_config, monkeypatch, weights):
    found = []
    for piece in (2**24, 512):
        monkeypatch.setattr(adamw, "PIECE", piece)
        model, optimizer = prepared(small_config, "adamw8bit", weights)
        for seed in range(2):
            step(model, optimizer, LossScaler(False, "cpu"), seed)
        found.append(snapshot(model, optimizer))
    whole, pieces = found
    assert model.lm_head.weight.numel() > 1024
    assert all(torch.equal(whole[key], pieces[key]) for key in whole)


def test_full_tuning_takes_18_gib_of_weights_gradients_and_moments():
    """By arithmetic, at the official size: 24 GiB leave 6 for activations."""
    with torch.device("meta"):
        model = DeepseekOCR(PRESETS["deepseek-ocr"])
    freeze.freeze(model, "decoder")
    trains = sum(p.numel() for p in model.parameters() if p.requires_grad)
    whole = sum(p.numel() for p in model.parameters())
    moments = 2 * (1 + 4 / BLOCK)
    assert (2 * whole + (2 + moments) * trains) / 2**30 < 18


@pytest.mark.slow
@pytest.mark.skip(
    reason="a pair of runs differs by 7 % by chance; the mean of 27 is in bench/NOTES.md"
)
def test_8_bit_moments_over_bf16_weights_reach_the_loss_of_float32_ones(tmp_path):
    """tiny-reader on notices, which are new to it; held-out loss within 2 %."""
    reached = {}
    for name, how in (("fp32", "--weights fp32"), ("8bit", "--weights bf16 --optimizer adamw8bit")):
        options = words(
            f"--out {{}} --precision bf16 {how} --batch-size 8 --max-steps 150 --val-samples 64 "
            "--eval-every 0 --save-every 0 --answer-samples 0 --ablation-samples 0 --seed 3",
            tmp_path / name,
        )
        assert train.main(options) == 0
        reached[name] = losses(tmp_path / name)
    assert reached["fp32"][-1] < 0.2 * reached["fp32"][0]
    assert reached["8bit"][-1] < 1.02 * reached["fp32"][-1]


def test_bf16_weights_without_bf16_computing_are_refused(small_config):
    with pytest.raises(UserError, match="cannot compute in fp32"):
        set_parameter_types(DeepseekOCR(small_config), "fp32", "bf16")


def test_prepared_state_is_that_of_a_first_step_before_it(small_config):
    for kind in KINDS:
        model, optimizer = prepared(small_config, kind)
        reference, other = prepared(small_config, kind)
        prepare_state(optimizer)
        for m, o in ((model, optimizer), (reference, other)):
            step(m, o, LossScaler(False, "cpu"), 0)
        a, b = snapshot(model, optimizer), snapshot(reference, other)
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a), kind


def test_the_norm_of_bf16_gradients_is_not_rounded_to_bf16():
    torch.manual_seed(0)
    gradients = [torch.randn(size).to(torch.bfloat16) for size in ((300, 70), (41,), (5, 5, 5))]
    exact = math.sqrt(sum(g.double().square().sum().item() for g in gradients))
    assert total_norm(gradients).item() == pytest.approx(exact, rel=1e-5)  # bf16: 2e-3
