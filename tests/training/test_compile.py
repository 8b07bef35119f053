"""--compile: parts of the model through torch.compile, each against the model as it is.

`Counted` stands for inductor: it runs what torch.compile hands to a backend, which is where Python
has become a graph; what inductor makes of a graph is torch's affair, and takes minutes.
"""

from dataclasses import replace
from functools import partial
from unittest.mock import patch

import pytest
import torch
from small_steps import assert_equal, build, ragged_batch, step
from torch.nn.attention.flex_attention import flex_attention

from deepsynth_min import train
from deepsynth_min.model.decoder import MixtureOfExperts
from deepsynth_min.model.deepseek_ocr import DeepseekOCR
from deepsynth_min.model.encoders import relative_attention
from deepsynth_min.model.encoders.sam_clip import SamAttention
from deepsynth_min.model.experts import mixture_of_experts_grouped
from deepsynth_min.settings import Settings
from deepsynth_min.training import compile as compiling
from deepsynth_min.training.compile import compile_parts
from deepsynth_min.training.precision import autocast


class Counted:
    """A backend that counts the graphs and runs them as they are."""

    def __init__(self):
        self.graphs = 0

    def __call__(self, graph, inputs):
        self.graphs += 1
        return graph.forward


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def shorter(batch):
    """The second of its samples alone, which has no page; then the others."""
    keep = torch.tensor([1])
    return type(batch)(
        batch.input_ids[keep],
        batch.attention_mask[keep],
        batch.image_mask[keep],
        batch.labels[keep],
        batch.pages[:0],
    ).packed()


@pytest.mark.parametrize(
    "tune, precision",
    [
        ("all", "fp32"),
        pytest.param("lora", "bf16", marks=pytest.mark.slow),
        pytest.param("decoder", "fp32", marks=pytest.mark.slow),
        pytest.param("decoder", "bf16", marks=pytest.mark.slow),
        pytest.param("lora", "fp32", marks=pytest.mark.slow),
    ],
)
def test_compiled_parts_give_the_same_loss_and_gradients(small_config, tune, precision):
    plain, compiled, backend = build(small_config, tune), build(small_config, tune), Counted()
    compile_parts(compiled, precision, backend)
    assert list(compiled.state_dict()) == list(plain.state_dict())
    for batch in (ragged_batch(), ragged_batch().packed(), shorter(ragged_batch())):
        for balance in (0.02, 0.0):
            with autocast(torch.device("cpu"), precision):
                ours, reference = step(compiled, batch, balance), step(plain, batch, balance)
            assert_equal(ours, reference)
    assert backend.graphs


def test_another_number_of_tokens_compiles_nothing_again(small_config):
    model, backend = build(small_config, "decoder"), Counted()
    compile_parts(model, "fp32", backend)
    step(model, ragged_batch().packed())
    before = backend.graphs
    for _ in range(2):
        step(model, shorter(ragged_batch()))
    assert backend.graphs == before > 0


def test_the_encoders_kernel_is_compiled_within_a_block_too(monkeypatch, small_config):
    plain, compiled, backend = build(small_config, "lora"), build(small_config, "lora"), Counted()
    monkeypatch.setattr(compiling, "has_compiler", lambda device: True)
    monkeypatch.setattr(relative_attention, "_kernel", lambda *_: flex_attention)
    compiling.use_flex(compiled, torch.device("cpu"))
    for block in compiled.model.sam_model.blocks:
        block.compile(backend=backend)
    assert_equal(step(compiled, ragged_batch()), step(plain, ragged_batch()))
    assert backend.graphs


