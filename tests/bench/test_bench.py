"""The benches: their formulas, their peers, and that each of them runs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import flops
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from deepsynth_min.data.tokenizer import EMBEDDED
from deepsynth_min.model.decoder import Layout, decode
from deepsynth_min.model.deepseek_ocr import DeepseekOCR
from deepsynth_min.model.shape.presets import PRESETS
from deepsynth_min.training.checkpoint import save_model

BENCH = Path(__file__).parents[2] / "bench"
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


def test_the_mlp_that_only_scored_tokens_need_is_counted_as_torch_counts_it(model):
    x, scored = torch.randn(2, 24, CONFIG.decoder.hidden_size), torch.arange(40, 48)

    def work(layout=Layout()):
        with torch.no_grad():
            decode(model.model.layers, model.model.norm, CONFIG.decoder, x, layout)

    spared = 2 * 40 * flops.mlp_weights(CONFIG.decoder, 3)
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
    dec, common = CONFIG.decoder, {"side": 256, "pages": 2, "lengths": [50, 60], "scored": 20}
    head, page = 2 * 20 * dec.hidden_size * dec.vocab_size, flops.encoder_flops(CONFIG, 256)
    projector = 2 * 2 * 16 * CONFIG.feature_width * dec.hidden_size
    whole = flops.step_flops(CONFIG, "decoder", **common)
    spared = 3 * 2 * 90 * flops.mlp_weights(dec, 3)  # what is not scored, in the last layer
    assert whole == flops.decoder_flops(dec, [50, 60]) - spared + 3 * head + 2 * page + projector
    assert whole - flops.step_flops(CONFIG, "decoder", **common, cached=True) == 2 * page
    adapted = flops.step_flops(CONFIG, "lora", **common)
    assert whole - head - flops.decoder_linears(dec) * 2 * 110 < adapted < whole


@torch.no_grad()
def test_the_peers_encoder_computes_ours(model):
    peers = pytest.importorskip("peers", reason="transformers is not installed")
    import encoder as bench

    modules = {
        "deepsynth_min": bench.Ours(model, "deepsynth_min"),
        "transformers": peers.peer_encoder(model),
    }
    bench.check_equal(modules, torch.rand(1, 3, 256, 256) * 2 - 1, 1e-5)


def test_a_check_of_equality_finds_another_model(model):
    bench = pytest.importorskip("decoder", reason="transformers is not installed")
    other = DeepseekOCR(CONFIG)
    modules = {"deepsynth_min": bench.Ours(model), "other": bench.Ours(other)}
    x, given = torch.randn(1, 8, CONFIG.decoder.hidden_size, requires_grad=True), Given()
    with pytest.raises(AssertionError, match="other computes something else"):
        bench.check_equal(modules, [x], torch.randn(8, CONFIG.decoder.hidden_size), given)


def test_equality_is_shown_on_no_input_that_brings_a_router_to_a_tie(model):
    bench = pytest.importorskip("decoder", reason="transformers is not installed")
    x, ours = torch.randn(1, 8, CONFIG.decoder.hidden_size, requires_grad=True), bench.Ours(model)
    assert not bench.at_a_tie(ours, x)
    gate = model.model.layers[-1].mlp.gate
    gate.weight.data[:] = gate.weight.data[0]  # all experts alike
    assert bench.at_a_tie(ours, x)
    with pytest.raises(AssertionError, match="each input"):
        bench.check_equal({"deepsynth_min": ours}, [x], torch.randn(8, x.shape[2]), Given())


class Given:
    """The options that `check_equal` reads."""

    precision = "fp32"


def last_line(*command: str, env=None) -> dict:
    done = subprocess.run(
        [sys.executable, str(BENCH / command[0]), *command[1:]],
        capture_output=True,
        text=True,
        timeout=120,
        env=env,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("tune", ("decoder", "lora"))
def test_the_decoders_bench_runs_against_an_equal_peer(tune):
    pytest.importorskip("peft")
    pytest.importorskip("transformers")
    result = last_line(
        *"decoder.py --preset tiny --tokens 16 --batch-size 1 --repeats 1 --threads 1".split(),
        "--tune",
        tune,
    )
    few, all_ = result["results"]
    assert (few["scored"], all_["scored"]) == (4, 16) and few["flops"] < all_["flops"]
    names = {"deepsynth_min", "transformers eager", "transformers grouped_mm"}
    assert set(few["seconds"]) == set(all_["seconds"]) == names


@pytest.mark.slow
def test_the_steps_bench_gives_utilisation_and_the_whole_split():
    result = last_line(
        *(
            "train_step.py --batch-size 1 --answer 8 --repeats 1 --warmup 1 --threads 1 "
            "--cached --tune lora"
        ).split()
    )
    assert 0 < result["utilisation"] < 2
    assert {"data", "encode", "forward", "backward", "optimizer"} <= set(result["split_s"])


@pytest.mark.slow
def test_the_loss_needs_less_memory_than_the_naive_one():
    result = last_line(
        *(
            "loss_memory.py --batch-size 4 --tokens 256 --answer 16 --width 64 "
            "--vocabulary 16384 --threads 1"
        ).split()
    )
    assert result["share"] < 0.5


@pytest.mark.slow
@pytest.mark.parametrize("directory, said", [("", "give the directory"), ("nowhere", "no config")])
def test_the_official_peer_says_what_it_needs(directory, said):
    done = subprocess.run(
        [sys.executable, str(BENCH / "official.py"), "--baseline-dir", directory],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and said in done.stderr and done.stderr.count("\n") == 1


STAND_IN = """
from types import SimpleNamespace

