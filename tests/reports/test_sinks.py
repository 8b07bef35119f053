"""Sinks repeat metrics.jsonl, and are not there unless asked for."""

import pytest
from commands import python
from run_files import lines

from deepsynth_min import train
from deepsynth_min.reports import sinks

COMMON = (
    "--model tiny --max-steps 2 --batch-size 1 --val-samples 1 --log-every 1 "
    "--answer-samples 0 --ablation-samples 0 --threads 1"
).split()


def test_tensorboard_gets_every_figure_of_the_metrics(tmp_path):
    pytest.importorskip("tensorboard")  # extra [log]
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out = tmp_path / "r"
    assert train.main([*COMMON, "--tensorboard", "--out", str(out)]) == 0
    events = EventAccumulator(str(out / "tensorboard"))
    events.Reload()
    found = {
        (name, event.step): event.value
        for name in events.Tags()["scalars"]
        for event in events.Scalars(name)
    }
    expected = {}
    for line in lines(out):
        kind, step = line.pop("kind"), line.pop("step")
        expected |= {
            (f"{kind}/{name}", step): value
            for name, value in line.items()
            if not isinstance(value, list)
        }
    assert found == pytest.approx(expected, rel=1e-6) and ("eval/reads/blank", 2) in found


def test_without_being_asked_for_neither_package_is_imported():
    code = (
        "import sys, deepsynth_min.train; "
        "print([m for m in sys.modules if m.split('.')[0] in ('tensorboard', 'wandb')])"
    )
    done = python("-c", code, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("option", [["--tensorboard"], ["--wandb", "project"]])
def test_a_package_that_is_missing_is_named_before_anything_is_written(
    tmp_path, capsys, monkeypatch, option
):
    monkeypatch.setitem(sinks.NEEDS, option[0][2:], "no_such_package_anywhere")
    assert train.main([*COMMON, *option, "--out", str(tmp_path / "r")]) == 2
    line = capsys.readouterr().err.strip()
    assert line == f"error: {option[0]}: not installed: pip install 'deepsynth-min[log]'"
    assert not (tmp_path / "r").exists()
