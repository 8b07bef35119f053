"""Whatever happens to a run, what comes out is the same run, or a plain word about it."""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from deepsynth_min import train
from deepsynth_min.model.batch import Batch
from deepsynth_min.training import checkpoint

COMMON = (
    "--model tiny --batch-size 2 --val-samples 2 --log-every 3 --max-new-tokens 16 "
    "--eval-every 4 --save-every 2 --tune lora --lora-dropout 0.2 --keep 99"
).split()
STEPS = 16
EXACT = ("kind", "step", "loss", "grad_norm", "lr", "samples")


def command(out: Path, jsonl: Path, processes: int = 1, *more: str) -> list[str]:
    arguments = [*COMMON, "--data", str(jsonl), "--max-steps", str(STEPS), "--out", str(out), *more]
    if processes == 1:
        return [sys.executable, "-m", "deepsynth_min.train", *arguments]
    return [
        sys.executable,
        *"-m torch.distributed.run --standalone".split(),
        "--nproc-per-node",
        str(processes),
        *"-m deepsynth_min.train".split(),
        *arguments,
    ]


def two_processes(out: Path, jsonl: Path, *more: str) -> tuple[subprocess.Popen, list[int]]:
    """(a launcher whose two ranks have begun to train, their process numbers)."""
    process = subprocess.Popen(
        command(out, jsonl, 2, *more), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while not (out / "metrics.jsonl").exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True)
    return process, [int(number) for number in children.stdout.split()]


def exact_metrics(out: Path) -> list[dict]:
    lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return [{key: line[key] for key in EXACT if key in line} for line in lines]


def final_weights(out: Path) -> dict[str, torch.Tensor]:
    newest = out / "checkpoints" / (out / "last").read_text().strip()
    return load_file(newest / "adapter_model.safetensors")


def assert_same_run(out: Path, reference: Path) -> None:
    assert exact_metrics(out) == exact_metrics(reference)
    ours, theirs = final_weights(out), final_weights(reference)
    assert ours.keys() == theirs.keys() and all(ours[n].equal(theirs[n]) for n in theirs)
    assert (out / "best").read_text() == (reference / "best").read_text()


def run_main(out: Path, jsonl: Path, *more: str) -> int:
    return train.main(command(out, jsonl, 1, *more)[3:])


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, jsonl) -> Path:
    """The run that the others are compared with; tests that harm it take a copy."""
    out = tmp_path_factory.mktemp("run") / "undisturbed"
    assert run_main(out, jsonl) == 0
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
    assert run_main(out, jsonl, "--resume", "auto") == 0
    printed = capsys.readouterr().out
    assert f"{newest} is damaged (optimizer.safetensors is not as it was written)" in printed
    assert f"resuming after step {STEPS - 2}" in printed
    assert_same_run(out, undisturbed)


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
    assert run_main(out, jsonl, "--resume", "auto") == 0
    assert_same_run(out, undisturbed)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_two_processes_stop_together_on_a_signal_and_go_on_as_one(
    tmp_path, jsonl, undisturbed, number
):
    """The signal reaches one rank only; both save and end; one process finishes the run."""
    out = tmp_path / "stopped"
    more = ["--batch-size", "1"]
    process, ranks = two_processes(out, jsonl, *more)
    os.kill(ranks[-1], number)
    printed, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    step = int(re.search(r"stopped after step (\d+)", printed)[1])
    assert step < STEPS
    assert run_main(out, jsonl, "--resume", "auto", "--lora-dropout", "0.2") == 0
    ours, reference = exact_metrics(out), exact_metrics(undisturbed)
    assert [line["step"] for line in ours] == [line["step"] for line in reference]