def test_each_grid_has_a_kernel_in_which_its_sides_are_numbers(monkeypatch):
    """With the number of pages, and where in memory they lie, it does vary."""
    varied = []

    def backend(graph, inputs):
        varied.append({i.node.hint for i in inputs if isinstance(i, torch.SymInt)})
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    relative_attention._kernel.cache_clear()
    for pages, side in ((2, 5), (2, 7), (3, 5), (4, 7), (6, 5)):
        layer, x = (
            SamAttention(32, 2, side).requires_grad_(False),
            torch.randn(pages, side, side, 32),
        )
        plain = layer(x)
        layer.by_score = True
        torch.testing.assert_close(layer(x), plain, atol=1e-5, rtol=1e-5)
    at = {32, 64, 96}  # keys, values, the next token
    assert varied == [set(), set(), {3} | at, {4} | at]  # and of six pages none is compiled
    relative_attention._kernel.cache_clear()


def test_a_mixture_is_one_graph_on_a_gpu_too(small_config):
    """Of tensors that are on no CPU, by shapes alone."""
    config, place = small_config.decoder, {"device": "meta", "dtype": torch.bfloat16}
    experts = MixtureOfExperts(config).experts.to(**place)
    x = torch.empty(24, config.hidden_size, **place, requires_grad=True)
    chosen, weight = (
        torch.empty(24, 2, device="meta", dtype=torch.int64),
        torch.empty(24, 2, **place),
    )
    mixture = torch.compile(mixture_of_experts_grouped, backend=Counted(), fullgraph=True)
    with patch("deepsynth_min.model.experts.compute_dtype", lambda x: x.dtype):  # asks autocast
        mixture(experts, x, chosen, weight).sum().backward()
    assert x.grad.shape == x.shape


@pytest.mark.slow
def test_the_encoders_kernel_as_torch_compiles_it(small_config):
    """On a CPU, whose template of it knows fixed shapes alone (torch 2.13): each compiled anew."""
    block = build(small_config, "lora").model.sam_model.blocks[1]
    for pages, side in ((2, 8), (3, 4)):
        torch._dynamo.reset()
        x = torch.randn(pages, side, side, small_config.sam.width)
        block.attn.by_score = False
        plain = block(x)
        block.attn.by_score = True
        torch.testing.assert_close(block(x), plain, atol=1e-5, rtol=1e-5)


def test_heads_too_narrow_for_the_kernel_keep_the_other_form(monkeypatch, small_config):
    monkeypatch.setattr(compiling, "has_compiler", lambda device: True)
    for heads, by_kernel in ((2, True), (4, False)):  # of 16 numbers, and of 8
        config = replace(
            small_config,
            sam=replace(small_config.sam, heads=heads),
            decoder=replace(
                small_config.decoder, num_attention_heads=heads, num_key_value_heads=heads
            ),
        )
        model = DeepseekOCR(config)
        compiling.use_flex(model, torch.device("cpu"))
        assert model.window_in_blocks == by_kernel
        assert {block.attn.by_score for block in model.model.sam_model.blocks} == {by_kernel}


def test_no_kernel_is_compiled_without_a_gpu(small_config):
    model = build(small_config, "lora")
    compiling.use_flex(model, torch.device("cpu"))
    assert not any(block.attn.by_score for block in model.model.sam_model.blocks)


@pytest.mark.parametrize("version", ["2.10.0", "2.11.0+cu130", "2.12.1"])
def test_a_torch_that_would_compile_to_wrong_gradients_is_refused(
    tmp_path, monkeypatch, capsys, version
):
    monkeypatch.setattr(torch, "__version__", version)
    assert train.main(["--compile", "--out", str(tmp_path / "r")]) == 2
    said = capsys.readouterr().err
    assert f"--compile: needs PyTorch 2.13 or newer, this is {version}" in said
    assert said.count("\n") == 1 and not (tmp_path / "r").exists()


def test_it_is_refused_with_shards(tmp_path, capsys):
    assert not Settings().optim.compile
    assert train.main(["--compile", "--shard", "--out", str(tmp_path / "r")]) == 2
    assert (
        capsys.readouterr().err == "error: --compile: not with --shard, whose layers come and go\n"
    )
