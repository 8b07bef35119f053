"""A model on the hub: looked at before its weights are fetched."""

import json

import pytest
from hub_server import command, running_hub

from deepsynth_min.data.tokenizer import EMBEDDED
from deepsynth_min.model.shape.official import config_to_dict
from deepsynth_min.model.shape.presets import PRESETS

FIND = "from deepsynth_min.model.shape.presets import find_checkpoint as f; f('{}')"


@pytest.mark.slow
def test_of_a_model_on_the_hub_no_weights_are_fetched_until_it_trains(tmp_path, jsonl):
    files = {file.name: file.read_bytes() for file in EMBEDDED.iterdir()}
    files["config.json"] = json.dumps(config_to_dict(PRESETS["tiny"])).encode()
    files["model.safetensors"] = b"large"
    with running_hub() as server:
        server.repositories["someone/model"], server.private["someone/model"] = files, False
        options = ["--data", jsonl, "--model", "someone/model", "--html", "none"]
        done = command(server, tmp_path, "-m", "deepsynth_min.check", *options)
        assert done.returncode == 0, done.stderr
        assert "training would start" in done.stdout and "pages of 256 px" in done.stdout
        assert not list((tmp_path / "home").rglob("*.safetensors"))
        assert command(server, tmp_path, "-c", FIND.format("someone/model")).returncode == 0
        assert list((tmp_path / "home").rglob("*.safetensors"))


@pytest.mark.parametrize(
    "kind, architecture",
    [
        pytest.param("qwen2_vl", "Qwen2VLForConditionalGeneration", marks=pytest.mark.slow),
        ("deepseek_ocr2", "DeepseekOcr2ForConditionalGeneration"),
    ],
)
def test_a_model_of_another_kind_on_the_hub_is_refused_before_its_weights_are_fetched(
    tmp_path, jsonl, kind, architecture
):
    config = {"model_type": kind, "architectures": [architecture], "text_config": {}}
    files = {"config.json": json.dumps(config).encode(), "model.safetensors": b"large"}
    with running_hub() as server:
        server.repositories["someone/other"], server.private["someone/other"] = files, False
        done = command(server, tmp_path, "-c", FIND.format("someone/other"))
        line = (
            f"someone/other: config.json: a {kind} model ({architecture}); this trains DeepSeek-OCR"
        )
        assert line in done.stderr and not list((tmp_path / "home").rglob("*.safetensors"))
