"""The optimizers beside fused AdamW: bf16 weights rounded at random, and 8-bit moments."""

import math
import warnings

import pytest
import torch
from adapter_runs import QUICK, write_base
from commands import words
from run_files import losses
from torch import nn

from deepsynth_min import train
from deepsynth_min.data.tokenizer import EMBEDDED
from deepsynth_min.errors import UserError
from deepsynth_min.model import PRESETS
from deepsynth_min.model.deepseek_ocr import DeepseekOCR
from deepsynth_min.training import adamw
from deepsynth_min.training.adamw import BLOCK, LowBitAdamW
from deepsynth_min.training.checkpoint import load, save, take_snapshot
from deepsynth_min.training.optim import (
    LossScaler,
    clip_and_step,
    make_adamw,
    prepare_state,
    total_norm,
)
from deepsynth_min.training.precision import set_parameter_types
from deepsynth_min.training.rounding import random_bits, round_at_random
from deepsynth_min.tuning import freeze

KINDS = ["adamw", "adamw8bit", "paged_adamw8bit"]
BETAS = (0.9, 0.95)


@pytest.fixture(autouse=True)
def quiet():
    """bitsandbytes warns that a CPU has nothing to page out to."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Paged optimizers are not supported on CPU")
        yield


def low_bit(parameters, seed=0, decay=0.0, in_8_bits=False, betas=BETAS) -> LowBitAdamW:
    groups = [{"params": parameters, "weight_decay": decay}]
    return LowBitAdamW(groups, 1e-3, betas, 1e-8, seed, in_8_bits)


def test_rounding_at_random_keeps_the_mean_and_never_leaves_the_neighbours():
    torch.manual_seed(0)
    values = torch.randn(200) * torch.logspace(-6, 6, 200)
    bits = [random_bits(torch.tensor(key), 0, 200) for key in range(4000)]
    drawn = torch.stack([round_at_random(values, some).double() for some in bits])
    gap = values.abs().double() * 2.0**-7  # at most this far apart are bf16 numbers
    assert ((drawn.mean(0) - values).abs() < 0.05 * gap).all()
    assert ((drawn - values).abs() < gap).all()
    assert all(len(column.unique()) <= 2 for column in drawn.t())


def test_rounding_leaves_bf16_numbers_as_they_are():
    values = torch.randn(1000).bfloat16()
    bits = random_bits(torch.tensor(7), 0, 1000)
    assert torch.equal(round_at_random(values.float(), bits), values)


def test_random_bits_are_even_and_do_not_know_their_neighbours():
    """Each bit is set half the time; between numbers, keys and bits no correlation: of 2^16 draws
    five standard deviations are 0.02."""
    rows = [random_bits(torch.tensor(key), 0, 2**16) for key in (0, 1, 2**31)]
    bits = torch.stack([(row[:, None] >> torch.arange(32)) & 1 for row in rows]).double()
    assert ((bits.mean(1) - 0.5).abs() < 0.01).all()
    signs = 2 * bits - 1
    for other in (signs.roll(1, 1), signs.roll(1, 0), signs.roll(1, 2), signs.roll(16, 2)):
        assert ((signs * other).mean(1).abs() < 0.02).all()
    whole = random_bits(torch.tensor(5), 0, 1000)
    assert torch.equal(random_bits(torch.tensor(5), 300, 200), whole[300:500])  # a shard's


def test_bf16_weights_follow_float32_adamw_where_nearest_rounding_stands_still():
    torch.manual_seed(0)
    start = torch.randn(4000).bfloat16() + 4.0
    gradients = [torch.randn(4000) + 0.5 for _ in range(60)]
    mine, exact = nn.Parameter(start.clone()), nn.Parameter(start.float())
    rounding = low_bit([mine], decay=0.1)
    reference = torch.optim.AdamW([exact], 1e-3, BETAS, 1e-8, weight_decay=0.1)
    for gradient in gradients:
        mine.grad, exact.grad = gradient.bfloat16(), gradient.bfloat16().float()
        rounding.step()
        reference.step()
    moved = (exact.detach() - start.float()).mean()
    ours = (mine.detach().float() - start.float()).mean()
    assert abs(ours / moved - 1) < 0.05  # each step is far below the 1/64 between numbers near 4
    assert moved < -0.01 and mine.dtype == torch.bfloat16
    assert torch.allclose(rounding.state[mine]["exp_avg"], reference.state[exact]["exp_avg"])


def test_the_same_seed_rounds_the_same_way():
    def weights(seed):
        torch.manual_seed(1)
        parameter = nn.Parameter(torch.randn(500).bfloat16())
        optimizer = low_bit([parameter], seed)
        for _ in range(3):
            parameter.grad = torch.randn(500).bfloat16()
            optimizer.step()
        return parameter.detach()

    assert torch.equal(weights(0), weights(0)) and not torch.equal(weights(0), weights(1))


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


def test_8_bit_moments_lie_near_float32_ones_and_never_vanish():
    """Each within half a level's distance, second ones within a whole one; over nine decades."""
    torch.manual_seed(0)
    first = torch.randn(64 * BLOCK) * torch.logspace(-9, 0, 64 * BLOCK)
    second = first.square()
    levels, scale = adamw.first_to_8_bits(first)
    share = (first.view(-1, BLOCK).abs() / scale[:, None]).sqrt().view(-1)
    found = adamw.first_from_8_bits(levels, scale)
    root = (found.view(-1, BLOCK).abs() / scale[:, None]).sqrt().view(-1)
    assert (root - share).abs().max() < 0.501 / 127 and (found * first >= 0).all()
    noise = torch.rand(len(second))
    levels, scale = adamw.second_to_8_bits(second, noise)
    found = adamw.second_from_8_bits(levels, scale)
    root, share = (
        (x.view(-1, BLOCK) / scale[:, None]).sqrt().sqrt().view(-1) for x in (found, second)
    )
    assert (root - share).abs().max() < 1.001 / 255 and (found[second > 0] > 0).all()
    nothing = torch.zeros(BLOCK)
    assert not adamw.first_from_8_bits(*adamw.first_to_8_bits(nothing)).any()
    assert not adamw.second_from_8_bits(*adamw.second_to_8_bits(nothing, noise[:BLOCK])).any()


