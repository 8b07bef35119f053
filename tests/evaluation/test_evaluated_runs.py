"""Evaluation while a run trains and after it: patience, the best checkpoint, any model and data."""

import json
from statistics import mean

import jiwer
import pytest
from commands import ranks, torchrun, words
from run_files import lines

from deepsynth_min import evaluate, train

QUICK = (
    "--model tiny --batch-size 2 --val-samples 5 --max-new-tokens 3 --save-every 0 "
    "--eval-every 1 --threads 1 --data embedded"
).split()


def train_with(out, *arguments) -> list[dict]:
    """Runs the trainer; returns its evaluations."""
    assert train.main([*QUICK, "--out", str(out), *map(str, arguments)]) == 0
    return lines(out, "eval")


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run whose steps are too small to change the loss: it never gets better than at first."""
    out = tmp_path_factory.mktemp("run") / "r"
    arguments = ["--max-steps", 9, "--patience", 2, "--lr", 1e-30, "--weight-decay", 0]
    return out, arguments, train_with(out, *arguments)


def test_training_ends_when_patience_does_keeps_the_best_and_stays_ended(stopped, capsys):
    out, arguments, evaluations = stopped
    assert [line["step"] for line in evaluations] == [0, 1, 2, 3]
    assert (out / "best").read_text() == "step-000001\n"
    assert sorted(p.name for p in (out / "checkpoints").iterdir()) == ["step-000001", "step-000003"]
    assert train_with(out, *arguments, "--resume", "auto") == evaluations
    assert "loss was not better in 2 evaluations" in capsys.readouterr().out


def in_torchrun(*arguments) -> str:
    done = torchrun(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("start", [ranks, in_torchrun])
def test_two_processes_find_exactly_the_figures_of_one(stopped, start):
    """With torchrun, which has a `--run` of its own, as without it."""
    out, _, evaluations = stopped
    options = words("--run-dir {} --threads 1", out)
    printed = start(2, "-m", "deepsynth_min.evaluate", *options)
    two = json.loads(next(line for line in printed.splitlines() if line.startswith("{")))
    one = evaluate.run(options)
    assert {name: two[name] for name in one} == one
    assert one == {name: evaluations[-1][name] for name in one} and "rougeL" in one
    assert one["cer_low"] < one["cer"] < one["cer_high"]


def test_the_best_checkpoint_is_the_one_with_the_best_metric(tmp_path, capsys):
    arguments = ["--max-steps", 4, "--best", "reads/blank", "--lr", 0.02]
    evaluations = train_with(tmp_path / "r", *arguments)
    best = max(evaluations[1:], key=lambda line: line["reads/blank"])
    assert (tmp_path / "r" / "best").read_text() == f"step-{best['step']:06}\n"
    last, printed = evaluations[-1], capsys.readouterr().out.splitlines()
    line = next(p for p in printed if p.startswith("held-out loss"))
    assert f" -> {last['loss']:.4f} nats per token" in line
    report = (tmp_path / "r" / "report.html").read_text("utf-8")
    beside = (
        f"; best reads/blank {best['reads/blank']:.4f} at step {best['step']} "
        f"({last['reads/blank']:.4f} at step 4): checkpoints/step-{best['step']:06} "
        "(--checkpoint best)"
    )
    assert best is not last and line.endswith(beside) and beside in report
    kept = {name: answers_in(tmp_path / "r", name) for name in ("last", "best")}
    assert [{a["step"] for a in kept[name]} for name in kept] == [{4}, {best["step"]}]
    assert [a["number"] for a in kept["last"]] == list(range(5))
    shown = lines(tmp_path / "r", "answers")[-1]["shown"]
    assert [{"step": 4, **answer} for answer in shown] == kept["last"][:4]


def answers_in(run, which) -> list[dict]:
    return [json.loads(line) for line in (run / f"answers/{which}.jsonl").open(encoding="utf-8")]


def test_a_metric_that_will_not_be_there_is_a_users_mistake(tmp_path, capsys):
    for arguments, message in (
        (["--best", "cer", "--answer-samples", "0"], "--best cer: needs --answer-samples"),
        (["--best", "reads/blank", "--ablation-samples", "0"], "needs --ablation-samples"),
        (["--best", "beauty"], "--best"),
    ):
        assert train.main([*arguments, "--out", str(tmp_path / "r")]) == 2
        assert message in capsys.readouterr().err and not (tmp_path / "r").exists()


def test_any_model_is_scored_on_any_data(tmp_path, capsys):
    """The run's own figures from its checkpoint alone, and answers beside their references."""
    rows = [{"text": f"text {i}", "summary": f"answer {i}"} for i in range(5)]
    (tmp_path / "val.jsonl").write_text("\n".join(map(json.dumps, rows)))
    given = words("--val-data {} --out {}", tmp_path / "val.jsonl", tmp_path / "r")
    more = "--model tiny --max-steps 1 --batch-size 2 --answer-samples 5 --max-new-tokens 4"
    assert train.main([*given, *more.split()]) == 0
    own = {k: v for k, v in lines(tmp_path / "r", "eval")[-1].items() if k not in ("kind", "step")}
    checkpoint = tmp_path / "r" / "checkpoints" / "step-000001"
    capsys.readouterr()
    options = words("--data {} --batch-size 2 --out {}", tmp_path / "val.jsonl", tmp_path / "a")
    options += ["--max-new-tokens", "4"]
    found = evaluate.run(["--model", str(checkpoint), *options])
    assert found == pytest.approx(own)
    taken = "val.jsonl: page: drawn from 'text'; answer: 'summary'; 5 rows\n"
    assert taken in capsys.readouterr().err
    answers = [json.loads(line) for line in (tmp_path / "a").read_text().splitlines()]
    assert [a["reference"] for a in answers] == [row["summary"] for row in rows]
    assert found["wer"] == pytest.approx(
        mean(jiwer.wer(a["reference"], a["answer"]) for a in answers)
    )
    again = words("--run {} --data {} --limit 2", tmp_path / "r", tmp_path / "val.jsonl")
    assert evaluate.run(again)["samples"] == 2
    few = words("--run {} --data {} --val-samples 3", tmp_path / "r", tmp_path / "val.jsonl")
    assert evaluate.run(few)["samples"] == 3
    assert evaluate.main(["--model", str(checkpoint)]) == 2
    assert "--model: say with --data which rows" in capsys.readouterr().err
