"""The benches: their formulas, their peers, and that each of them runs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from deepsynth_min.data.tokenizer import EMBEDDED
from deepsynth_min.model.deepseek_ocr import DeepseekOCR
from deepsynth_min.model.shape.presets import PRESETS
from deepsynth_min.training.checkpoint import save_model

BENCH = Path(__file__).parents[2] / "bench"
CONFIG = PRESETS["tiny"]


@pytest.fixture
def model() -> DeepseekOCR:
    torch.manual_seed(0)
    return DeepseekOCR(CONFIG)


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