def test_second_moments_in_8_bits_fall_as_slowly_as_they_should():
    """A thousandth a step is far less than a level: rounded to the nearest they would not fall."""
    parameter = nn.Parameter(torch.zeros(64 * BLOCK))
    optimizer = low_bit([parameter], in_8_bits=True, betas=(0.9, 0.999))
    torch.manual_seed(0)
    parameter.grad = torch.randn(len(parameter))
    optimizer.step()
    held = optimizer.state[parameter]
    before = adamw.second_from_8_bits(held["exp_avg_sq"], held["exp_avg_sq_scale"]).sum()
    parameter.grad = torch.zeros(len(parameter))
    for _ in range(400):
        optimizer.step()
    after = adamw.second_from_8_bits(held["exp_avg_sq"], held["exp_avg_sq_scale"]).sum()
    assert after / before == pytest.approx(0.999**400, rel=0.05)


def test_updates_by_8_bit_moments_are_nearer_to_float32_ones_than_bitsandbytes_are():
    """Gradients whose size differs 100-fold within a block, 60 steps of them."""
    import bitsandbytes

    torch.manual_seed(0)
    size = 10 ** (2 * torch.rand(64 * BLOCK) - 2)
    parameters = [nn.Parameter(torch.zeros(64 * BLOCK)) for _ in range(3)]
    exact = torch.optim.AdamW(parameters[:1], 1e-3, BETAS, 1e-8, weight_decay=0.0)
    ours = low_bit(parameters[1:2], in_8_bits=True)
    theirs = bitsandbytes.optim.AdamW8bit(parameters[2:], 1e-3, BETAS, 1e-8, weight_decay=0.0)
    for _ in range(60):
        before = [parameter.detach().clone() for parameter in parameters]
        gradient = size * torch.randn(len(size))
        for parameter, optimizer in zip(parameters, (exact, ours, theirs)):
            parameter.grad = gradient.clone()
            optimizer.step()
    right, mine, other = (p.detach() - old for p, old in zip(parameters, before))
    missed = (mine - right).norm() / right.norm()
    assert missed < 0.08 and missed < 0.7 * (other - right).norm() / right.norm()


@pytest.mark.slow
@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("in_8_bits", [False, True])
def test_compiled_to_one_kernel_a_step_is_the_same(weights, in_8_bits, monkeypatch):
    """Compiled once for each number of dimensions, as of norms, matrices and experts, not for each
    size. A level may differ where rounding decides it."""
    shapes = [(40, BLOCK), (64, BLOCK), (2, 40, BLOCK), (3, 50, BLOCK), (300,), (500,)]
    found, counters = [], torch._dynamo.utils.counters
    torch._dynamo.reset(), counters.clear()
    for compiled in (False, True):
        monkeypatch.setattr(adamw, "has_compiler", lambda device, answer=compiled: answer)
        torch.manual_seed(0)
        parameters = [nn.Parameter(torch.randn(shape).to(weights)) for shape in shapes]
        optimizer = low_bit(parameters, decay=0.1, in_8_bits=in_8_bits)
        assert (optimizer.kernel is not None) == compiled
        for _ in range(3):
            for parameter in parameters:
                parameter.grad = torch.randn(parameter.shape).to(weights)
            optimizer.step()
        optimizer.found_inf = torch.ones(())
        for parameter in parameters:
            parameter.grad = torch.full_like(parameter, math.nan)
        optimizer.step()
        found.append([parameters, [optimizer.state[p] for p in parameters]])
    assert counters["stats"]["unique_graphs"] <= 3
    (plain, states), (compiled, others) = found
    for p, q in zip(plain, compiled):
        assert torch.allclose(
            p.float(), q.float(), rtol=2**-7 if weights != torch.float32 else 1e-5
        )
        assert (p == q).float().mean() > 0.9
    for state, other in zip(states, others):
        assert state.keys() == other.keys()
        for name in state:
            tolerance = {"rtol": 1e-4, "atol": 1e-7} if state[name].is_floating_point() else {}
            levels = {"atol": 1} if not tolerance else tolerance
            assert torch.allclose(state[name].double(), other[name].double(), **levels), name


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
