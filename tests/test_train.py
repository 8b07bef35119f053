"""The main job, run as a user runs it."""

import json
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
import torch
from adapter_runs import write_base
from commands import TRAIN, python, torchrun, words
from run_files import lines, losses, weights
from small_model import SMALL

from deepsynth_min import evaluate, train
from deepsynth_min.model.deepseek_ocr import DeepseekOCR
from deepsynth_min.model.shape.presets import PRESETS

QUICK = (
    "--model tiny --batch-size 2 --val-samples 4 --log-every 1 --answer-samples 1 "
    "--max-new-tokens 4"
).split()
REPORTS = ["--data", "embedded"]


def run(*arguments, out: Path) -> int:
    return train.main([*QUICK, "--out", str(out), *map(str, arguments)])


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A run of 6 steps on the embedded corpus, shared by the tests that only look at it."""
    out = tmp_path_factory.mktemp("run") / "r"
    options = words("--save-every 2 --eval-every 3 --lr 0.01")
    assert run(*REPORTS, "--max-steps", 6, *options, out=out) == 0
    return out


def test_the_run_directory_is_as_documented(finished):
    names = sorted(path.name for path in finished.iterdir())
    assert names == [
        "answers",
        "best",
        "checkpoints",
        "config.toml",
        "last",
        "metrics.jsonl",
        "pages",
        "report.html",
        "status.json",
    ]
    assert (finished / "last").read_text() == "step-000006\n"
    assert [p.name for p in sorted((finished / "checkpoints").iterdir())][-2:] == [
        "step-000004",
        "step-000006",
    ]
    kept = {"best.jsonl", "first.jsonl", "last.jsonl"}
    assert {path.name for path in (finished / "answers").iterdir()} == kept
    for page in (finished / "pages").iterdir():
        assert page.read_bytes().startswith(b"\x89PNG")
    settings = tomllib.loads((finished / "config.toml").read_text("utf-8"))
    assert settings["optim"]["max_steps"] == 6 and settings["data"]["data"] == ["embedded"]
    assert sum(len(table) for table in settings.values()) > 40


def test_each_logging_step_has_a_line_with_the_documented_fields(finished):
    found = lines(finished, "train")
    assert [line["step"] for line in found] == [1, 2, 3, 4, 5, 6]
    fields = {
        "step",
        "epoch",
        "samples",
        "loss",
        "lr",
        "grad_norm",
        "samples_per_s",
        "tokens_per_s",
        "peak_memory_bytes",
        "data_wait_s",
    }
    assert all(fields <= line.keys() for line in found)
    assert found[-1]["samples"] == 12 and found[-1]["epoch"] == pytest.approx(12 / 2400)
    assert [line["step"] for line in lines(finished, "eval")] == [0, 3, 6]


def test_the_held_out_loss_falls(finished):
    found = losses(finished)
    assert found[-1] < found[0] - 0.5


def test_the_checkpoint_gives_the_same_held_out_loss_in_a_new_process(finished):
    done = python("-m", "deepsynth_min.evaluate", "--run", finished, check=True)
    result = json.loads(done.stdout)
    logged = lines(finished, "eval")[-1]
    assert result["checkpoint"].endswith("step-000006")
    assert abs(result["loss"] - logged["loss"]) < 1e-6 and result["tokens"] == logged["tokens"]


def test_a_checkpoint_is_a_model_that_training_can_start_from(finished, tmp_path):
    checkpoint = finished / "checkpoints" / "step-000006"
    assert run(*REPORTS, "--model", checkpoint, "--max-steps", 1, out=tmp_path / "r") == 0
    before, after = lines(finished, "eval")[-1], lines(tmp_path / "r", "eval")[0]
    assert abs(before["loss"] - after["loss"]) < 1e-6


def test_the_frozen_weights_in_the_checkpoint_are_those_of_the_start(finished):
    torch.manual_seed(0)
    start, end = DeepseekOCR(PRESETS["tiny"]).state_dict(), weights(finished)
    for name in ("model.sam_model.net_2.weight", "model.projector.layers.weight"):
        assert start[name].equal(end[name])
    assert not start["lm_head.weight"].equal(end["lm_head.weight"])


def test_a_file_with_many_held_out_rows_is_trained_on_and_told_whether_it_is_read(tmp_path, jsonl):
    out = tmp_path / "r"
    assert run("--data", jsonl, "--val-fraction", 0.3, "--max-steps", 1, out=out) == 0
    last = lines(out, "eval")[-1]
    assert last["samples"] == 4 and "reads/shuffled" in last


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("tune", ["projector+decoder", "all"])
def test_every_policy_trains_in_every_precision(tmp_path, jsonl, tune, precision, capsys):
    base, out = write_base(tmp_path / "base", SMALL), tmp_path / "r"
    options = words("--max-steps 8 --lr 0.01 --balance 0.01 --val-samples 1 --data {}", jsonl)
    options += words("--model {} --tune {} --precision {}", base, tune, precision)
    assert run(*options, out=out) == 0
    assert "frozen parameters unchanged" in capsys.readouterr().out
    found = losses(out)
    assert found[-1] < found[0] - 0.05
    # Of what the device can do, which was measured by a product as the model's are.
    assert all(0 < line["mfu"] < 1 for line in lines(out, "train"))


def test_resuming_gives_the_metrics_and_weights_of_an_undisturbed_run(tmp_path, jsonl):
    common = words("--data {} --max-steps 6 --eval-every 0 --save-every 2 --val-samples 1", jsonl)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run(*common, out=whole) == 0
    assert run(*common, "--keep", 3, out=parts) == 0
    # As if it had been killed after writing the fourth step's metrics, before its checkpoint.
    for name in ("step-000004", "step-000006"):
        for file in (parts / "checkpoints" / name).iterdir():
            file.unlink()
        (parts / "checkpoints" / name).rmdir()
    assert run(*common, "--resume", "auto", out=parts) == 0
    names = ("step", "loss", "grad_norm", "lr")
    runs = [[[line[n] for n in names] for line in lines(o, "train")] for o in (whole, parts)]
    assert runs[0] == runs[1]
    ours, reference = weights(parts), weights(whole)
    assert all(ours[name].equal(reference[name]) for name in reference)


def test_a_run_gone_on_with_elsewhere_and_at_its_end_names_the_checkpoint_there_is(
    finished, tmp_path, capsys
):
    newest = finished / "checkpoints" / (finished / "last").read_text().strip()
    steps = int(newest.name.removeprefix("step-"))
    assert run(*REPORTS, "--max-steps", steps, "--resume", newest, out=tmp_path / "new") == 0
    assert f"checkpoint: {newest}\n" in capsys.readouterr().out
    assert run(*REPORTS, "--seed", 1, "--resume", newest, out=tmp_path / "other") == 2
    said = (
        "--seed 0, now 1; give the old value (--config FILE reads them from its run's config.toml)"
    )
    assert said in capsys.readouterr().err


def test_resuming_as_another_run_is_an_error(finished, capsys):
    before = (finished / "metrics.jsonl").read_bytes()
    code = run(*REPORTS, *words("--max-steps 8 --seed 1 --resume auto"), out=finished)
    assert code == 2
    assert "was trained with --seed 0, now 1; give the old value" in capsys.readouterr().err
    assert (finished / "metrics.jsonl").read_bytes() == before


@pytest.mark.slow  # Ctrl-C, which is heard in the same place, is not (test_stopping.py)
def test_sigterm_saves_and_ends_with_exit_code_0_and_the_run_can_go_on(tmp_path, jsonl):
    out = tmp_path / "r"
    common = words("--eval-every 0 --data {}", jsonl)
    command = [sys.executable, *TRAIN, *QUICK, *common, *words("--max-steps 500 --out {}", out)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not (out / "metrics.jsonl").exists() or len(lines(out, "train")) < 2:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and "stopped after step" in printed
    step = int((out / "last").read_text().strip().removeprefix("step-"))
    assert run(*common, "--max-steps", step + 1, "--resume", "auto", out=out) == 0
    assert [line["step"] for line in lines(out, "train")] == list(range(1, step + 2))


@pytest.mark.slow  # the same by its parts, and by torch's DDP: tests/training/test_distributed.py
def test_two_processes_do_what_one_process_does(tmp_path, jsonl):
    """Uneven answers, two micro-steps: same losses and weights as one process, up to rounding."""
    common = [*QUICK, *words("--data {} --max-steps 2 --val-samples 3", jsonl)]
    common += ["--lr", "2e-4"]  # with larger steps a router near a tie may choose otherwise
    one, two = tmp_path / "one", tmp_path / "two"
    assert train.main([*common, "--batch-size", "4", "--out", str(one)]) == 0
    done = torchrun(2, *TRAIN, *common, "--batch-size", 1, "--accumulate", 2, "--out", two)
    assert done.returncode == 0, done.stderr
    for kind in ("train", "eval"):
        for a, b in zip(lines(one, kind), lines(two, kind), strict=True):
            assert a["step"] == b["step"] and abs(a["loss"] - b["loss"]) < 2e-5
    ours, reference = weights(two), weights(one)
    worst = max((ours[n] - reference[n]).abs().max().item() for n in reference)
    assert worst < 1e-4  # two AdamW steps of 2e-4, whose direction is that of rounding near zero


@pytest.mark.slow
def test_a_users_mistake_under_torchrun_is_one_line_per_process(tmp_path):
    done = torchrun(2, *TRAIN, "--data", tmp_path / "none.jsonl", "--out", tmp_path / "r")
    assert done.returncode != 0 and not (tmp_path / "r").exists()
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert 1 <= len(errors) <= 2 and "none.jsonl: no such file" in errors[0]
    assert "Traceback" not in done.stderr.split("ChildFailedError")[0].split("torch/distributed")[0]


def test_evaluating_a_wrong_directory_or_checkpoint_is_exit_code_2(finished, tmp_path, capsys):
    assert evaluate.main(["--run", str(tmp_path)]) == 2
    assert evaluate.main(["--run", str(finished), "--checkpoint", "99"]) == 2
    assert evaluate.main(["--run", str(finished), "--checkpoint", "worst"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert ["not a run" in lines[0], "step-000099" in lines[1], "'worst'" in lines[2]] == [True] * 3
