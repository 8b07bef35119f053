"""Exported checkpoints: by the published rules, merged as PEFT merges, withdrawn when wrong."""

import gzip
import json
import shutil
from pathlib import Path

import pytest
import torch
from adapter_runs import run, write_base, write_rows
from commands import words
from full_disk import full_disk
from golden import GOLDEN
from official_rules import official_shapes, problems
from official_tree import official_tree
from safetensors.torch import load_file, save_file
from small_model import SMALL

from deepsynth_min import export
from deepsynth_min.command_line import load
from deepsynth_min.data.tokenizer import EMBEDDED
from deepsynth_min.errors import UserError
from deepsynth_min.model.deepseek_ocr import DeepseekOCR
from deepsynth_min.model.weights import official_views
from deepsynth_min.publish import official
from deepsynth_min.runs.storage.run_directory import find_run_checkpoint
from deepsynth_min.training.build import load_run_model
from deepsynth_min.tuning.adapter import TENSORS
from deepsynth_min.tuning.lora import pairs
from deepsynth_min.tuning.quant import packed_weights

INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """base/, rows.jsonl, and three runs over them: full, lora and qlora."""
    folder = tmp_path_factory.mktemp("export")
    write_base(folder / "base", SMALL)
    (folder / "base" / "processor_config.json").write_text('{"kept":  "byte for byte"}')
    write_rows(folder / "rows.jsonl")
    run(folder, "--tune", "decoder", "--max-steps", 1, out="full")
    run(folder, "--tune", "lora", "--lora-targets", "all", "--max-steps", 2, out="lora")
    run(folder, "--tune", "projector+qlora", "--max-steps", 2, out="qlora")
    return folder


def exported(folder, tmp_path, which, *arguments):
    to = tmp_path / "exported"
    assert export.main(["--run", str(folder / which), "--to", str(to), *map(str, arguments)]) == 0
    return to


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    """The export of `full`; to be copied before it is changed."""
    return exported(folder, tmp_path_factory.mktemp("whole"), "full")


def test_the_rules_name_the_official_models_own_tensors():
    config = json.loads((GOLDEN / "official_config.json").read_text())
    shapes = json.loads(gzip.decompress((GOLDEN / "official_shapes.json.gz").read_bytes()))
    assert official_shapes(config) == shapes


@pytest.mark.parametrize(
    "which, options", [("full", []), ("lora", ["--merge"]), ("qlora", ["--merge"])]
)
def test_an_export_keeps_every_rule_and_loads_back_strictly(folder, tmp_path, which, options):
    to = exported(folder, tmp_path, which, *options, "--shard-size", "200KB")
    assert problems(to, folder / "base") == []
    shards = sorted(to.glob("*.safetensors"))
    assert len(shards) > 3
    for path in shards:  # at most the size asked for, or one larger tensor
        assert path.stat().st_size < 220_000 or len(load_file(path)) == 1
    model = DeepseekOCR.from_pretrained(to)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert all(path.stat().st_mode & 0o444 == 0o444 for path in shards)


def test_tiny_exported_keeps_every_rule(tmp_path):
    rows = write_rows(tmp_path / "r.jsonl")
    run(tmp_path, *words("--model tiny --data {} --max-steps 1", rows), out="tiny")
    to = exported(tmp_path, tmp_path, "tiny")
    assert problems(to, EMBEDDED) == []
    config = json.loads((to / "config.json").read_text())
    assert official_views(DeepseekOCR.from_pretrained(to)).keys() == official_shapes(config).keys()


def _rewrite(to, change):
    """Changes the tensors of the last shard, index included."""
    path = sorted(to.glob("*.safetensors"))[-1]
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})
    index = json.loads((to / INDEX).read_text())
    kept = {n: f for n, f in index["weight_map"].items() if f != path.name}
    index["weight_map"] = kept | dict.fromkeys(tensors, path.name)
    (to / INDEX).write_text(json.dumps(index))


def _fuse(tensors):
    prefix = "model.layers.1.mlp.experts.1"
    gate, up = (tensors.pop(f"{prefix}.{kind}_proj.weight") for kind in ("gate", "up"))
    tensors[f"{prefix}.gate_up_proj.weight"] = torch.cat([gate, up])