import torch
from transformers import PretrainedConfig, PreTrainedModel

from deepsynth_min.model.batch import Batch
from deepsynth_min.model import DeepseekOCR


class DeepseekOCRConfig(PretrainedConfig):
    model_type = "DeepseekOCR"


class DeepseekOCRForCausalLM(PreTrainedModel):
    config_class = DeepseekOCRConfig

    @classmethod
    def from_pretrained(cls, directory, *, config, torch_dtype, use_safetensors, **_):
        model = cls(config)
        model.inner = DeepseekOCR.from_pretrained(directory, torch_dtype)
        return model

    def forward(self, input_ids, attention_mask, labels, images, images_seq_mask,
                images_spatial_crop, use_cache, return_dict):
        assert images_spatial_crop.tolist() == [[1, 1]] * len(images)
        assert not any(tiles.any() for tiles, _ in images)
        pages = torch.cat([page for _, page in images])[:, :1].float()
        pages = ((pages * 0.5 + 0.5) * 255).round().byte()
        batch = Batch(input_ids, attention_mask, images_seq_mask, labels, pages)
        total, count = self.inner.loss(batch)
        return SimpleNamespace(loss=total / count)
"""


@pytest.mark.slow
@pytest.mark.parametrize("tune", ("decoder", "lora"))
def test_the_official_peer_s_bench_runs_with_code_from_a_directory(model, tmp_path, tune):
    """The stand-in takes what the official code takes; what computes is our model."""
    pytest.importorskip("peft")
    pytest.importorskip("transformers")
    directory = tmp_path / "checkpoint"
    directory.mkdir()
    save_model(model, directory, EMBEDDED)
    (directory / "modeling_deepseekocr.py").write_text(STAND_IN)
    found = json.loads((directory / "config.json").read_text())
    assert found["auto_map"]["AutoModel"] == "modeling_deepseekocr.DeepseekOCRForCausalLM"
    result = last_line(
        "official.py",
        "--baseline-dir",
        str(directory),
        "--tune",
        tune,
        *"--device cpu --mode auto --batch-size 2 --answer 8 --repeats 1".split(),
        env={**os.environ, "HF_HOME": str(tmp_path / "hf")},
    )
    assert set(result["seconds"]) == {"deepsynth_min", "official"} and result["ratio"] > 0
