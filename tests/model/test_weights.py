"""Official files in and out: what is written is what was read, in one file or in shards."""

import json

import pytest
import torch
from golden import GOLDEN
from safetensors.torch import load_file, save_file
from safetensors_bytes import file_size

from deepsynth_min.errors import UserError
from deepsynth_min.model.deepseek_ocr import DeepseekOCR
from deepsynth_min.model.shape.presets import PRESETS, find_checkpoint
from deepsynth_min.model.weights import load_weights, official_views, save_weights


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


@pytest.mark.parametrize(
    "preset, size",
    [
        ("deepseek-ocr", 6_672_547_120),
        ("unlimited-ocr", 6_672_547_120),
        ("deepseek-ocr-2", 6_778_573_880),
    ],
)
def test_a_preset_has_the_bytes_of_the_released_file(preset, size):
    """model-00001-of-000001.safetensors as Hugging Face lists it: not one number is missing, too
    many or of another type. (The index of DeepSeek-OCR-2 counts more: test_deepseek_ocr2.py.)"""
    with torch.device("meta"):
        views = official_views(DeepseekOCR(PRESETS[preset]).bfloat16())
    assert file_size(views) == size


def test_the_size_of_a_file_is_told_without_writing_it(tmp_path):
    tensors = {f"layers.{n}.weight": torch.zeros(n, 3).bfloat16() for n in range(1, 12)}
    save_file(tensors, tmp_path / "some.safetensors", {"format": "pt"})
    assert file_size(tensors) == (tmp_path / "some.safetensors").stat().st_size


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
        ({"weight_map": {"a": "x" * 300}}, "is not there"),
    ],
)
def test_a_wrong_index_is_named(tmp_path, index, message):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with torch.device("meta"):
        model = DeepseekOCR(DeepseekOCR.from_pretrained(GOLDEN).config)
    with pytest.raises(UserError, match=message):
        load_weights(model, tmp_path)


def test_an_index_nested_without_end_is_named(tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match="index.json: not JSON"):
        load_weights(torch.nn.Linear(1, 1), tmp_path)


def load_changed(tmp_path, name: str, change) -> torch.nn.Module:
    """The golden model with one tensor changed in its file."""
    tensors = load_file(GOLDEN / "model.safetensors")
    tensors[name] = change(tensors[name])
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((GOLDEN / "config.json").read_bytes())
    return DeepseekOCR.from_pretrained(tmp_path)


EXPERT = "model.layers.1.mlp.experts.{}.down_proj.weight"


@pytest.mark.parametrize("kind", [torch.int8, torch.int64, torch.bool, torch.float8_e4m3fn])
def test_tensors_of_other_types_are_refused_by_name(tmp_path, kind):
    with pytest.raises(UserError, match=r"model.safetensors: lm_head.weight is of type"):
        load_changed(tmp_path, "lm_head.weight", lambda t: t.to(kind))


@pytest.mark.parametrize("name", ["lm_head.weight", EXPERT.format(3)])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_refused_by_name(tmp_path, name, value):
    def change(tensor):
        tensor.view(-1)[tensor.numel() // 2] = value
        return tensor

    with pytest.raises(UserError, match=f"{name} holds values that are not finite"):
        load_changed(tmp_path, name, change)


@pytest.mark.parametrize("number", [0, 5])
def test_experts_of_several_types_keep_the_widest(tmp_path, number):
    """Whichever expert is stored in fewer bits, no other loses any."""
    model = load_changed(tmp_path, EXPERT.format(number), lambda t: t.bfloat16())
    original, loaded = load_file(GOLDEN / "model.safetensors"), official_views(model)
    for other in range(8):
        name = EXPERT.format(other)
        expected = original[name].bfloat16() if other == number else original[name]
        assert loaded[name].dtype == torch.float32 and loaded[name].equal(expected.float())


def test_double_precision_is_kept_as_single(tmp_path):
    model = load_changed(tmp_path, "lm_head.weight", lambda t: t.double())
    original = load_file(GOLDEN / "model.safetensors")["lm_head.weight"]
    assert model.lm_head.weight.dtype == torch.float32 and model.lm_head.weight.equal(original)


@pytest.mark.parametrize("name", ["nowhere", "./a/b", "/a/b", "a/b/c", "x" * 5000, "a\0b"])
def test_what_is_neither_directory_nor_hub_id_is_an_error(name):
    with pytest.raises(UserError, match="neither a directory nor a hub id"):
        find_checkpoint(name)
