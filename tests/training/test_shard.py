"""Sharded mode: real processes (Gloo, CPU), against the same runs without shards."""

import json
from pathlib import Path

import pytest
import torch
import workers
from adapter_runs import QUICK, write_base, write_rows
from commands import free_port, torchrun, words
from safetensors import safe_open
from small_model import SMALL

from deepsynth_min import evaluate, export, generate, train

TUNES = ("decoder", "projector+lora")
PAIRS = {  # what differs from the run of the same name without shards: nothing but the shards
    "decoder 2x4": dict(size=4, accumulate=1),
    "decoder 2x2x2": dict(size=2, accumulate=2),
    "all 2x4": dict(size=4, accumulate=1, tune="all"),
    "lora 2x2x2": dict(size=2, accumulate=2, tune="lora"),
    "bf16 2x4": dict(size=4, accumulate=1, weights="bf16"),
    "recomputed 2x4": dict(size=4, accumulate=1, recompute=2),
    "spoilt 2x4": dict(size=4, accumulate=1, spoilt=1),
}


def in_two_processes(*words) -> None:
    done = torchrun(2, *words)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> dict[str, tuple[list[float], dict[str, torch.Tensor]]]:
    """Name, or "sharded " and name -> (losses, final weights)."""
    folder, results = tmp_path_factory.mktemp("pairs"), {}
    runs = {name: options for name, options in PAIRS.items()}
    runs |= {f"sharded {name}": {**options, "sharded": True} for name, options in PAIRS.items()}
    in_two_processes(
        workers.__file__, folder, json.dumps([{"name": n, **o} for n, o in runs.items()])
    )
    for name in runs:
        with safe_open(folder / f"{name}.safetensors", framework="pt") as file:
            values = {key: file.get_tensor(key) for key in file.keys()}
            results[name] = json.loads(file.metadata()["losses"]), values
    return results


@pytest.mark.parametrize("name", PAIRS)
def test_a_run_in_shards_has_the_losses_and_weights_of_one_without(trained, name):
    """Very uneven answers, a third of the samples without a page; `spoilt`: one rank's loss of the
    second step is no number, so that all must skip it; `bf16`: weights rounded at random."""
    losses, weights = trained[f"sharded {name}"]
    expected, reference = trained[name]
    assert losses == pytest.approx(expected, rel=1e-5, nan_ok=True)
    assert weights.keys() == reference.keys()
    assert max((weights[n] - reference[n]).abs().max().item() for n in reference) < 1e-5


def test_the_spoilt_step_was_one(trained):
    assert [loss == loss for loss in trained["sharded spoilt 2x4"][0]] == [True, False, True]


# -- checkpoints ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A folder for each kind of tuning, with runs of three steps: `one` in one process; `a` in 2
    shards; `b` in one process, from the first step of `a`; `c` in 2 shards, from the second of `b`;
    `full` is `c` with a disk that refuses what the second process writes."""
    folder = tmp_path_factory.mktemp("runs")
    write_base(folder / "base", SMALL)
    write_rows(folder / "rows.jsonl")

    def line(tune: str, out: str, size: int, *more) -> list[str]:
        given = words(
            "--model {} --data {} --tune {} --out {} --batch-size {} --max-steps 3 --save-every 1 "
            "--keep 3 --eval-every 0",
            *(folder / "base", folder / "rows.jsonl", tune, folder / tune / out, size),
        )
        return [*QUICK, *given, *map(str, more)]

    def step(tune: str, out: str, number: int) -> list:
        return ["--resume", folder / tune / out / f"checkpoints/step-{number:06}"]

    def in_shards(*lines) -> None:
        entries = [(free_port(), line) for line in lines]
        in_two_processes(workers.__file__, "command-line", json.dumps(entries))

    in_shards(*(line(tune, "a", 1, "--shard") for tune in TUNES))
    for tune in TUNES:
        assert train.main(line(tune, "one", 2)) == 0
        assert train.main(line(tune, "b", 2, *step(tune, "a", 1))) == 0
    taken_up = [line(tune, "c", 1, "--shard", *step(tune, "b", 2)) for tune in TUNES]
    full = line("decoder", "full", 1, "--shard", *step("decoder", "b", 2))
    in_shards(*taken_up, [*full, "limited"])
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


def test_a_checkpoint_from_shards_answers(runs):
    (runs / "text.txt").write_text("A text.", "utf-8")
    run, text = runs / "decoder" / "a", runs / "text.txt"
    assert generate.main(["--run", str(run), str(text), "--max-new-tokens", "2"]) == 0


def test_each_rank_has_written_about_half_of_a_checkpoint(runs):
    checkpoint = runs / "decoder" / "a/checkpoints/step-000003"
    for kind in ("model", "optimizer"):
        sizes = [file.stat().st_size for file in checkpoint.glob(f"{kind}-*-of-*.safetensors")]
        assert len(sizes) == 2 and max(sizes) < 0.6 * sum(sizes), kind


def test_a_part_that_cannot_be_written_costs_the_checkpoint_and_not_the_run(runs):
    run = runs / "decoder" / "full"
    assert list((run / "checkpoints").iterdir()) == []
    assert lines(run) == lines(runs / "decoder" / "c")


@pytest.mark.parametrize("words", [["--tune", "qlora"], ["--optimizer", "adamw8bit"]])
def test_what_cannot_be_divided_is_refused(tmp_path, capsys, words):
    assert train.main(["--shard", *words, "--out", str(tmp_path / "r")]) == 2
    assert "--shard" in capsys.readouterr().err and not (tmp_path / "r").exists()
