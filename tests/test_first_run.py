"""What a run without arguments promises: it learns new documents, and shows what came of it."""

import json
import tomllib
from pathlib import Path

import pytest
import torch
from commands import TRAIN, python
from run_files import lines

from deepsynth_min import train
from deepsynth_min.corpus import notices
from deepsynth_min.options import change
from deepsynth_min.reports.page import page as render_report
from deepsynth_min.settings import Settings
from deepsynth_min.training.build import resolve
from deepsynth_min.training.distributed import World

ONE = World(0, 1, torch.device("cpu"))
HELD_OUT = notices.documents("val")


def answers(run: Path, which: str) -> list[dict]:
    return [json.loads(line) for line in (run / f"answers/{which}.jsonl").open(encoding="utf-8")]


@pytest.fixture(scope="module")
def short(tmp_path_factory) -> tuple[Path, str]:
    """(the first steps of such a run, what it printed)."""
    out = tmp_path_factory.mktemp("run") / "r"
    few = "--max-steps 4 --batch-size 2 --val-samples 5 --answer-samples 4 --ablation-samples 0"
    few += " --beams 1 --threads 1"
    done = python(*TRAIN, *few.split(), "--out", out, check=True)
    assert "rouge" not in done.stderr
    return out, done.stdout


def test_its_settings_are_those_that_the_help_names(short):
    given = resolve(Settings(), len(notices.documents("train")), ONE)
    assert (given.model.model, given.data.data) == ("tiny-reader", ("embedded:notices",))
    assert (given.optim.lr, given.evaluation.answer_samples) == (1.5e-3, 32)
    other = resolve(change(Settings(), model="some/model", answer_samples=0), 80, ONE)
    assert (other.optim.lr, other.evaluation.answer_samples, other.generation.beams) == (2e-5, 0, 1)
    assert resolve(change(Settings(), model="tiny"), 80, ONE).evaluation.answer_samples == 8
    written = tomllib.loads((short[0] / "config.toml").read_text("utf-8"))
    assert written["data"]["data"] == ["embedded:notices"]
    assert written["resolved"]["lr"] == 1.5e-3


def test_it_ends_with_three_held_out_documents_their_answers_before_and_after(short):
    out, printed = short
    first, last = answers(out, "first"), answers(out, "last")
    assert [a["step"] for a in first] == [0] * 4 and [a["step"] for a in last] == [4] * 4
    blocks = printed.split("\nheld-out row ")[1:]
    assert len(blocks) == 3
    for number, block in enumerate(blocks):
        pairs = (line.partition(":") for line in block.splitlines()[1:5])
        said = {name.strip(): text.strip() for name, _, text in pairs}
        document = HELD_OUT[number]
        assert block.startswith(f"{number}: {out}/pages/held-out-{number}.png\n")
        assert said["document"].split(" / ") == list(filter(None, document.text.split("\n")))
        assert said["reference"] == document.summary
        assert said["before"].split() == first[number]["answer"].split()
        assert said["after"].split() == last[number]["answer"].split()
    assert "ROUGE-L" in printed and "rougeL" in lines(out, "eval")[0]


def test_its_report_shows_the_same_beside_all_the_pages_of_each(short):
    report = (short[0] / "report.html").read_text("utf-8")
    compared = report.split("Before and after: steps 0 and 4</h3>")[1].split("<h3>")[0]
    blocks = compared.split('<div class="answer">')[1:]
    assert len(blocks) == 3
    for number, block in enumerate(blocks):
        assert block.count("<img") == 1 and f"held-out-{number}.png" in block
        for name in ("before", "after", "reference"):
            assert f"<b>{name}</b>" in block
    assert report == render_report(short[0])


@pytest.mark.slow
def test_it_learns_documents_that_it_has_never_seen(tmp_path):
    """The whole run: a minute or so on two idle cores."""
    assert train.main(["--out", str(tmp_path / "r")]) == 0
    first, last = lines(tmp_path / "r", "eval")[0], lines(tmp_path / "r", "eval")[-1]
    assert last["loss"] <= first["loss"] / 10
    assert first["answers"] == last["answers"] == 32
    assert first["rougeL"] <= 0.4 and last["rougeL"] >= 0.9 and last["exact_match"] >= 0.6
    assert last["reads/shuffled"] > 1
