"""Rows that are left out while a run goes on: nothing else changes, and each is named once."""

import json
from pathlib import Path

import pytest
import torch
from commands import ranks
from killed_runs import assert_bit_identical, finish, kill_in_a_later_save, launch, log_of, options
from run_files import lines, losses, weights
from small_model import SMALL

from deepsynth_min import train
from deepsynth_min.data.loader import Loader
from deepsynth_min.data.row import TooLong
from deepsynth_min.data.samples import SampleBuilder
from deepsynth_min.data.sources import open_data
from deepsynth_min.data.tokenizer import load_tokenizer
from deepsynth_min.options import change
from deepsynth_min.settings import Settings

CASES = Path(__file__).parents[1] / "cases"
BAD = CASES / "bad-rows.jsonl"
SKIP = ["--on-bad-row", "skip", "--max-bad", "1", "--val-data", CASES / "splits", "--mode", "256"]
# Line 6 is too long once drawn, line 9 an image that is cut off; the others are found before.
BEFORE, LATER = [2, 3, 4, 7, 10, 11, 13], {6, 9}
MORE = [*SKIP, "--max-steps", 12]
DIVIDED = {  # processes -> the same micro-batches
    1: ("--batch-size", 1, "--accumulate", 2),
    2: ("--batch-size", 1, "--accumulate", 1),
}


def skipped(out: Path) -> list[int]:
    entries = [json.loads(line) for line in (out / "skipped.jsonl").read_text().splitlines()]
    assert all(entry["reason"] for entry in entries)
    return [int(entry["row"].rpartition(":")[2]) for entry in entries]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    """A run of one process: two micro-steps of a sample each; LoRA with dropout, augmentation."""
    out = tmp_path_factory.mktemp("undisturbed") / "r"
    finish(out, BAD, 1, *MORE, *DIVIDED[1])
    return out


@pytest.mark.slow
@pytest.mark.parametrize("begun, ended", [(1, 1), (2, 2), (1, 2), (2, 1)])
def test_a_killed_run_that_leaves_rows_out_is_bit_identical_to_an_undisturbed_one(
    tmp_path, undisturbed, begun, ended
):
    """By one process or by two, also where another number of them goes on: the micro-batches are
    the same, and the sum of two gradients does not depend on their order."""
    killed = tmp_path / "killed"
    process = launch(killed, BAD, begun, *MORE, *DIVIDED[begun])
    kill_in_a_later_save(process, killed)
    finish(killed, BAD, ended, *MORE, *DIVIDED[ended])
    assert "resuming after step" in log_of(killed)
    assert_bit_identical(killed, undisturbed)
    for out in (undisturbed, killed):
        found = skipped(out)
        assert found[: len(BEFORE)] == BEFORE and set(found[len(BEFORE) :]) == LATER
        assert len(found) == len(BEFORE) + len(LATER)
    counted = [line["left_out_samples"] for line in lines(undisturbed, "train")]
    assert sum(counted) == 8  # two of six rows, four times


@pytest.mark.slow
def test_two_undisturbed_processes_are_bit_identical_to_one(tmp_path, undisturbed):
    finish(tmp_path / "two", BAD, 2, *MORE, *DIVIDED[2])
    assert_bit_identical(tmp_path / "two", undisturbed)
    assert sorted(skipped(tmp_path / "two")) == sorted([*BEFORE, *LATER])


@pytest.mark.slow
def test_micro_batches_of_another_size_leave_out_the_same_rows_and_learn_the_same(tmp_path):
    """Two samples at once on one process, one on each of two: sums in another order."""
    steps = ["--max-steps", 6, "--lora-dropout", 0, "--no-augment", "--lr", 1e-4, *SKIP]
    one, two = tmp_path / "one", tmp_path / "two"
    assert train.main(options(one, BAD, 2, *steps)) == 0
    ranks(2, "-m", "deepsynth_min.train", *options(two, BAD, 1, *steps))
    assert sorted(skipped(one)) == sorted(skipped(two)) == sorted([*BEFORE, *LATER])
    assert losses(two, "train") == pytest.approx(losses(one, "train"), rel=1e-4)
    first, second = (weights(out, "adapter_model.safetensors") for out in (one, two))
    moved = torch.cat([(second[name] - value).abs().flatten() for name, value in first.items()])
    # Adam makes a step of any difference where a gradient is almost nothing.
    assert moved.max() < 2e-4 and moved.quantile(0.99) < 2e-6


