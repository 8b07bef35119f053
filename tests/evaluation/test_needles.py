"""Facts in long documents: accuracy by depth and length, from answers to the report's heat map."""

import json
import re
from pathlib import Path

import pytest
from commands import ranks, words
from run_files import lines

from deepsynth_min import evaluate, train
from deepsynth_min.evaluation import needles
from deepsynth_min.reports.page import page
from deepsynth_min.reports.runs import Run

PLACES = [f"needle/{d}/{n}" for d in ("0", "0.25", "0.5", "0.75", "1") for n in (200, 400)]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A few steps of tiny-reader: some answers are right, and some are not."""
    out = tmp_path_factory.mktemp("needles") / "r"
    few = "--data embedded:needles@200,400 --max-steps 24 --batch-size 8 --ablation-samples 0"
    few += " --beams 1 --max-new-tokens 8 --threads 1 --val-samples 20 --answer-samples 20"
    assert train.main([*words(few), "--out", str(out)]) == 0
    return out


def counted(answers: list[dict]) -> dict[str, float]:
    """The same figures from the answers and where their rows stand in the corpus alone."""
    found: dict[str, list[bool]] = {}
    for a in answers:
        depth, length = a["number"] % 5 / 4, (200, 400)[a["number"] // 5 % 2]
        right = a["answer"].strip() == a["reference"]
        found.setdefault(f"needle/{depth:g}/{length}", []).append(right)
    return {name: sum(right) / len(right) for name, right in found.items()}


@pytest.mark.slow
def test_accuracy_by_place_is_the_share_of_exact_answers_there(run):
    last = lines(run, "eval")[-1]
    figures = {name: value for name, value in last.items() if name.startswith("needle/")}
    assert figures == counted(Run(run, 0).answers(24, "last")) and set(figures) == set(PLACES)
    assert sum(figures.values()) / len(figures) == pytest.approx(last["exact_match"])
    assert 0 < last["exact_match"] < 1


def test_rows_without_needles_have_no_such_figures():
    assert needles.accuracy([(0.0, 0), (0.0, 0)], [1.0, 0.0]) == {}
    mixed = needles.accuracy([(0.0, 0), (0.25, 500), (0.25, 500)], [0.0, 1.0, 0.0])
    assert mixed == {"needle/0.25/500": 0.5}
    assert needles.table(mixed).splitlines()[-1].split() == ["25%", "50%"]
    assert needles.table({"loss": 1.0}) == "" and needles.by_place({"needle/x": 1.0}) == {}


@pytest.mark.slow
def test_answers_show_the_question(run):
    answer = Run(run, 0).answers(24, "last")[7]
    assert re.fullmatch(r"What is the secret number of \w+\?", answer["instruction"])
    assert answer["instruction"] in (run / "report.html").read_text("utf-8")


@pytest.mark.slow
def test_evaluate_prints_a_line_for_each_depth_in_other_lengths(run, capsys):
    given = "--data embedded:needles@300,600 --val-samples 10 --answer-samples 10"
    assert evaluate.main(["--run", str(run), *words(given)]) == 0
    printed = capsys.readouterr()
    figures = json.loads(printed.out.splitlines()[-1])
    rows = [line.split() for line in printed.err.splitlines() if re.match(r"\d+% ", line)]
    assert [row[0] for row in rows] == ["0%", "25%", "50%", "75%", "100%"]
    for depth, row in zip((0, 0.25, 0.5, 0.75, 1), rows):
        assert row[1:] == [f"{figures[f'needle/{depth:g}/{n}']:.0%}" for n in (300, 600)]


@pytest.mark.slow
def test_the_report_has_a_heat_map_before_and_after_with_a_number_in_each_cell(run):
    section = page(run).split("<h2>Facts in long documents</h2>")[1].split("<h2>")[0]
    first, last = section.split("<figure>")[1:]
    for figure, line in zip((first, last), (lines(run, "eval")[0], lines(run, "eval")[-1])):
        shown = re.findall(r"<title>(.*?): [\d.]+%</title>.*?>(\d+%)</text></g>", figure)
        assert len(shown) == len(PLACES)
        for where, percent in shown:
            depth, length = re.fullmatch(
                r"depth of the fact (\d+)%, length .* (\d+)", where
            ).groups()
            assert percent == f"{line[f'needle/{int(depth) / 100:g}/{length}']:.0%}"
    assert "needle/" not in page(run).split("<h2>Figures</h2>")[1].split("<h2>")[0]


@pytest.mark.slow
def test_two_processes_count_the_same_by_place(run):
    printed = ranks(2, "-m", "deepsynth_min.evaluate", "--run", run, "--batch-size", 3)
    figures = json.loads(next(line for line in printed.splitlines() if line.startswith("{")))
    last = lines(run, "eval")[-1]
    assert {name: figures[name] for name in PLACES} == {name: last[name] for name in PLACES}
