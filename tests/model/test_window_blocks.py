"""A reference sliding window in one kernel, for a GPU: flex_attention, here without a compiler."""

import pytest
import torch
from small_steps import assert_equal, build, step
from test_window import VISUAL, answered, windowed
from torch.nn.attention import flex_attention

from deepsynth_min.model import window_blocks as blocks_module
from deepsynth_min.model.attention import attention, window_mask
from deepsynth_min.model.window_blocks import (
    BLOCK,
    attend_in_blocks,
    bounds,
    seen_blocks,
    window_blocks,
)

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
CPU = torch.device("cpu")
# Lengths of packed samples (none: a sample in each row), their prompts, tokens of a row.
LAYOUTS = {
    "padded": ((), (7, 300, 150), 700),
    "packed": ((200, 9, 491), (7, 9, 300), 700),
    "whole blocks": ((), (128,), 512),
}


@pytest.fixture(autouse=True)
def not_compiled(monkeypatch):
    monkeypatch.setattr(blocks_module, "_kernel", lambda: flex_attention.flex_attention)
    # It refuses gradients on a CPU, for which the compiler has no kernel; its own formula has them.
    monkeypatch.setattr(flex_attention, "_validate_device", lambda q, k, v: None)


def dense(lengths, prompts, T: int, window: int) -> torch.Tensor:
    """The plain form of a batch's mask, [B, 1, T, T]."""
    if not lengths:
        return window_mask(torch.tensor(prompts), T, window)
    own = [window_mask(torch.tensor([p]), n, window)[0, 0] for n, p in zip(lengths, prompts)]
    return torch.block_diag(*own).bool()[None, None]


@pytest.mark.parametrize("window", [1, 4, 128, 200])
@pytest.mark.parametrize("name", LAYOUTS)
def test_the_kernels_question_for_each_pair_is_the_windows_mask(name, window):
    lengths, prompts, T = LAYOUTS[name]
    made = window_blocks(lengths, prompts, T, window, CPU)
    asked = flex_attention.create_mask(
        made.mask.mask_mod, len(prompts) if not lengths else 1, 1, T, T, "cpu"
    )
    assert asked.equal(dense(lengths, prompts, T, window))


@pytest.mark.parametrize("window", [1, 4, 128, 200, 300])
@pytest.mark.parametrize("name", LAYOUTS)
def test_no_pair_that_is_seen_lies_outside_the_blocks_and_none_unseen_in_those_seen_whole(
    name, window
):
    lengths, prompts, T = LAYOUTS[name]
    some, every = seen_blocks(*bounds(lengths, prompts, T), window)
    mask = dense(lengths, prompts, T, window)[:, 0]
    missing = -T % BLOCK
    seen = torch.nn.functional.pad(mask, (0, missing, 0, missing))
    seen = seen.unflatten(2, (-1, BLOCK)).unflatten(1, (-1, BLOCK))  # [B, n, BLOCK, n, BLOCK]
    real = torch.nn.functional.pad(mask, (0, missing, 0, missing), value=True)
    real = real.unflatten(2, (-1, BLOCK)).unflatten(1, (-1, BLOCK))
    assert not (seen.any(4).any(2) & ~some).any()
    assert not (every & ~real.all(4).all(2)).any()
    assert every.any()


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_kernel_is_given_these_blocks(name):
    lengths, prompts, T = LAYOUTS[name]
    some, every = seen_blocks(*bounds(lengths, prompts, T), 128)
    made = window_blocks(lengths, prompts, T, 128, CPU)
    whole = flex_attention.BlockMask.from_kv_blocks(
        made.mask.full_kv_num_blocks, made.mask.full_kv_indices
    )
    assert made.mask.to_dense()[:, 0].bool().equal(some)
    assert whole.to_dense()[:, 0].bool().equal(every)
    assert made.pairs == some.sum() * BLOCK**2


@pytest.mark.parametrize("window", [1, 4, 128])
@pytest.mark.parametrize("name", LAYOUTS)
def test_attention_in_blocks_is_attention_by_the_mask(name, window):
    lengths, prompts, T = LAYOUTS[name]
    B = 1 if lengths else len(prompts)
    torch.manual_seed(0)
    q = torch.randn(B, 4, T, 16, requires_grad=True)
    k, v = torch.randn(2, B, 2, T, 16, requires_grad=True).unbind()
    keys, values = (t.repeat_interleave(2, 1) for t in (k, v))
    plain = attention(q, keys, values, dense(lengths, prompts, T, window))
    made = window_blocks(lengths, prompts, T, window, CPU)
    ours = attend_in_blocks(q, k, v, made, enable_gqa=True)
    assert torch.allclose(ours, plain, atol=1e-5)
    weight = torch.randn_like(plain)
    wanted = torch.autograd.grad((plain * weight).sum(), (q, k, v))
    for found, want in zip(torch.autograd.grad((ours * weight).sum(), (q, k, v)), wanted):
        assert torch.allclose(found, want, atol=1e-5)


@pytest.mark.parametrize("recompute", [0, 2])
@pytest.mark.parametrize("tune", ["decoder", "lora"])
@pytest.mark.parametrize("packed", [False, True])
def test_a_step_in_blocks_is_the_step_in_chunks(tune, recompute, packed):
    model = build(windowed(4), tune).eval()
    batch = answered((VISUAL + 3, 3), (VISUAL + 9, 70), (VISUAL + 2, 25))
    batch = batch.packed() if packed else batch
    model.recompute = recompute
    wanted = step(model, batch)
    model.window_in_blocks = True
    assert_equal(step(model, batch), wanted)


def test_what_the_kernel_reads_grows_with_the_answer_and_not_with_its_square():
    short, long = (window_blocks((), (300,), 300 + n, 128, CPU).pairs for n in (4096, 8192))
    assert short < long < 2.1 * short
