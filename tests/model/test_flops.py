"""FLOPs by formula: held to torch's FlopCounterMode, which counts the kernels that really run."""

import pytest
import torch
from small_steps import build, ragged_batch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from deepsynth_min.model.attention import window_mask
from deepsynth_min.model.decoder import Layout, decode
from deepsynth_min.model.deepseek_ocr import DeepseekOCR
from deepsynth_min.model.shape import flops
from deepsynth_min.model.shape.presets import PRESETS
from deepsynth_min.runs.utilisation import adapters_of, batch_flops
from deepsynth_min.tuning.lora import LoraConfig, attach
from deepsynth_min.tuning.targets import choose

CONFIG = PRESETS["tiny"]


@pytest.fixture
def model() -> DeepseekOCR:
    torch.manual_seed(0)
    return DeepseekOCR(CONFIG)


def _attention(q, k, v, *_, out_shape=None, **__):
    return sdpa_flop_count(q, k, v)


def _attention_backward(grad, q, k, v, *_, out_shape=None, **__):
    return sdpa_backward_flop_count(grad, q, k, v)


def _grouped(a, b, *_, out_shape=None, **__):
    """[M, I] by [E, I, O], or the weights' gradient [O, M] by [M, I]; each row meets one matrix."""
    return 2 * a[0] * a[1] * b[-1]


UNKNOWN_TO_TORCH = {  # kernels that its counter leaves out; attention as it counts the GPU's
    torch.ops.aten._grouped_mm: _grouped,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


def counted(work) -> int:
    with FlopCounterMode(display=False, custom_mapping=UNKNOWN_TO_TORCH) as counter:
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


def test_what_only_scored_tokens_need_is_counted_as_torch_counts_it(model):
    x, scored = torch.randn(2, 24, CONFIG.decoder.hidden_size), torch.arange(40, 48)

    def work(layout=Layout()):
        with torch.no_grad():
            decode(model.model.layers, model.model.norm, CONFIG.decoder, x, layout)

    spared = flops.spared_flops(CONFIG.decoder, 40, passes=1)
    assert counted(work) - counted(lambda: work(Layout(output_index=scored))) == spared


@pytest.mark.parametrize("trained", (False, True))
def test_the_encoders_formula_equals_torchs_counter(model, trained):
    pages = torch.randn(2, 3, 256, 256)
    trunk = model.requires_grad_(trained).model
    work = lambda: trunk.vision_model(trunk.sam_model(pages))  # noqa: E731
    assert counted(work) == 2 * flops.encoder_flops(CONFIG, 256, as_done=trained)


def test_the_formula_of_an_encoder_with_queries_equals_torchs_counter():
    config = PRESETS["tiny-2"]
    trunk, pages = DeepseekOCR(config).requires_grad_(False).model, torch.randn(2, 3, 192, 192)
    sam, queries = trunk.towers
    assert counted(lambda: queries(sam(pages))) == 2 * flops.encoder_flops(config, 192)


def test_the_steps_formula_is_its_parts():
    dec, common = CONFIG.decoder, {"views": {256: 2}, "lengths": [50, 60], "scored": 20}
    head, page = 2 * 20 * dec.hidden_size * dec.vocab_size, flops.encoder_flops(CONFIG, 256)
    projector = 2 * 2 * 16 * CONFIG.feature_width * dec.hidden_size
    whole = flops.step_flops(CONFIG, "decoder", **common)
    weights = dec.hidden_size**2 + flops.mlp_weights(dec, 3)
    spared = 3 * 2 * 90 * weights  # what is not scored, in the last layer
    assert whole == flops.decoder_flops(dec, [50, 60]) - spared + 3 * head + 2 * page + projector
    assert whole - flops.step_flops(CONFIG, "decoder", **common, encoded={}) == 2 * page
    adapters = flops.Adapters(flops.adapter_weights(dec, 16))
    adapted = flops.step_flops(CONFIG, "lora", **common, adapters=adapters)
    assert whole - head - flops.decoder_linears(dec) * 2 * 110 < adapted < whole


def test_a_window_leaves_the_pairs_that_its_mask_shows():
    for length, prompt, window in ((9, 4, 3), (20, 5, 2), (12, 10, 4), (7, 7, 2)):
        seen = int(window_mask(torch.tensor([prompt]), length, window).sum())
        assert flops.attended(length, prompt, window) == 2 * seen - length


def test_adapters_are_counted_as_the_formula_of_their_rank_says(model):
    chosen = choose(model, ("attention+mlp",))
    attach(model, LoraConfig(rank=4, alpha=8), chosen)
    assert adapters_of(model) == flops.Adapters(flops.adapter_weights(CONFIG.decoder, 4))


def test_adapters_of_experts_count_as_the_chosen_ones_and_of_the_encoder_by_tower(model):
    attach(model, LoraConfig(rank=4, alpha=8), choose(model, ("all", "encoder")))
    dec, found = CONFIG.decoder, adapters_of(model)
    experts = 4 * 3 * (dec.hidden_size + dec.moe_intermediate_size) * dec.num_experts_per_tok
    routed = (dec.num_hidden_layers - dec.first_k_dense_replace) * experts
    assert found.decoder == flops.adapter_weights(dec, 4) + routed
    assert found.sam and found.second


@pytest.mark.parametrize("tune", ("decoder", "projector+decoder", "all", "lora"))
def test_a_steps_flops_are_those_that_torch_counts(small_config, tune):
    """But for what kernels do beside (whole squares of attention, SAM's bias as columns), and the
    gradient of what was given, pixels and embeddings, which the formula asks for in vain."""
    model, batch = build(small_config, tune), ragged_batch().packed()
    model.loss(batch)  # of a size that is new, pages are read twice (encoders/at_once.py)
    done = counted(lambda: model.loss(batch)[0].backward())
    formula = batch_flops(small_config, tune, batch, adapters_of(model))
    assert abs(formula / done - 1) < 0.1


def test_a_packed_batch_counts_as_the_padded_one():
    batch = ragged_batch()
    found = [batch_flops(CONFIG, "decoder", given) for given in (batch, batch.packed())]
    assert found[0] == found[1]