def test_a_save_that_the_disk_refuses_is_a_warning_and_training_goes_on(
    tmp_path, jsonl, undisturbed, capfd
):
    """The limit on a file's size stands for a full disk: writing fails in the middle of a file."""
    out = tmp_path / "full"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    shutil.copytree(undisturbed, out)
    for path in checkpoint.all_checkpoints(out / "checkpoints")[1:]:
        shutil.rmtree(path)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    try:
        assert run_main(out, jsonl, "--resume", "auto") == 0
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert f"warning: no checkpoint of step {STEPS}" in capfd.readouterr().err
    assert [p.name for p in (out / "checkpoints").iterdir()] == ["step-000002"]
    assert checkpoint.damage(out / "checkpoints" / "step-000002") is None
    assert exact_metrics(out)[-1] == exact_metrics(undisturbed)[-1]


def test_steps_that_are_not_finite_are_skipped_counted_and_end_the_run_with_their_rows(
    tmp_path, jsonl, monkeypatch
):
    """From step 5 on, a page of the batch makes the loss not a number."""
    from deepsynth_min.model.deepseek_ocr import DeepseekOCR

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
        run_main(out, jsonl, "--max-skips", "4", "--log-every", "1", "--eval-every", "0")
    lines = [
        line for line in map(json.loads, open(out / "metrics.jsonl")) if line["kind"] == "train"
    ]
    assert [line["skipped_steps"] for line in lines] == [0, 0, 0, 0, 0, 1, 2, 3, 4]
    skipped = json.loads((out / "skipped.json").read_text())
    assert list(skipped) == ["5", "6", "7", "8"] and len(skipped["5"]) == 2
    assert all(re.search(r"rows.jsonl:\d+$", where) for row in skipped.values() for where in row)


def test_a_lost_rank_ends_the_others(tmp_path, jsonl):
    out = tmp_path / "lost"
    process, ranks = two_processes(
        out, jsonl, "--timeout", "20", "--max-steps", "5000", "--eval-every", "0"
    )
    os.kill(ranks[-1], signal.SIGKILL)
    began = time.monotonic()
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0 and time.monotonic() - began < 40
    assert re.search(r"rank\s+: \d", errors) and "SIGKILL" in errors  # the launcher names the rank


def test_a_process_that_hangs_ends_the_others_and_is_named(tmp_path, jsonl):
    """It is stopped rather than killed: no connection breaks, and only --timeout can tell."""
    out = tmp_path / "hung"
    process, ranks = two_processes(
        out, jsonl, "--timeout", "5", "--max-steps", "5000", "--eval-every", "0"
    )
    hung = ranks[-1]
    environment = Path(f"/proc/{hung}/environ").read_bytes().split(b"\0")
    rank = next(int(entry[5:]) for entry in environment if entry.startswith(b"RANK="))
    os.kill(hung, signal.SIGSTOP)
    seen = []
    for line in process.stderr:
        seen.append(line)
        if "lost another process" in line:
            break
    os.kill(hung, signal.SIGKILL)
    rest = "".join(seen) + process.communicate(timeout=60)[1]
    assert process.returncode != 0
    found = re.search(r"rank (\d) lost another process: (.*)", rest)
    assert int(found[1]) == 1 - rank and re.search(rf"Ranks? {rank}\b", found[2]), rest


def test_a_batch_that_does_not_fit_into_memory_is_told_what_to_lower(tmp_path, jsonl):
    """The limit on address space stands for a small machine."""
    limit = "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (8 * 2**30,) * 2); "
    call = "from deepsynth_min.train import main; sys.exit(main(sys.argv[1:]))"
    more = command(
        tmp_path / "r",
        jsonl,
        *(
            "1 --batch-size 512 --mode 1280 --max-pages 1 --overflow truncate --eval-every 0 "
            "--answer-samples 0 --ablation-samples 0 --tune all"
        ).split(),
    )[3:]
    done = subprocess.run(
        [sys.executable, "-c", limit + call, *more], capture_output=True, text=True
    )
    assert done.returncode == 2, done.stderr[-2000:]
    assert (
        done.stderr.strip().splitlines()[-1].startswith("error: out of memory: lower --batch-size")
    )
