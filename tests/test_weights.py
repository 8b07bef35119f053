"""Official files in and out: what is written is what was read, in one file or in shards."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from deepsynth_min.config import UserError
from deepsynth_min.model import DeepseekOCR
from deepsynth_min.weights import find_checkpoint, load_weights, official_views, save_weights

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize("shard_bytes, files", [(10**9, 1), (500_000, 5)])
def test_a_checkpoint_survives_reading_and_writing(tmp_path, shard_bytes, files):
    model = DeepseekOCR.from_pretrained(GOLDEN)
    save_weights(model, tmp_path, shard_bytes)
    written = {}
    shards = sorted(tmp_path.glob("*.safetensors"))
    for path in shards:
        assert path.stat().st_size < shard_bytes + 20_000
        written |= load_file(path)
    original = load_file(GOLDEN / "model.safetensors")
    assert len(shards) >= files and written.keys() == original.keys()
    assert all(written[name].equal(original[name]) for name in original)
    (tmp_path / "config.json").write_bytes((GOLDEN / "config.json").read_bytes())
    again = official_views(DeepseekOCR.from_pretrained(tmp_path))
    assert all(again[name].equal(original[name]) for name in original)


def test_the_type_asked_for_is_the_type_loaded(tmp_path):
    model = DeepseekOCR.from_pretrained(GOLDEN, dtype=torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    save_weights(model, tmp_path)
    (tmp_path / "config.json").write_bytes((GOLDEN / "config.json").read_bytes())
    kept = DeepseekOCR.from_pretrained(tmp_path)
    assert {p.dtype for p in kept.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    "index, message",
    [
        ({"weight_map": {"a": "../../secret.safetensors"}}, "not a file name"),
        ({"weight_map": {"a": "gone.safetensors"}}, "is not there"),
        ({"weights": {}}, "not a weight index"),
        ([], "not a weight index"),
    ],
)
def test_a_wrong_index_is_named(tmp_path, index, message):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with torch.device("meta"):
        model = DeepseekOCR(DeepseekOCR.from_pretrained(GOLDEN).config)
    with pytest.raises(UserError, match=message):
        load_weights(model, tmp_path)


@pytest.mark.parametrize("name", ["nowhere", "./a/b", "/a/b", "a/b/c"])
def test_what_is_neither_directory_nor_hub_id_is_an_error(name):
    with pytest.raises(UserError, match="neither a directory nor a hub id"):
        find_checkpoint(name)
