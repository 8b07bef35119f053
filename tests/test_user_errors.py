"""A user's mistake: exit code 2, one clear line, and nothing is written."""

import json
import os
import shutil
from pathlib import Path

import pytest
from golden import GOLDEN
from safetensors.torch import load_file, save_file

from deepsynth_min import evaluate, export, generate, report, train
from deepsynth_min.data.tokenizer import EMBEDDED
from deepsynth_min.errors import UserError
from deepsynth_min.runs.storage.run_directory import find_run_checkpoint
from deepsynth_min.training.checkpoint import base_files

ROW = '{"text": "A document.", "summary": "Its answer."}\n'


def fails(capsys, tmp_path, *arguments) -> str:
    """Runs the trainer, which must refuse; returns its one line."""
    out = tmp_path / "new-run"
    assert train.main(["--out", str(out), "--max-steps", "1", *map(str, arguments)]) == 2
    assert not out.exists()
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ")
    return lines[0]


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "rows.jsonl: no such file"),
        ("", "rows.jsonl: no rows"),
        (ROW + "{oops\n", "rows.jsonl:2: not JSON"),
        (ROW * 2 + '{"text": "a"}\n', "rows.jsonl:3: no field 'summary'"),
        (ROW + '{"text": "", "summary": "a"}\n', "rows.jsonl:2: field 'text' is empty"),
    ],
)
def test_wrong_data(capsys, tmp_path, content, message):
    path = tmp_path / "rows.jsonl"
    if content is not None:
        path.write_text(content)
    assert message in fails(capsys, tmp_path, "--data", path)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--no-such-setting", "1"], "unknown setting --no-such-setting"),
        (["--mode", "100"], "--mode: '100' is neither"),
        (["--model", "no-such-preset"], "no-such-preset: neither a directory nor a hub id"),
        (["--device", "gpu7"], "--device gpu7"),
        (["--device", "meta"], "--device meta"),
        (["--device", "cpu:7"], "--device cpu:7"),
        (["--device", "cuda:999"], "--device cuda:999"),
        (["--font", "/no/such.ttf"], "/no/such.ttf"),
        (["--margin", "200"], "margin"),
        (["--resume", "/no/such/checkpoint"], "--resume /no/such/checkpoint"),
        (["--config", "/no/such.toml"], "/no/such.toml"),
        (["--model", "a\nb\x1b[2J"], r"a\nb\x1b[2J: neither a directory nor a hub id"),
        (["--model", "x" * 5000], "x: neither a directory nor a hub id"),
    ],
)
def test_wrong_settings(capsys, tmp_path, arguments, message):
    assert message in fails(capsys, tmp_path, *arguments)


