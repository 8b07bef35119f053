"""Whatever happens to a run, what comes out is the same run, or a plain word about it."""

import json
import os
import re
import shutil
import signal
from pathlib import Path

import pytest
import torch
from commands import python, two_processes, words
from full_disk import full_disk
from run_files import assert_same_run, exact_lines, lines

from deepsynth_min import train
from deepsynth_min.model.batch import Batch
from deepsynth_min.model.deepseek_ocr import DeepseekOCR
from deepsynth_min.training import checkpoint

STEPS = 16
COMMON = words(
    "--model tiny --batch-size 2 --val-samples 2 --log-every 3 --max-new-tokens 16 --eval-every 4 "
    "--save-every 2 --tune lora --lora-dropout 0.2 --keep 99 --max-steps {}",
    STEPS,
)


def options(out: Path, jsonl: Path, *more: str) -> list[str]:
    return [*COMMON, *words("--data {} --out {}", jsonl, out), *more]


def run(out: Path, jsonl: Path, *more: str) -> int:
    return train.main(options(out, jsonl, *more))


def assert_same(out: Path, reference: Path) -> None:
    assert_same_run(out, reference, "adapter_model.safetensors")
    assert (out / "best").read_text() == (reference / "best").read_text()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, jsonl) -> Path:
    """The run that the others are compared with; tests that harm it take a copy."""
    out = tmp_path_factory.mktemp("run") / "undisturbed"
    assert run(out, jsonl) == 0
    return out


def test_a_damaged_newest_checkpoint_is_reported_and_the_one_before_it_used(
    tmp_path, jsonl, undisturbed, capsys
):
    out = tmp_path / "damaged"
    shutil.copytree(undisturbed, out)
    newest = checkpoint.all_checkpoints(out / "checkpoints")[-1]
    file = newest / "optimizer.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert run(out, jsonl, "--resume", "auto") == 0
    printed = capsys.readouterr().out
    assert f"{newest} is damaged (optimizer.safetensors is not as it was written)" in printed
    assert f"resuming after step {STEPS - 2}" in printed
    assert_same(out, undisturbed)


@pytest.mark.parametrize(
    "harm, words",
    [
        (lambda path: (path / "training.json").unlink(), "training.json is missing"),
        (lambda path: (path / "manifest.json").write_text("{"), "manifest.json cannot be read"),
        (lambda path: (path / "manifest.json").write_text('{"../x": {}}'), "names '../x'"),
        (lambda path: os.truncate(path / "optimizer.safetensors", 99), "not as it was written"),
    ],
)
def test_every_kind_of_damage_is_noticed(tmp_path, undisturbed, harm, words):
    shutil.copytree(undisturbed / "checkpoints", tmp_path / "checkpoints")
    newest = checkpoint.all_checkpoints(tmp_path / "checkpoints")[-1]
    assert checkpoint.damage(newest) is None
    harm(newest)
    assert words in checkpoint.damage(newest)