def test_too_many_rows_that_show_late_end_the_run(tmp_path, capfd):
    out = tmp_path / "run"
    more = ["--max-steps", 6, *SKIP, "--max-bad", "0.55"]
    assert train.main(options(out, BAD, 2, *more)) == 2
    error = capfd.readouterr().err.splitlines()[-1]
    assert error.startswith("error: 9 of 15 rows cannot be used, more than --max-bad 0.55; they ")
    assert len(skipped(out)) == 9


def test_answers_that_can_never_fit_are_found_before_training(tmp_path, capfd):
    rows = [{"text": "a page", "summary": "short"}] * 9 + [{"text": "a", "summary": "word " * 3000}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    given = ["--val-data", CASES / "splits", "--max-steps", 1]
    assert train.main(options(tmp_path / "run", tmp_path / "a.jsonl", 2, *given)) == 2
    error = capfd.readouterr().err.splitlines()[-1]
    assert (
        "a.jsonl:10: an instruction of " in error and "context of 2048, without any page" in error
    )
    assert not (tmp_path / "run").exists()
    given += ["--on-too-long", "skip", "--max-bad", "0.2"]
    assert train.main(options(tmp_path / "run", tmp_path / "a.jsonl", 2, *given)) == 0
    assert skipped(tmp_path / "run") == [10]


# -- the loader -----------------------------------------------------------------------------------


def loader(tmp_path, rows: list[dict], **settings) -> Loader:
    path = tmp_path / f"{len(list(tmp_path.iterdir()))}.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    given = {"data": (str(path),), "mode": "128", "batch_size": 4, "bucket": 0}
    given |= {"val_data": "embedded", "pack": False} | settings
    chosen = change(Settings(), **given)
    builder = SampleBuilder(chosen, SMALL, load_tokenizer())
    return Loader(open_data(chosen.data, 0).train, builder, chosen)


LONG = {"text": "word " * 60_000, "summary": "never"}
TOO_MUCH = {"text": "a page", "summary": "word " * 2000}


def test_a_row_that_is_left_out_moves_no_other(tmp_path):
    good = [{"text": f"text {i}", "summary": f"s {i}"} for i in range(8)]
    whole = loader(tmp_path, good)
    with_holes = loader(tmp_path, [*good[:3], LONG, *good[4:]], on_bad_row="skip", max_bad=1)
    for _ in range(2):
        (a,), (b,) = next(whole), next(with_holes)
        kept = [i for i, row in enumerate(a.rows) if row != 3]
        assert b.rows == tuple(a.rows[i] for i in kept) and b.places == tuple(kept)
        for i, k in enumerate(kept):
            assert torch.equal(b.pages[i], a.pages[k])
        assert len(with_holes.left_out) == (len(kept) < 4)
        assert [f.where.rpartition(":")[2] for f in with_holes.left_out] == ["4"] * (4 - len(kept))


def test_a_step_of_nothing_but_rows_left_out_has_no_sample(tmp_path):
    (batch,) = next(loader(tmp_path, [LONG] * 4, on_bad_row="skip", max_bad=1))
    assert batch.num_scored == 0 and batch.rows == batch.places == () and len(batch.pages) == 0


@pytest.mark.parametrize("row", [LONG, TOO_MUCH])
@pytest.mark.parametrize("policy", ["auto", "error"])
def test_what_is_too_long_is_an_error_unless_asked(tmp_path, row, policy):
    with pytest.raises(TooLong, match=r"0.jsonl:[1-4]: .*the model's context") as raised:
        next(loader(tmp_path, [row] * 4, on_too_long=policy))
    assert ("--max-pages" in str(raised.value)) == (row is LONG)  # no advice that cannot help


def test_what_is_too_long_is_cut_to_what_fits(tmp_path):
    made = loader(tmp_path, [LONG] * 4, on_too_long="truncate")
    (batch,) = next(made)
    context, eos = made.builder.context, made.builder.special.eos
    length, pages = int(batch.attention_mask[0].sum()), len(batch.pages) // 4
    assert batch.truncated == 4 and pages > 50 and context - 7 <= length <= context
    assert batch.input_ids[0, length - 1] == eos  # the answer is whole
    (batch,) = next(loader(tmp_path, [TOO_MUCH] * 4, on_too_long="truncate"))
    assert batch.truncated == 4 and batch.input_ids.shape[1] == context
    assert eos not in batch.input_ids[0]  # where it was cut is no end
