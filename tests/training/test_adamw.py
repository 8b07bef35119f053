"""AdamW in little memory: random bits, rounding, moments in 8 bits, one kernel."""

import math

import pytest
import torch
from torch import nn

from deepsynth_min.training import adamw
from deepsynth_min.training.adamw import BLOCK, LowBitAdamW
from deepsynth_min.training.rounding import random_bits, round_at_random

BETAS = (0.9, 0.95)


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
    """Compiled once for each kind of moments, whatever sizes and dimensions norms, matrices and
    experts have. A level may differ where rounding decides it."""
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
    assert counters["stats"]["unique_graphs"] == 1 + in_8_bits  # 300 numbers stay in float32
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