@pytest.mark.parametrize("name", ["a\0b", "\ud800", "x" * 300, "x/" * 3000])
def test_a_run_directory_that_cannot_be_is_refused_before_anything_is_built(capsys, name):
    assert train.main(["--out", name]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --out") and error.count("\n") == 1 and len(error) < 1200


@pytest.mark.parametrize("which", ["9" * 5000, "²", "x" * 5000, "../best", "last", "best"])
def test_a_checkpoint_that_a_run_does_not_have_is_refused(tmp_path, which):
    (tmp_path / "last").write_bytes(b"\xff")
    (tmp_path / "best").write_text("x" * 5000)
    with pytest.raises(UserError):
        find_run_checkpoint(tmp_path, which)


def test_only_files_are_copied_from_a_model_directory(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "dangling.json").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe.txt")
    assert [file.name for file in base_files(tmp_path)] == ["config.json"]


@pytest.mark.parametrize(
    "command, arguments",
    [(command, ["--no-such\noption", "1"]) for command in (evaluate, export, generate, report)]
    + [
        (train, ["--resume", "x" * 5000]),
        (evaluate, ["--run", "x" * 5000]),
        (generate, ["--run", "x" * 5000]),
        (export, ["--run", "x" * 5000, "--to", "y"]),
        (report, ["x" * 5000]),
    ],
)
def test_every_command_answers_a_mistake_with_one_line(capsys, command, arguments):
    assert command.main(arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ")


def test_a_directory_that_holds_another_run_is_left_as_it_is(capsys, tmp_path):
    (tmp_path / "config.toml").write_text("mine")
    assert train.main(["--out", str(tmp_path), "--max-steps", "1"]) == 2
    assert "already holds files" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["config.toml"]
    assert (tmp_path / "config.toml").read_text() == "mine"


@pytest.fixture
def checkpoint(tmp_path):
    """A model directory: the golden weights, the embedded tokenizer."""
    path = tmp_path / "model"
    path.mkdir()
    for file in (GOLDEN / "config.json", GOLDEN / "model.safetensors", *EMBEDDED.glob("*.json")):
        shutil.copyfile(file, path / file.name)
    return path


def change_weights(checkpoint: Path, change) -> None:
    tensors = load_file(checkpoint / "model.safetensors")
    change(tensors)
    save_file(tensors, checkpoint / "model.safetensors")


def test_every_tensor_that_does_not_fit_is_named(capsys, tmp_path, checkpoint):
    def change(tensors):
        tensors["model.extra.weight"] = tensors.pop("model.layers.1.mlp.gate.weight")
        wrong = "model.layers.2.mlp.experts.7.up_proj.weight"
        tensors[wrong] = tensors[wrong][:, :-1].contiguous()

    change_weights(checkpoint, change)
    line = fails(capsys, tmp_path, "--model", checkpoint)
    assert "1 missing: model.layers.1.mlp.gate.weight" in line
    assert "1 unknown: model.extra.weight" in line
    assert "model.layers.2.mlp.experts.7.up_proj.weight is [40, 63], not [40, 64]" in line


@pytest.mark.parametrize(
    "file, content, message",
    [
        ("model.safetensors", b"\x00" * 100, "not a safetensors file"),
        ("config.json", b"{", "config.json: not JSON"),
        ("config.json", b"[]", "not a JSON object"),
        ("config.json", b"{}", "no language_config"),
        ("model.safetensors", None, "neither model.safetensors nor"),
        ("config.json", None, "config.json: no such file"),
        ("tokenizer.json", None, "no tokenizer.json"),
        ("tokenizer.json", b"{}", "tokenizer.json"),
    ],
)
def test_a_damaged_model_directory(capsys, tmp_path, checkpoint, file, content, message):
    (checkpoint / file).unlink()
    if content is not None:
        (checkpoint / file).write_bytes(content)
    assert message in fails(capsys, tmp_path, "--model", checkpoint)


def test_an_adapter_or_a_run_in_the_place_of_a_model_is_told_apart(capsys, tmp_path):
    line = fails(capsys, tmp_path, "--model", GOLDEN / "adapter")
    assert "golden/adapter: an adapter, not a model; give its base, and it as --adapter" in line
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "config.toml").write_text("")
    line = fails(capsys, tmp_path, "--model", tmp_path / "run")
    assert line.endswith(f"run: a run, not a model; its models are in {tmp_path}/run/checkpoints")


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("use_mla", True, "use_mla = True is not supported"),
        ("topk_method", "group_limited_greedy", "is not supported"),
        ("hidden_size", "64", "hidden_size = '64' is not a whole number"),
        ("num_experts_per_tok", 99, "num_experts_per_tok must lie in"),
    ],
)
def test_a_configuration_that_this_code_does_not_implement(
    capsys, tmp_path, checkpoint, key, value, message
):
    path = checkpoint / "config.json"
    config = json.loads(path.read_text())
    config["language_config"][key] = value
    path.write_text(json.dumps(config))
    assert message in fails(capsys, tmp_path, "--model", checkpoint)


def test_a_tokenizer_that_is_too_large_for_the_model(capsys, tmp_path, checkpoint):
    assert "vocabulary 320" in fails(capsys, tmp_path, "--model", checkpoint)
