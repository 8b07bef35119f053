"""Runs whose pages vary: the same for any number of processes, after a kill, after a resume."""

import pytest
import torch
from commands import words
from killed_runs import (
    assert_bit_identical,
    finish,
    kill_all,
    launch,
    log_of,
    wait_for_a_save,
    wait_for_life,
)
from run_files import exact_lines, lines, losses

from deepsynth_min import train
from deepsynth_min.data.loader import Loader
from deepsynth_min.data.rows import EmbeddedRows, View
from deepsynth_min.data.samples import SampleBuilder
from deepsynth_min.data.tokenizer import load_tokenizer
from deepsynth_min.model.shape.presets import PRESETS
from deepsynth_min.options import change
from deepsynth_min.pages.fonts.font_file import font_bytes
from deepsynth_min.settings import Settings

VARY = "font_size=7:11,line_height=1.0:1.6,margin=2:16,font=notos|figo,columns=1|2,invert=0.3"
GREYS = "ink=0:90,paper=200:255,letter_spacing=0:1,align=left|justify|center"


@pytest.fixture(scope="module")
def settings():
    return change(Settings(), vary=(VARY, GREYS), batch_size=4, mode="192", workers=2)


@pytest.fixture(scope="module")
def rows():
    return View(EmbeddedRows("train", "notices"), 0, 40)


def pages(settings, rows, rank=0, world=1, start=0, steps=4) -> list[list]:
    """[step][sample]: row and pages of the samples of one rank."""
    builder = SampleBuilder(settings, PRESETS["tiny"], load_tokenizer())
    loader, found = Loader(rows, builder, settings, rank, world, start), []
    for _ in range(start, steps):
        found.append([])
        for batch in next(loader):
            owners = torch.tensor(batch.owners)
            found[-1] += [(r, batch.pages[owners == b]) for b, r in enumerate(batch.rows)]
    loader.close()
    return found


def same(some: list, others: list) -> bool:
    return len(some) == len(others) and all(
        a[0] == b[0] and a[1].equal(b[1]) for a, b in zip(some, others)
    )


def test_two_processes_see_the_pages_that_one_sees(settings, rows):
    one = pages(settings, rows)
    halves = [pages(change(settings, batch_size=2), rows, rank, 2) for rank in (0, 1)]
    for step, first, second in zip(one, *halves, strict=True):
        dealt = [sample for pair in zip(first, second) for sample in pair]
        assert same(sorted(step, key=lambda s: s[0]), sorted(dealt, key=lambda s: s[0]))


def test_the_division_into_micro_steps_changes_no_page(settings, rows):
    divided = pages(change(settings, batch_size=2, accumulate=2), rows)
    assert all(same(a, b) for a, b in zip(pages(settings, rows), divided, strict=True))


def test_a_run_taken_up_at_a_step_sees_the_pages_it_would_have_seen(settings, rows):
    later = pages(settings, rows, start=2)
    assert all(same(a, b) for a, b in zip(pages(settings, rows)[2:], later, strict=True))


def test_a_row_that_comes_again_comes_in_another_style(settings, rows):
    few = View(rows, 0, 4)
    first, second = (dict(step) for step in pages(change(settings, bucket=0), few, steps=2))
    assert first.keys() == second.keys()
    assert not any(
        first[row].shape == second[row].shape and first[row].equal(second[row]) for row in first
    )


def common(jsonl) -> list[str]:
    given = (
        "--model tiny --data {} --max-steps 3 --batch-size 2 --val-samples 4 --log-every 1 "
        "--save-every 1 --eval-every 0 --answer-samples 0 --threads 1 --keep 9"
    )
    return words(given, jsonl)


@pytest.mark.slow
def test_a_resumed_run_is_exactly_the_undisturbed_one_and_evaluates_in_the_base_style(
    tmp_path, jsonl
):
    def run(name, *more) -> list:
        assert train.main([*common(jsonl), "--out", str(tmp_path / name), *more]) == 0
        return exact_lines(tmp_path / name)

    vary = ["--vary", VARY, GREYS, "--augment"]
    whole, plain = run("whole", *vary), run("plain", "--augment")
    assert whole[0] == plain[0] and whole[0]["kind"] == "eval"  # held-out rows, before training
    trained = [losses(tmp_path / name, "train") for name in ("whole", "plain")]
    assert len(trained[0]) == 3 and all(a != b for a, b in zip(*trained))
    first = str(tmp_path / "whole" / "checkpoints" / "step-000001")
    resumed = run("resumed", *vary, "--resume", first)
    assert [line for line in resumed if line["step"] > 1] == [
        line for line in whole if line["step"] > 1
    ]


def test_unseen_styles_are_scored_beside_the_base_style(tmp_path, jsonl):
    given = [*common(jsonl), "--vary", "font_size=9:12", "--unseen-style", "font_size=20:24"]
    assert train.main([*given, "--out", str(tmp_path / "run")]) == 0
    found = [line["reads/unseen_style"] for line in lines(tmp_path / "run", "eval")]
    assert len(found) == 2 and all(value != 0 for value in found)


@pytest.mark.slow
def test_a_font_of_vary_that_moved_is_the_same_and_one_that_changed_is_not(tmp_path, jsonl, capsys):
    for name, font in (("a", "figo"), ("b", "figo"), ("c", "notos")):
        (tmp_path / f"{name}.ttf").write_bytes(font_bytes(font))

    def go_on(name, more=""):
        vary = f"font={tmp_path / name}.ttf,font_size=9:12{more}"
        given = [*common(jsonl), "--out", str(tmp_path / "run"), "--resume", "auto"]
        return train.main([*given, "--max-steps", "4", "--vary", vary])

    assert go_on("a") == 0 and go_on("b") == 0
    capsys.readouterr()
    assert go_on("c") == 2 and "was trained with --vary font=" in capsys.readouterr().err
    assert go_on("a", ",ink=9") == 2 and "was trained with --vary font=" in capsys.readouterr().err


def test_the_feature_cache_is_refused_beside_pages_that_vary(tmp_path, jsonl, capsys):
    given = [*common(jsonl), "--vary", "ink=9:99", "--feature-cache", "memory"]
    assert train.main([*given, "--out", str(tmp_path / "run")]) == 2
    assert "--feature-cache: not with --vary" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--vary", "--unseen-style"])
@pytest.mark.parametrize("spec", ["font_size=a:b", "font_size=0:9", "font=nowhere.ttf"])
def test_a_wrong_distribution_is_one_line_before_anything_is_written(
    tmp_path, jsonl, capsys, option, spec
):
    out = tmp_path / "run"
    assert train.main([*common(jsonl), option, spec, "--out", str(out)]) == 2
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1 and error[0].startswith(f"error: {option}") and not out.exists()


@pytest.mark.slow
def test_two_processes_killed_and_resumed_are_bit_identical_to_an_undisturbed_run(tmp_path, jsonl):
    few = ["--max-steps", "16", "--vary", VARY, GREYS]
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    finish(whole, jsonl, 2, *few)
    process = launch(killed, jsonl, 2, *few)
    wait_for_life(process, killed, 0)
    wait_for_a_save(process, killed)
    assert process.poll() is None, log_of(killed)[-3000:]
    kill_all(process)
    assert len(exact_lines(killed)) < len(exact_lines(whole))
    finish(killed, jsonl, 2, *few)
    assert_bit_identical(killed, whole)
