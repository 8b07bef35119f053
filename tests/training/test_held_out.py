"""Runs that hold nothing out, and what a run says of settings that do not fit its data."""

import json
from pathlib import Path

import pytest
from commands import words
from run_files import lines

from deepsynth_min import check, evaluate, export, report, train

QUICK = (
    "--model tiny --tune lora --val-samples 1 --ablation-samples 0 --answer-samples 0 "
    "--max-new-tokens 4 --log-every 1 "
)


def run(out: Path, data: Path, more: str) -> int:
    return train.main([*words(QUICK + more), *words("--data {} --out {}", data, out)])


@pytest.fixture(scope="module")
def nothing_held_out(tmp_path_factory, jsonl) -> Path:
    """A run of one step, taken up for another, over all 24 rows."""
    out = tmp_path_factory.mktemp("run") / "r"
    for more in ("--max-steps 1", "--max-steps 2 --resume auto"):
        assert run(out, jsonl, f"--val-fraction 0 --batch-size 2 {more}") == 0
    return out


def test_with_a_fraction_of_0_every_row_trains_and_none_is_scored(nothing_held_out):
    assert [line["step"] for line in lines(nothing_held_out)] == [1, 2]  # of training alone
    newest = nothing_held_out / "checkpoints" / "step-000002"
    assert json.loads((newest / "training.json").read_text())["rows"] == 24
    assert not (nothing_held_out / "best").exists()


def test_such_a_run_has_a_report_and_can_be_exported(nothing_held_out, tmp_path):
    assert report.main([str(nothing_held_out), "--out", str(tmp_path / "a.html")]) == 0
    assert export.main(words("--run {} --to {}", nothing_held_out, tmp_path / "a")) == 0


def test_evaluating_such_a_run_needs_data(nothing_held_out, jsonl, capsys):
    assert evaluate.main(["--run", str(nothing_held_out)]) == 2
    assert "holds nothing out (--val-fraction 0); give --data" in capsys.readouterr().err
    more = words("--ablation-samples 0 --answer-samples 0 --limit 2 --data {}", jsonl)
    assert evaluate.main(["--run", str(nothing_held_out), *more]) == 0
    assert json.loads(capsys.readouterr().out)["samples"] == 2


def test_the_check_of_the_data_says_that_such_a_training_would_start(jsonl, capsys):
    given = words("--model tiny --val-fraction 0 --html none --workers 1 --data {}", jsonl)
    assert check.main(given) == 0
    printed = capsys.readouterr().out
    assert "nothing is held out (--val-fraction 0)" in printed and "would start" in printed


@pytest.mark.parametrize("more", ["--patience 2", "--best cer --answer-samples 1"])
def test_what_needs_evaluations_is_refused_where_nothing_is_held_out(tmp_path, jsonl, capsys, more):
    assert run(tmp_path / "r", jsonl, f"--val-fraction 0 {more}") == 2
    error = capsys.readouterr().err
    assert f"error: {more.split()[0]}: nothing is held out (--val-fraction 0)" in error
    assert not (tmp_path / "r").exists()


def test_patience_without_evaluations_is_refused(tmp_path, jsonl, capsys):
    assert run(tmp_path / "r", jsonl, "--patience 2 --eval-every 0") == 2
    assert "error: --patience: counts evaluations, and --eval-every 0" in capsys.readouterr().err


def test_a_step_of_more_samples_than_there_are_rows_is_warned_of(tmp_path, jsonl, capsys):
    few = "--val-fraction 0.5 --batch-size 3 --accumulate 6 --max-steps 1"
    assert run(tmp_path / "r", jsonl, f"{few} --ablation-samples 0 --mode 128") == 0
    printed = capsys.readouterr().out
    assert (
        "warning: a step has 18 samples, the data 12 rows: each comes 1.5 times in a step"
        in printed
    )


def test_a_run_in_place_of_a_checkpoint_is_its_newest_one(
    nothing_held_out, tmp_path, jsonl, capsys
):
    for number, path in enumerate((nothing_held_out, nothing_held_out / "checkpoints")):
        more = f"--val-fraction 0 --batch-size 2 --max-steps 2 --resume {path}"
        assert run(tmp_path / str(number), jsonl, more) == 0
        newest = nothing_held_out / "checkpoints" / "step-000002"
        assert f"resuming after step 2 from {newest}\n" in capsys.readouterr().out


def test_a_folder_that_holds_no_checkpoint_is_told_so(tmp_path, jsonl, capsys):
    (tmp_path / "folder").mkdir()
    assert run(tmp_path / "r", jsonl, f"--resume {tmp_path / 'folder'}") == 2
    assert "neither a checkpoint nor a run that has one" in capsys.readouterr().err
