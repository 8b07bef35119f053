"""Rates and the time left, measured between two lines."""

import re
import time

import pytest
import torch
from commands import words
from run_files import lines

from deepsynth_min import train
from deepsynth_min.runs.metrics import Meter, time_text
from deepsynth_min.runs.storage.run_directory import RunDirectory
from deepsynth_min.training.distributed import World
from deepsynth_min.training.optim import LossScaler


def test_a_log_file_has_the_rate_and_the_time_left(tmp_path, capsys):
    given = words(
        "--model tiny --tune lora --batch-size 2 --max-steps 6 --log-every 2 --val-samples 1 "
        "--answer-samples 0 --ablation-samples 0 --eval-every 0 --save-every 0 --out {}",
        tmp_path / "r",
    )
    assert train.main(given) == 0
    found = re.findall(
        r"step +(\d) of 6: loss [\d.]+, ([\d.]+) samples/s(?:, (\d+) s left)?\n",
        capsys.readouterr().out,
    )
    assert [step for step, _, _ in found] == ["2", "4", "6"]
    for (step, rate, left), line in zip(found, lines(tmp_path / "r", "train"), strict=True):
        assert float(rate) == pytest.approx(line["samples_per_s"], rel=0.01)
        expected = (6 - int(step)) * 2 / line["samples_per_s"]
        assert left == "" if step == "6" else abs(int(left) - expected) <= 1


def test_steps_before_a_resume_are_not_part_of_the_rate(tmp_path):
    """Nor is the time of an evaluation, which is part of the time left."""
    directory = RunDirectory(str(tmp_path / "r"), "none")
    directory.path.mkdir()
    meter = Meter(World(0, 1, torch.device("cpu")), directory, global_batch=10, rows=100)
    meter.start([[5.0, 4.0]] * 3)
    for _ in range(2):
        time.sleep(0.1)
        meter.add(torch.tensor(5.0), torch.tensor(1.0), 4.0, [], 0)
    meter.paused(lambda: time.sleep(0.4))
    loss = meter.log(5, 1e-4, LossScaler(False, torch.device("cpu")))
    assert loss == 1.25 and 50 < meter.rate <= 100  # with the steps before it would be 250
    assert meter.line(5, 205, loss).startswith("step      5 of 205: loss 1.2500, ")
    minutes = re.search(r"samples/s, (\d) min left$", meter.line(5, 605, loss))
    assert minutes[1] in "34"  # 600 steps of 0.1 s and 0.2 s, or a little more


@pytest.mark.parametrize(
    "seconds, text",
    [(0.4, "0 s"), (59.4, "59 s"), (90, "2 min"), (3599, "1 h 0 min"), (7800, "2 h 10 min")]
    + [(86_400, "1 d 0 h"), (273_600, "3 d 4 h")],
)
def test_durations_are_told_in_their_largest_units(seconds, text):
    assert time_text(seconds) == text
