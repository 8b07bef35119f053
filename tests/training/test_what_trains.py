"""Runs in which the encoder trains, or an adapter on it, at a rate of its own: real runs, resumed,
evaluated, exported."""

import shutil

import pytest
import torch
from adapter_runs import QUICK, run, write_base, write_rows
from commands import words
from run_files import lines, losses
from safetensors.torch import load_file
from small_model import SMALL

from deepsynth_min import evaluate, export, train
from deepsynth_min.tuning.adapter import TENSORS

RUNS = {
    "whole": "--tune all-but-sam --precision bf16 --lr-encoder 0.001 --lr-projector 0.02",
    "adapter": "--tune projector+lora --lora-targets attention encoder --lr-encoder 0.05 "
    "--lora-plus-ratio 4",
    "quantised": r"--tune qlora --lora-targets attention re:vision_model\..*(qkv_proj|fc1) "
    "--precision bf16",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trains")
    write_base(folder / "base", SMALL)
    write_rows(folder / "rows.jsonl")
    for name, options in RUNS.items():
        run(folder, *words(options), "--max-steps", 6, "--save-every", 3, out=name)
    return folder


def newest(folder, name):
    return folder / name / "checkpoints" / "step-000006"


def test_the_encoder_trains_and_sam_does_not(folder):
    base = load_file(folder / "base" / "model.safetensors")
    trained = load_file(newest(folder, "whole") / "model.safetensors")
    moved = {name for name in base if not torch.equal(base[name].float(), trained[name].float())}
    assert not any("sam_model" in name for name in moved)
    assert {name for name in base if "vision_model.transformer" in name} <= moved


def test_the_adapter_holds_pairs_of_the_encoder(folder):
    for name, parts in (("adapter", ("sam", "vision")), ("quantised", ("vision",))):
        held = load_file(newest(folder, name) / TENSORS)
        for part in ("sam", "vision"):
            own = [t for n, t in held.items() if f"{part}_model" in n and ".lora_B." in n]
            assert bool(own) == (part in parts) and all(t.any() for t in own)


@pytest.mark.parametrize("name", RUNS)
def test_evaluating_a_checkpoint_gives_the_logged_loss(folder, name):
    result = evaluate.run(["--run", str(folder / name)])
    assert abs(result["loss"] - losses(folder / name)[-1]) < 1e-6


@pytest.mark.parametrize("name", RUNS)
def test_a_resumed_run_ends_with_the_same_bytes(folder, tmp_path, name):
    stopped = shutil.copytree(folder / name, tmp_path / "stopped")
    shutil.rmtree(stopped / "checkpoints" / "step-000006")
    assert train.main(["--out", str(stopped), "--resume", "auto"]) == 0
    for whole in newest(folder, name).glob("*.safetensors"):
        a, b = load_file(whole), load_file(stopped / "checkpoints" / "step-000006" / whole.name)
        assert a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a), whole.name


@pytest.mark.parametrize("name", ["adapter", "quantised"])
def test_a_merged_export_answers_as_the_run(folder, tmp_path, capsys, name):
    """The export's own check compares logits; the loss here is of rows."""
    to = tmp_path / "merged"
    given = words("--run {} --to {} --merge --dtype float32", folder / name, to)
    assert export.main(given) == 0
    result = evaluate.run(words("--model {} --data {}", to, folder / "rows.jsonl"))
    expected = evaluate.run(words("--run {} --data {}", folder / name, folder / "rows.jsonl"))
    assert result["loss"] == pytest.approx(
        expected["loss"], abs=1e-4 if name == "adapter" else 0.02
    )
    assert export.main(words("--run {} --to {}", folder / name, tmp_path / "adapter")) == 0
    assert "PEFT reads it over the official modules" in capsys.readouterr().out


def test_the_rates_are_announced_and_another_one_may_be_given_when_resumed(
    folder, tmp_path, capsys
):
    stopped = shutil.copytree(folder / "adapter", tmp_path / "stopped")
    given = words("--out {} --resume auto --max-steps 7 --lr-projector 0.02", stopped)
    assert train.main(given) == 0
    told = capsys.readouterr().out
    assert "peak learning rate 0.01, of the projector 0.02, of the encoder 0.05" in told
    rates = [line["lr"] for line in lines(stopped, "train")]
    assert max(rates) == pytest.approx(0.01) and rates[-1] == pytest.approx(0.001)


@pytest.mark.parametrize(
    "options, message",
    [
        ("--lr-encoder 0.1", "--lr-encoder 0.1: none of its parameters trains"),
        ("--lora-targets encoder --feature-cache memory", "--feature-cache: not with an adapter"),
        ("--lora-targets vision_model.*.q_proj", "fits no linear of the encoder"),
    ],
)
def test_what_cannot_be_is_one_line(folder, tmp_path, capsys, options, message):
    given = words("--model {} --data {} --tune lora", folder / "base", folder / "rows.jsonl")
    assert train.main([*given, *QUICK, *words(options), "--out", str(tmp_path / "r")]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error and len(error.splitlines()) == 1
    assert not (tmp_path / "r").exists()
