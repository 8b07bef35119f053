"""Rates, utilisation and the time left, measured between two lines."""

import json
import re
import time

import pytest
import torch
from adapter_runs import run, write_base, write_rows
from commands import words
from run_files import lines
from small_model import SMALL
from small_steps import ragged_batch

from deepsynth_min import train
from deepsynth_min.data.samples import SampleBuilder
from deepsynth_min.model.deepseek_ocr import DeepseekOCR
from deepsynth_min.model.shape.flops import pages_flops
from deepsynth_min.runs.metrics import Meter, time_text
from deepsynth_min.runs.storage.run_directory import RunDirectory
from deepsynth_min.runs.utilisation import Work, batch_flops, device_rate
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
        r"step +(\d) of 6: loss [\d.]+, ([\d.]+) samples/s, MFU \d+%, data wait \d+%"
        r"(?:, (\d+) s left)?\n",
        capsys.readouterr().out,
    )
    assert [step for step, _, _ in found] == ["2", "4", "6"]
    for (step, rate, left), line in zip(found, lines(tmp_path / "r", "train"), strict=True):
        assert float(rate) == pytest.approx(line["samples_per_s"], rel=0.01)
        expected = (6 - int(step)) * 2 / line["samples_per_s"]
        assert left == "" if step == "6" else abs(int(left) - expected) <= 1


def test_steps_before_a_resume_are_not_part_of_the_rate(small_config, tmp_path):
    """Nor is the time of an evaluation, which is part of the time left."""
    directory = RunDirectory(str(tmp_path / "r"), "none")
    directory.path.mkdir()
    work = Work(DeepseekOCR(small_config), "decoder", 1e9, None)
    meter = Meter(World(0, 1, torch.device("cpu")), directory, 10, 100, work)
    meter.start([[5.0, 4.0]] * 3)
    for _ in range(2):
        time.sleep(0.1)
        meter.add(torch.tensor(5.0), torch.tensor(1.0), 4.0, [], 0)
    meter.paused(lambda: time.sleep(0.4))
    loss = meter.log(5, 1e-4, LossScaler(False, torch.device("cpu")))
    assert loss == 1.25 and 50 < meter.rate <= 100  # with the steps before it would be 250
    assert meter.line(5, 205, loss).startswith("step      5 of 205: loss 1.2500, ")
    minutes = re.search(r", (\d) min left$", meter.line(5, 605, loss))
    assert minutes[1] in "34"  # 600 steps of 0.1 s and 0.2 s, or a little more


def test_utilisation_is_the_steps_flops_over_their_time_and_the_devices_rate(
    small_config, tmp_path
):
    directory = RunDirectory(str(tmp_path / "r"), "none")
    directory.path.mkdir()
    model, batch = DeepseekOCR(small_config), ragged_batch()
    work = Work(model, "decoder", 1e9, None)
    meter = Meter(World(0, 1, torch.device("cpu")), directory, 3, 100, work)
    meter.start()
    began = time.perf_counter()
    meter.waiting(lambda: time.sleep(0.3))
    for _ in range(2):
        meter.add(torch.tensor([5.0]), torch.tensor(1.0), 4.0, [batch, batch], 0)
    meter.paused(lambda: time.sleep(0.3))  # no time of training
    meter.log(2, 1e-4, LossScaler(False, torch.device("cpu")))
    longest = time.perf_counter() - began - 0.3
    (line,) = lines(tmp_path / "r", "train")
    assert line["model_flops"] == 4 * batch_flops(small_config, "decoder", batch)
    assert line["model_flops"] / longest / 1e9 <= line["mfu"] < line["model_flops"] / 0.3 / 1e9
    assert 0.3 / longest <= line["data_wait_share"] <= 1 and line["data_wait_s"] >= 0.3
    assert f"MFU {line['mfu']:.0%}, data wait {line['data_wait_share']:.0%}" in meter.line(2, 2, 1)


def test_pages_whose_features_are_known_are_not_counted(tmp_path):
    """Two epochs of rows of a page each, in the second of which the encoder reads nothing."""
    write_base(tmp_path / "base", SMALL)
    rows = [json.dumps({"text": f"Number {i}.", "summary": f"{i}"}) for i in range(6)]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    more = "--val-fraction 0 --bucket 0 --mode 128"
    steps = words(f"--max-steps 6 --eval-every 0 --save-every 0 {more}")
    found = {}
    for name in ("memory", "off"):
        out = run(tmp_path, *steps, "--feature-cache", name, out=name)
        found[name] = [line["model_flops"] for line in lines(out, "train")]
    assert found["memory"][:3] == found["off"][:3]
    read = 6 * pages_flops(SMALL, "decoder", {128: 1})
    assert sum(found["off"][3:]) - sum(found["memory"][3:]) == read


def test_a_loader_that_is_slow_shows_as_data_wait(tmp_path, monkeypatch):
    make = SampleBuilder.__call__

    def slowly(self, *given):
        time.sleep(0.2)
        return make(self, *given)

    write_base(tmp_path / "base", SMALL)
    write_rows(tmp_path / "rows.jsonl")
    steps = words("--max-steps 4 --log-every 4 --eval-every 0 --save-every 0 --mode 128")
    (quick,) = lines(run(tmp_path, *steps, out="quick"), "train")
    monkeypatch.setattr(SampleBuilder, "__call__", slowly)
    (slow,) = lines(run(tmp_path, *steps, out="slow"), "train")
    assert slow["data_wait_s"] > quick["data_wait_s"] and slow["data_wait_share"] > 0.5


def test_measuring_the_device_leaves_the_runs_random_numbers_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    device_rate.__globals__["_rate"].cache_clear()
    rate = device_rate(torch.device("cpu"), "fp32")
    assert torch.equal(torch.get_rng_state(), before)
    assert 1e8 < rate < 1e14


@pytest.mark.parametrize(
    "seconds, text",
    [(0.4, "0 s"), (59.4, "59 s"), (90, "2 min"), (3599, "1 h 0 min"), (7800, "2 h 10 min")]
    + [(86_400, "1 d 0 h"), (273_600, "3 d 4 h")],
)
def test_durations_are_told_in_their_largest_units(seconds, text):
    assert time_text(seconds) == text
