"""Checkpoints that several processes wrote, each its part: read by one, by several, and broken."""

import json
import re
from pathlib import Path

import pytest
import workers
from adapter_runs import QUICK, write_base, write_rows
from commands import free_port, ranks, words
from safetensors.torch import load_file
from small_model import SMALL

from deepsynth_min import evaluate, export, generate, train
from deepsynth_min.runs import recorded
from deepsynth_min.training import checkpoint
from deepsynth_min.tuning.adapter import OTHERS

pytestmark = pytest.mark.slow
# lora: goes on from the adapter of the one before it, with the projector that trained beside it.
TUNES = ("decoder", "projector+lora", "lora")


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A folder for each kind of tuning, with runs of three steps: `one` in one process; `a` in 2
    shards; `b` in one process, from the first step of `a`; `c` in 2 shards, from the second of `b`;
    `full` is `c` with a disk that refuses what the second process writes; `patient` is `a` with one
    that takes nothing of step 1 before step 2 is done."""
    folder = tmp_path_factory.mktemp("runs")
    write_base(folder / "base", SMALL)
    write_rows(folder / "rows.jsonl")

    def line(tune: str, out: str, size: int, *more) -> list[str]:
        given = words(
            "--model {} --data {} --tune {} --out {} --batch-size {} --max-steps 3 --save-every 1 "
            "--keep 3 --eval-every 0",
            *(folder / "base", folder / "rows.jsonl", tune, folder / tune / out, size),
        )
        if tune == "lora":
            given += ["--adapter", str(folder / "projector+lora/one/checkpoints/step-000003")]
        return [*QUICK, *given, *map(str, more)]

    def step(tune: str, out: str, number: int) -> list:
        return ["--resume", folder / tune / out / f"checkpoints/step-{number:06}"]

    lines = []
    for tune in TUNES:
        assert train.main(line(tune, "one", 2)) == 0
        lines.append(line(tune, "a", 1, "--shard"))
        lines.append(line(tune, "b", 2, *step(tune, "a", 1), "alone"))
        lines.append(line(tune, "c", 1, "--shard", *step(tune, "b", 2)))
    lines.append(line("decoder", "full", 1, "--shard", *step("decoder", "b", 2), "limited"))
    lines.append(line("decoder", "patient", 1, "--shard", "patient"))
    entries = [(free_port(), line) for line in lines]
    printed = ranks(2, workers.__file__, "command-line", json.dumps(entries))
    (folder / "printed.txt").write_text(printed)
    return folder


def lines(run: Path, kind: str = "train") -> dict[int, float]:
    found = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line["loss"] for line in found if line["kind"] == kind}


@pytest.mark.parametrize("tune", TUNES)
def test_checkpoints_go_from_shards_to_one_process_and_back(runs, tune):
    expected = lines(runs / tune / "one")
    for out, first in (("a", 1), ("b", 2), ("c", 3)):
        losses = lines(runs / tune / out)
        assert list(losses) == list(range(first, 4))
        assert losses == pytest.approx({step: expected[step] for step in losses}, rel=1e-5)
        end, reference = (lines(runs / tune / name, "eval")[3] for name in (out, "one"))
        assert end == pytest.approx(reference, rel=1e-5)


@pytest.mark.parametrize("tune", TUNES)
def test_a_checkpoint_from_shards_is_evaluated_and_exported_like_any_other(runs, tune, capsys):
    run, merge = runs / tune / "a", ["--merge"] if "lora" in tune else []
    assert evaluate.main(["--run", str(run)]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[0])
    assert result["loss"] == pytest.approx(lines(run, "eval")[3], abs=1e-6)
    assert export.main(["--run", str(run), "--to", str(runs / tune / "exported"), *merge]) == 0
    assert (run / "checkpoints/step-000003" / OTHERS).exists() == ("lora" in tune)


def test_a_checkpoint_from_shards_answers(runs):
    steps = [runs / "decoder" / name / "checkpoints/step-000003" for name in ("a", "one")]
    a, one = map(recorded.read, steps)
    assert a == one and a["beams"] == 1
    (runs / "text.txt").write_text("A text.", "utf-8")
    run, text = runs / "decoder" / "a", runs / "text.txt"
    assert generate.main(["--run", str(run), str(text), "--max-new-tokens", "2"]) == 0


def test_each_rank_has_written_about_half_of_a_checkpoint(runs):
    written = runs / "decoder" / "a/checkpoints/step-000003"
    for kind in ("model", "optimizer"):
        sizes = [file.stat().st_size for file in written.glob(f"{kind}-*-of-*.safetensors")]
        assert len(sizes) == 2 and max(sizes) < 0.6 * sum(sizes), kind


def test_the_size_of_a_checkpoint_in_shards_is_known_before_the_first_step(runs):
    told = re.findall(r"a checkpoint takes ([\d.]+) MB", (runs / "printed.txt").read_text())
    for tune, megabytes in zip(TUNES, told[::3]):
        written = (runs / tune / "a/checkpoints/step-000003").iterdir()
        size = sum(file.stat().st_size for file in written)
        assert float(megabytes) == pytest.approx(size / 1e6, rel=0.02, abs=0.06)


def test_a_part_that_cannot_be_written_costs_the_checkpoint_and_not_the_run(runs):
    run = runs / "decoder" / "full"
    assert list((run / "checkpoints").iterdir()) == []
    assert lines(run) == lines(runs / "decoder" / "c")


def test_training_goes_on_while_shards_are_written(runs):
    """Step 2 was done before anything of step 1 was written, and what was written is step 1."""
    run, a = runs / "decoder" / "patient", runs / "decoder" / "a"
    first = run / "checkpoints/step-000001"
    assert checkpoint.damage(first) is None and lines(run) == lines(a)
    for file in (a / "checkpoints/step-000001").glob("*.safetensors"):
        ours, reference = load_file(first / file.name), load_file(file)
        assert all(ours[name].equal(reference[name]) for name in reference)