def _lose_an_expert(tensors):
    for kind in ("gate", "up", "down"):
        del tensors[f"model.layers.1.mlp.experts.3.{kind}_proj.weight"]


def _add_a_buffer(tensors):
    tensors["model.vision_model.embeddings.position_ids"] = torch.arange(5)[None]


def _widen(tensors):
    tensors["lm_head.weight"] = tensors["lm_head.weight"].float()


def _edit_config(to):
    config = json.loads((to / "config.json").read_text())
    (to / "config.json").write_text(json.dumps(config | {"model_type": "deepseek_v2"}))


def _reformat_config(to):
    config = json.loads((to / "config.json").read_text())
    (to / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    "fault, named",
    [
        (lambda to: _rewrite(to, _fuse), "experts.1.gate_up_proj.weight is no official tensor"),
        (lambda to: _rewrite(to, _lose_an_expert), "experts.3.up_proj.weight is missing"),
        (lambda to: _rewrite(to, _add_a_buffer), "position_ids is no official tensor"),
        (lambda to: _rewrite(to, _widen), "lm_head.weight is F32"),
        (_edit_config, "model_type = 'deepseek_v2'"),
        (_reformat_config, "config.json is not the base's"),
        (lambda to: (to / "processor_config.json").unlink(), "processor_config.json is missing"),
    ],
)
def test_the_rules_notice_planted_faults(folder, whole, tmp_path, fault, named):
    to = Path(shutil.copytree(whole, tmp_path / "to"))
    fault(to)
    found = problems(to, folder / "base")
    assert any(named in problem for problem in found), found


def test_a_merged_export_equals_pefts_merge(folder, tmp_path):
    peft = pytest.importorskip("peft")
    to = exported(folder, tmp_path, "lora", "--merge")
    adapter = folder / "lora" / "checkpoints" / "step-000002"
    ours = load_file(to / "model-00001-of-000001.safetensors")
    base = {n: t.float() for n, t in load_file(folder / "base" / "model.safetensors").items()}
    merged = peft.PeftModel.from_pretrained(official_tree(base), adapter).merge_and_unload()
    theirs = {n: p for n, p in merged.named_parameters() if n.startswith("model.layers.")}
    assert len(theirs) == 4 * 2 + 3 + 3 + 4 * 3
    for name, weight in theirs.items():
        # Both round the same float32 sum to bf16, but for the order of its terms.
        assert torch.allclose(ours[name].float(), weight, rtol=2**-8, atol=1e-6), name
        assert not torch.equal(weight, base[name])
    rest = [name for name in ours if name not in theirs]
    assert all(torch.equal(ours[name], base[name].bfloat16()) for name in rest)


