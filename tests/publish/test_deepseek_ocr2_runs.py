"""DeepSeek-OCR-2 through the commands: trained, resumed, scored, asked, exported, loaded elsewhere.

The base is narrow, its pages are of the official sizes, so that transformers' own class reads what
comes out: by its own conversion of the official names.
"""

import json

import pytest
import torch
from adapter_runs import run, write_base, write_rows
from golden import GOLDEN, TOLERANCE, difference
from official_rules import official_shapes, problems
from released import logits_of
from run_files import losses
from safetensors.torch import load_file
from small_model import SMALL_2

from deepsynth_min import evaluate, export, generate
from deepsynth_min.command_line import load
from deepsynth_min.data.samples import SampleBuilder, collate
from deepsynth_min.data.sources import open_data
from deepsynth_min.data.tokenizer import load_tokenizer, special_ids
from deepsynth_min.model.batch import Batch
from deepsynth_min.model.deepseek_ocr import DeepseekOCR
from deepsynth_min.model.shape.presets import PRESETS
from deepsynth_min.model.weights import official_views
from deepsynth_min.tuning.adapter import base_digest, load_adapter
from deepsynth_min.tuning.lora import Base

peers = pytest.importorskip("peers", reason="transformers is not installed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """base/, rows.jsonl, and two runs: all parameters, resumed once; an adapter, with tiles."""
    folder = tmp_path_factory.mktemp("ocr2")
    write_base(folder / "base", SMALL_2)
    write_rows(folder / "rows.jsonl")
    every = ["--tune", "all", "--save-every", 1]
    run(folder, *every, "--max-steps", 1, out="all")
    run(folder, *every, "--max-steps", 2, "--resume", "auto", out="all")
    tiled = ["--mode", "gundam", "--font-size", 90, "--feature-cache", "memory"]
    run(folder, "--tune", "lora", "--max-steps", 2, *tiled, out="lora")
    return folder


def exported(folder, tmp_path, which: str, *options: str):
    to = tmp_path / "exported"
    assert export.main(["--run", str(folder / which), "--to", str(to), *options]) == 0
    return to


def tiled_batch(folder) -> Batch:
    """Two rows as the run `lora` sees them."""
    settings = load(folder / "lora" / "config.toml")
    builder = SampleBuilder(settings, SMALL_2, load_tokenizer(folder / "base"))
    rows = open_data(settings.data, 0).train
    return collate([builder(rows[i]) for i in (0, 1)], builder.special)


def peer_of(directory) -> torch.nn.Module:
    config = peers.whole_config(SMALL_2)
    config.image_token_id = special_ids(load_tokenizer(directory)).image
    peer_class = peers.modeling.DeepseekOcr2ForConditionalGeneration
    return peer_class.from_pretrained(directory, config=config, dtype=torch.float32)


def test_a_run_is_resumed_scored_and_asked(folder, capsys):
    scored = losses(folder / "all")
    assert len(scored) == 3 and scored[-1] < scored[0]  # at the steps 0, 1 and 2
    capsys.readouterr()
    assert evaluate.main(["--run", str(folder / "all"), "--ablation-samples", "1"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["loss"] == pytest.approx(scored[-1], abs=1e-4)
    assert {"reads/blank", "reads/without", "reads/text"} <= found.keys()
    one = folder / "one.jsonl"
    one.write_text((folder / "rows.jsonl").read_text().splitlines()[0])
    asked = ["--run", folder / "lora", one, "--max-new-tokens", 4, "--out", folder / "found.jsonl"]
    assert generate.main([str(word) for word in asked]) == 0
    (answer,) = map(json.loads, (folder / "found.jsonl").read_text().splitlines())
    assert answer["visual_tokens"] in (257 + 2 * 144, 257 + 4 * 144, 257 + 6 * 144)


def test_rows_are_drawn_on_tiles_where_they_do_not_fit_the_view(folder):
    batch = tiled_batch(folder)
    assert batch.tiles.shape[2:] == (768, 768) and not batch.newlines
    tiles = batch.grids.prod(1)
    assert batch.image_mask.sum() == (257 + 144 * tiles * (tiles > 1)).sum()


@pytest.mark.parametrize("which, options", [("all", []), ("lora", ["--merge"])])
def test_an_export_keeps_every_rule_and_transformers_gives_its_logits(
    folder, tmp_path, which, options
):
    to = exported(folder, tmp_path, which, *options)
    assert problems(to, folder / "base") == []
    assert "# A fine-tuned DeepSeek-OCR-2 that" in (to / "README.md").read_text()
    model, batch = DeepseekOCR.from_pretrained(to, torch.float32), tiled_batch(folder)
    assert difference(logits_of(model, batch), logits_of(peer_of(to), batch)) < TOLERANCE
    held = load_file(to / "model-00001-of-000001.safetensors")
    before = load_file(folder / "base" / "model.safetensors")
    moved = {name for name in held if not held[name].equal(before[name])}
    queries = {f"model.qwen2_model.query_{side}.weight" for side in (768, 1024)}
    if which == "lora":  # the decoder alone, whose projections have the encoder's names
        assert moved and all(name.startswith("model.layers.") for name in moved)
    else:  # pages of 1024 px alone were read
        assert moved & queries == {"model.qwen2_model.query_1024.weight"}
        assert any("qwen2_model.model.model.layers.0.mlp" in name for name in moved)


@pytest.mark.parametrize("way", ["peft", "transformers"])
def test_an_adapter_is_loaded_over_transformers_class_with_our_logits(folder, tmp_path, way):
    peft = pytest.importorskip("peft")
    to, batch = exported(folder, tmp_path, "lora"), tiled_batch(folder)
    ours = DeepseekOCR.from_pretrained(folder / "base", torch.float32)
    unadapted, peer = logits_of(ours, batch), peer_of(folder / "base")
    load_adapter(ours, to, Base("base", None, base_digest(folder / "base")))
    if way == "peft":
        peer = peft.PeftModel.from_pretrained(peer, to)
    else:
        peer.load_adapter(str(to))
    adapted = [path for path, module in peer.named_modules() if hasattr(module, "lora_A")]
    assert len(adapted) == 2 * 4 + 3 + 3 and not any("vision" in path for path in adapted)
    assert difference(logits_of(ours, batch), logits_of(peer, batch)) < TOLERANCE
    assert difference(logits_of(ours, batch), unadapted) > 0.01


def test_the_rules_name_the_official_models_own_tensors():
    with torch.device("meta"):
        views = official_views(DeepseekOCR(PRESETS["deepseek-ocr-2"]))
    official = json.loads((GOLDEN / "official_config_2.json").read_text())
    assert official_shapes(official) == {name: list(view.shape) for name, view in views.items()}
