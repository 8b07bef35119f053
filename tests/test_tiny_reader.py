"""The recipe that teaches a model to read: its texts, its pages, and taking it up again."""

import json
from pathlib import Path

import pytest
import torch

from deepsynth_min import checkpoint
from deepsynth_min.config import PRESETS
from deepsynth_min.model import DeepseekOCR
from deepsynth_min.row import Row
from deepsynth_min.tiny_reader import ENDS, STAGES, UNSEEN, Training, Words, learning_rate, place
from deepsynth_min.tokenizer import EMBEDDED
from deepsynth_min.weights import official_views


ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def words():
    return Words(0)


def test_no_unseen_text_is_ever_trained_on_however_short(words):
    stage = STAGES[0]
    trained = {words.text(n, stage.least, stage.most) for n in range(20_000)}
    unseen = [words.text(UNSEEN + n, stage.least, stage.most) for n in range(500)]
    assert len(trained) > 5_000 and trained.isdisjoint(unseen)


def test_a_text_depends_on_seed_and_number_alone(words):
    first = [words.text(n, 1, 120) for n in range(50)]
    assert [Words(0).text(n, 1, 120) for n in reversed(range(50))] == first[::-1]
    assert Words(1).text(7, 1, 120) != first[7]


def test_every_character_of_the_texts_is_drawn(words, tmp_path):
    training = Training(tmp_path, 0, 1)
    for stage in STAGES:
        for n in range(300):
            text = words.text(n, stage.least, stage.most)
            sample = training.builders[stage.side](Row("random words", text, text))
            assert not sample.missing and stage.least <= len(text) <= stage.most
            assert (sample.pages < 128).any(axis=(1, 2, 3)).all(), text


def test_the_weights_fit_in_8_mb_of_bf16():
    with torch.device("meta"):
        views = official_views(DeepseekOCR(PRESETS["tiny-reader"]))
    assert sum(2 * view.numel() for view in views.values()) <= 8e6


def test_the_rate_falls_only_within_a_stage_and_stages_follow_each_other():
    ends = [place(step)[1] for step in range(0, sum(s.steps for s in STAGES), 100)]
    assert ends == sorted(ends) and len(set(ends)) == len(STAGES)
    assert learning_rate(0) == pytest.approx(STAGES[0].rate / 100)
    assert learning_rate(ends[-1] - 1) == pytest.approx(STAGES[-1].last, rel=0.01)


def test_taken_up_again_it_goes_on_as_if_undisturbed(tmp_path):
    def losses(training: Training, steps: int) -> list[float]:
        return [float(training._train_step(training._batch(training.step))) for _ in range(steps)]

    training = Training(tmp_path, 0, 1)
    before = losses(training, 2)
    facts = {**training.facts, "step": 2, "best": None, "best_metric": "cer", "stale": 0,
             "score": 1.0, "unlogged": []}  # fmt: skip
    taken = checkpoint.take(training.model, training.optimizer, training.scaler, facts)
    checkpoint.save(tmp_path / "checkpoints", taken, training.model, EMBEDDED)
    after = losses(training, 2)
    again = Training(tmp_path, 0, 1)
    assert again.step == 2 and losses(again, 2) == after
    assert before + after == losses(Training(tmp_path / "other", 0, 1), 4)


def test_the_readme_shows_the_curve_that_was_measured():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    with open(ROOT / "bench" / "tiny_reader_curve.jsonl", encoding="utf-8") as file:
        entries = [json.loads(line) for line in file]
    losses = {entry["step"]: entry["loss"] for entry in entries if "loss" in entry}
    rates = {entry["step"]: (entry["side"], entry["cer"]) for entry in entries if "cer" in entry}
    table = readme.split("| characters misread |\n|---|---|---|---|\n")[1].split("\n\n")[0]
    rows = [row.strip("| ").split(" | ") for row in table.splitlines()]
    steps = [int(row[0].replace(",", "")) for row in rows]
    assert steps[-1] == max(rates) and f"{ENDS[-1]:,} steps" in readme
    for step, (_, side, loss, rate) in zip(steps, rows):
        assert (int(side), rate) == (rates[step][0], f"{100 * rates[step][1]:.0f} %")
        assert loss == f"{losses[step]:.2f}"