def test_a_merge_over_nf4_unpacks_the_base_or_takes_the_original(folder, tmp_path):
    settings = load(folder / "qlora" / "config.toml")
    checkpoint = find_run_checkpoint(folder / "qlora", "last")
    model, _ = load_run_model(settings, folder / "qlora", checkpoint, torch.device("cpu"))
    original = load_file(folder / "base" / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj"
    unpacked = packed_weights(model)[f"{name}.base.weight"].unpack(torch.float32)
    delta = pairs(model)[name].delta()
    for folder_name, options, base in (
        ("a", [], unpacked),
        ("b", ["--base", folder / "base"], original[f"{name}.weight"].float()),
    ):
        (tmp_path / folder_name).mkdir()
        to = exported(folder, tmp_path / folder_name, "qlora", "--merge", *options)
        written = official_views(DeepseekOCR.from_pretrained(to))
        ours = written[f"{name}.weight"].float()
        assert torch.allclose(ours, base + delta, rtol=2**-6, atol=1e-6)
        projector = written["model.projector.layers.weight"]
        assert not torch.equal(projector, original["model.projector.layers.weight"])  # it trained
    assert not torch.allclose(unpacked, base, rtol=0.01)


def test_an_adapter_exported_without_merging_is_the_checkpoints(folder, tmp_path, capsys):
    to = exported(folder, tmp_path, "qlora")
    newest = folder / "qlora" / "checkpoints" / "step-000002"
    assert (to / TENSORS).read_bytes() == (newest / TENSORS).read_bytes()
    assert "--merge makes a model that has it" in capsys.readouterr().out
    card = (to / "README.md").read_text()
    assert (
        card.startswith("---\nlibrary_name: peft\n") and "--tune projector+qlora --adapter" in card
    )


def test_an_export_that_computes_something_else_is_withdrawn(folder, tmp_path, monkeypatch, capsys):
    honest = official.merged_tensors

    def without_an_adapter(model, dtype):
        for pair in pairs(model).values():
            pair.B.data.add_(1.0)  # merges something else than what was compared
        return honest(model, dtype)

    monkeypatch.setattr(official, "merged_tensors", without_an_adapter)
    arguments = ["--run", folder / "lora", "--to", tmp_path / "exported", "--merge"]
    assert export.main(list(map(str, arguments))) == 2
    assert "the export is withdrawn" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_takes_no_more_is_one_line_and_leaves_nothing(folder, tmp_path, capsys):
    with full_disk(100_000):
        code = export.main(words("--run {} --to {}", folder / "full", tmp_path / "exported"))
    error = capsys.readouterr().err
    assert code == 2 and "could not be written" in error and "File too large" in error
    assert error.count("\n") == 1 and list(tmp_path.iterdir()) == []


def test_a_truncated_shard_is_named(folder, tmp_path):
    to = exported(folder, tmp_path, "full")
    path = to / "model-00001-of-000001.safetensors"
    data = path.read_bytes()
    for size in (0, 7, 1000, len(data) - 1):
        path.write_bytes(data[:size])
        with pytest.raises(UserError, match=f"{path.name}: not a safetensors file"):
            DeepseekOCR.from_pretrained(to)


@pytest.mark.parametrize(
    "which, options, message",
    [
        ("full", ["--merge"], "trained no adapter"),
        ("lora", ["--base", "x"], "only with --merge"),
        ("lora", ["--merge", "--shard-size", "5 apples"], "not a size"),
        ("nothing", [], "not a run directory"),
        ("lora", ["--checkpoint", "77"], "no such checkpoint"),
        ("lora", ["--merge", "--base", "nowhere"], "neither a directory nor a hub id"),
    ],
)
def test_wrong_use_is_one_line(folder, tmp_path, capsys, which, options, message):
    arguments = ["--run", str(folder / which), "--to", str(tmp_path / "e"), *options]
    assert export.main(arguments) == 2
    error = capsys.readouterr().err.strip()
    assert message in error and len(error.splitlines()) == 1 and not (tmp_path / "e").exists()


def test_merging_over_another_base_is_refused(folder, tmp_path, capsys):
    other = write_base(tmp_path / "other", SMALL, seed=1)
    arguments = ["--run", folder / "lora", "--to", tmp_path / "e", "--merge", "--base", other]
    assert export.main(list(map(str, arguments))) == 2
    assert "trained over another base model" in capsys.readouterr().err
    shutil.rmtree(other)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_checkpoint_is_not_exported(folder, tmp_path, capsys):
    """One bit of a weight: a model that loads, and is another."""
    shutil.copytree(folder / "full", tmp_path / "run")
    weights = tmp_path / "run" / "checkpoints" / "step-000001" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-2] ^= 1
    weights.write_bytes(content)
    assert export.main(["--run", str(tmp_path / "run"), "--to", str(tmp_path / "out")]) == 2
    assert "damaged (model.safetensors is not as it was written)" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_run_that_asks_otherwise_than_the_model_it_starts_from_says_so(folder, tmp_path, capsys):
    instruction = ["--instruction", "Who?", "--max-steps", 1]
    whole = exported(folder, tmp_path, "full")
    adapter = folder / "lora" / "checkpoints" / "step-000002"
    run(tmp_path, "--model", whole, "--data", folder / "rows.jsonl", out="same")
    assert "was trained with" not in capsys.readouterr().err
    start = ["--model", folder / "base", "--tune", "lora", "--adapter", adapter]
    for given, name in ((["--model", whole], whole), (start, adapter)):
        run(
            tmp_path, *given, "--data", folder / "rows.jsonl", *instruction, out=f"from-{name.name}"
        )
        said = (
            "was trained with --instruction 'Summarize the document in one sentence.', now 'Who?'"
        )
        assert f"warning: {name} {said}\n" in capsys.readouterr().err
