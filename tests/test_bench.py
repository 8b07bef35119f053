"""The benches: their formulas, their peers, and that each of them runs."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from deepsynth_min.config import PRESETS
from deepsynth_min.decoder import decode
from deepsynth_min.model import DeepseekOCR

BENCH = Path(__file__).parent.parent / "bench"
sys.path.insert(0, str(BENCH))

import flops  # noqa: E402  (it lies beside the benches, which run as scripts)

CONFIG = PRESETS["tiny"]


@pytest.fixture
def model() -> DeepseekOCR:
    torch.manual_seed(0)
    return DeepseekOCR(CONFIG)


def _attention(q, k, v, *_, out_shape=None, **__):
    return sdpa_flop_count(q, k, v)


def _attention_backward(grad, q, k, v, *_, out_shape=None, **__):
    return sdpa_backward_flop_count(grad, q, k, v)


ATTENTION_ON_CPU = {  # kernels that the counter does not know, counted as it counts the GPU's
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


def counted(work) -> int:
    with FlopCounterMode(display=False, custom_mapping=ATTENTION_ON_CPU) as counter:
        work()
    return counter.get_total_flops()


@pytest.mark.parametrize("passes", (1, 3))
def test_the_decoders_formula_equals_torchs_counter(model, passes):
    x = torch.randn(2, 24, CONFIG.decoder.hidden_size, requires_grad=True)

    def work():
        with torch.set_grad_enabled(passes > 1):
            out, _ = decode(model.model.layers, model.model.norm, CONFIG.decoder, x)
        if passes > 1:
            out.backward(torch.ones_like(out))

    formula = flops.decoder_flops(CONFIG.decoder, [24, 24], passes, as_done=True)
    assert counted(work) == formula


@torch.no_grad()
def test_the_encoders_formula_equals_torchs_counter(model):
    pages = torch.randn(2, 3, 256, 256)
    trunk = model.model
    work = lambda: trunk.vision_model(trunk.sam_model(pages))  # noqa: E731
    assert counted(work) == 2 * flops.encoder_flops(CONFIG, 256, as_done=True)
