"""Packed samples, layers computed again, and no graph where nothing trains: each against its
reference."""

import pytest
import torch
from golden import CASES, GOLDEN, GRADIENT_TOLERANCE, expected, golden_batch
from small_steps import assert_equal, build, ragged_batch, step

from deepsynth_min.model.batch import Batch
from deepsynth_min.model.decoder import DecoderLayer, Layout
from deepsynth_min.model.deepseek_ocr import DeepseekOCR
from deepsynth_min.tuning import freeze
from deepsynth_min.tuning.lora import LoraConfig, attach
from deepsynth_min.tuning.targets import choose


@pytest.mark.parametrize("balance", [0.02, 0.0])
@pytest.mark.parametrize("tune", ["decoder", "projector+decoder", "all", "lora"])
def test_packed_samples_give_the_loss_and_gradients_of_padded_ones(small_config, tune, balance):
    model, padded = build(small_config, tune).eval(), ragged_batch()
    packed = padded.packed()
    assert packed.input_ids.shape == (1, 58) and packed.tokens == padded.tokens == 58
    assert_equal(step(model, packed, balance), step(model, padded, balance))


@pytest.mark.parametrize("recompute", [0, 2])
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("tune", ["decoder", "all", "lora"])
def test_the_last_layer_s_mlp_is_asked_for_scored_tokens_alone(
    small_config, tune, packed, recompute
):
    model, batch = build(small_config, tune).eval(), ragged_batch()
    batch = batch.packed() if packed else batch
    model.recompute, rows = recompute, []
    norm = model.model.layers[-1].post_attention_layernorm
    norm.register_forward_hook(lambda module, inputs, out: rows.append(out.shape[:-1].numel()))
    ours = step(model, batch, balance=0.0)
    everywhere = forward_everywhere(model, batch)
    assert set(rows[:1]) == {batch.num_scored} and rows[-1] == batch.input_ids.numel()
    assert_equal(ours, everywhere)


def forward_everywhere(model: DeepseekOCR, batch: Batch):
    """`step` by the logits of every position."""
    model.zero_grad()
    logits = model(batch).flatten(0, 1)[batch.score_index]
    loss = torch.nn.functional.cross_entropy(logits, batch.targets, reduction="sum")
    (loss / batch.num_scored).backward()
    return loss.item(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def test_a_packed_sample_sees_itself_only(small_config):
    model, batch = build(small_config, "decoder"), ragged_batch()
    with torch.no_grad():
        rows = model(batch.packed())[0].split((20, 11, 27))
        for b, row in enumerate(model(batch)):
            assert torch.allclose(rows[b], row[: len(rows[b])], atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_packed_batches_give_the_official_loss_and_gradients(case):
    model = DeepseekOCR.from_pretrained(GOLDEN)
    total, count = model.loss(golden_batch(case).packed())
    assert abs(total.item() / count - expected()[f"{case}.loss"].item()) < 1e-5
    names = [n for n in expected() if n.startswith(f"{case}.train.grad.") and "experts." not in n]
    (total / count).backward()
    own = dict(model.named_parameters())
    for name in names:
        theirs, ours = expected()[name], own[name.removeprefix(f"{case}.train.grad.")].grad
        assert (ours - theirs).norm() / theirs.norm() < GRADIENT_TOLERANCE, name


@pytest.mark.parametrize("tune", ["all", "lora"])
@pytest.mark.parametrize("packed", [False, True])
def test_layers_computed_again_give_the_same_gradients_to_the_bit(small_config, tune, packed):
    model, batch = build(small_config, tune).train(), ragged_batch()
    batch = batch.packed() if packed else batch
    kept, saved = step(model, batch), []
    for model.recompute in (0, 2):
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: (saved[-1].add((t.data_ptr(), t.nbytes)), t)[1], lambda t: t
        ):
            saved.append(set())
            model.loss_terms(batch, True)
    again = step(model, batch)
    assert kept[0] == again[0] and kept[1].keys() == again[1].keys()
    assert all(kept[1][name].equal(again[1][name]) for name in kept[1])
    whole, less = (sum(size for _, size in tensors) for tensors in saved)
    assert less < whole


def test_nothing_below_the_first_trainable_parameter_has_a_graph(small_config):
    torch.manual_seed(0)
    model = DeepseekOCR(small_config)
    attach(model, LoraConfig(4, 8.0), choose(model, ("layers.1.self_attn.q_proj",)))
    freeze.freeze(model, "lora")
    seen = []
    for module in model.modules():
        if isinstance(module, DecoderLayer):
            module.register_forward_hook(lambda _, args, out: seen.append((args[0], out[0])))
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        x = model.embed(ragged_batch().packed())
        assert not x.requires_grad and not saved
        model.hidden(x, Layout(lengths=(20, 11, 27)))
    flags = [(before.requires_grad, after.requires_grad) for before, after in seen]
    assert flags == [(False, False), (False, True)]