def test_a_torn_last_line_of_metrics_is_forgotten(tmp_path, jsonl, undisturbed):
    out = tmp_path / "torn"
    shutil.copytree(undisturbed, out)
    with open(out / "metrics.jsonl", "a") as file:
        file.write('{"kind": "train", "st')
    assert run(out, jsonl, "--resume", "auto") == 0
    assert_same(out, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_two_processes_stop_together_on_a_signal_and_go_on_as_one(
    tmp_path, jsonl, undisturbed, number
):
    """The signal reaches one rank only; both save and end; one process finishes the run."""
    out = tmp_path / "stopped"
    process, ranks = two_processes(out, options(out, jsonl, "--batch-size", "1"))
    os.kill(ranks[-1], number)
    printed, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    step = int(re.search(r"stopped after step (\d+)", printed)[1])
    assert step < STEPS
    assert run(out, jsonl, "--resume", "auto", "--lora-dropout", "0.2") == 0
    ours, reference = exact_lines(out), exact_lines(undisturbed)
    assert [line["step"] for line in ours] == [line["step"] for line in reference]


def test_saves_that_the_disk_refuses_are_warnings_but_the_last_one_fails_the_run(
    tmp_path, jsonl, undisturbed, capfd
):
    """Training goes on to its end; the checkpoint of before is whole, and named."""
    out = tmp_path / "full"
    shutil.copytree(undisturbed, out)
    for path in checkpoint.all_checkpoints(out / "checkpoints")[1:]:
        shutil.rmtree(path)
    with full_disk():
        assert run(out, jsonl, "--resume", "auto") == 2
    *before, last = capfd.readouterr().err.splitlines()
    assert f"warning: no checkpoint of step {STEPS}" in "\n".join(before)
    kept = out / "checkpoints" / "step-000002"
    assert last.startswith(f"error: the last checkpoint, of step {STEPS}, is lost: ")
    assert "File too large" in last and last.endswith(f"; the newest whole one is {kept}")
    assert list((out / "checkpoints").iterdir()) == [kept]
    assert checkpoint.damage(kept) is None
    assert exact_lines(out)[-1] == exact_lines(undisturbed)[-1]


def test_a_run_that_never_saved_anything_fails(tmp_path, jsonl, capfd):
    few = words("--tune decoder --max-steps 2 --eval-every 0 --val-samples 1 --answer-samples 0")
    with full_disk():
        assert run(tmp_path / "r", jsonl, *few) == 2
    printed, errors = capfd.readouterr()
    last = errors.splitlines()[-1]
    assert last.startswith("error: the last checkpoint, of step 2, is lost: ")
    assert last.endswith("; there is none") and "report: " not in printed


def test_steps_that_are_not_finite_are_skipped_counted_and_end_the_run_with_their_rows(
    tmp_path, jsonl, monkeypatch
):
    """From step 5 on, a page of the batch makes the loss not a number."""
    honest, calls = DeepseekOCR.loss_terms, []

    def poisoned(self, batch: Batch, *more, **named):
        total, count, balance = honest(self, batch, *more, **named)
        if torch.is_grad_enabled():
            calls.append(batch.rows)
            if len(calls) > 5:
                total = total * float("nan")
        return total, count, balance

    monkeypatch.setattr(DeepseekOCR, "loss_terms", poisoned)
    out = tmp_path / "r"
    with pytest.raises(RuntimeError, match="4 steps in a row"):
        run(out, jsonl, "--max-skips", "4", "--log-every", "1", "--eval-every", "0")
    assert [line["skipped_steps"] for line in lines(out, "train")] == [0, 0, 0, 0, 0, 1, 2, 3, 4]
    skipped = json.loads((out / "skipped.json").read_text())
    assert list(skipped) == ["5", "6", "7", "8"] and len(skipped["5"]) == 2
    assert all(re.search(r"rows.jsonl:\d+$", where) for row in skipped.values() for where in row)


def test_an_error_for_want_of_memory_is_told_what_to_lower(tmp_path, jsonl, monkeypatch, capsys):
    """In the words of torch's allocator for the CPU, however small the micro-batch becomes."""

    def refuse(*_, **__):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate")

    monkeypatch.setattr(DeepseekOCR, "loss_terms", refuse)
    more = words("--eval-every 0 --max-steps 1 --val-fraction 0")
    assert run(tmp_path / "r", jsonl, *more) == 2
    said = capsys.readouterr().err.strip().splitlines()
    again = "out of memory with micro-batches of 2; goes on with --batch-size 1"
    assert any(again in line for line in said[:-1])
    assert said[-1].startswith("error: out of memory: lower --mode or --max-pages")


@pytest.mark.slow
def test_a_sample_that_does_not_fit_into_memory_is_told_what_to_lower(tmp_path, jsonl):
    """The limit on address space stands for a small machine."""
    limit = "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (2**30,) * 2); "
    call = "from deepsynth_min.train import main; sys.exit(main(sys.argv[1:]))"
    more = words(
        "--batch-size 2 --mode 1280 --max-pages 1 --overflow truncate --eval-every 0 "
        "--val-samples 1 --answer-samples 0 --ablation-samples 0 --tune all"
    )
    done = python("-c", limit + call, *options(tmp_path / "r", jsonl, *more))
    assert done.returncode == 2, done.stderr[-2000:]
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: out of memory: lower --mode or --max-pages")
