"""Several processes: killed in the middle of anything, restarted by torchrun, fewer than before."""

import os
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
from commands import ranks_of, words
from killed_runs import KILLS, assert_bit_identical, finish, kill_again_and_again, launch, log_of
from run_files import exact_lines, losses, weights

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, jsonl) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "r"
    finish(out, jsonl, 2)
    return out


def test_two_processes_killed_twenty_times_are_bit_identical_to_an_undisturbed_run(
    tmp_path, jsonl, undisturbed
):
    """LoRA with dropout and augmentation; some of the kills fall into a save."""
    out = tmp_path / "killed"
    kills, amid = kill_again_and_again(out, jsonl, 2, seed=2)
    finish(out, jsonl, 2)
    assert kills == KILLS and amid >= 1
    assert_bit_identical(out, undisturbed)


def test_torchrun_restarts_a_job_whose_rank_was_killed_and_the_result_is_the_same(
    tmp_path, jsonl, undisturbed
):
    out = tmp_path / "restarted"
    process = launch(out, jsonl, 2, launcher=("--max-restarts", "3"))
    while not (out / "last").exists():
        assert process.poll() is None, log_of(out)[-3000:]
        time.sleep(0.01)
    os.kill(ranks_of(process)[-1], signal.SIGKILL)
    assert process.wait(timeout=300) == 0, log_of(out)[-3000:]
    assert re.search(r"resuming after step \d+", log_of(out))
    assert_bit_identical(out, undisturbed)


def test_two_one_and_again_two_processes_see_the_same_samples_and_losses(tmp_path, jsonl):
    """Without dropout, which differs with the micro-batches; a line for every step."""
    plain = words(
        "--lora-dropout 0 --log-every 1 --max-steps 30 --eval-every 10 --save-every 10 --keep 9"
    )
    reference, out = tmp_path / "two", tmp_path / "changing"
    finish(reference, jsonl, 2, *plain)
    shutil.copytree(reference, out)
    for processes, last in ((1, 10), (2, 20)):
        for path in (out / "checkpoints").iterdir():
            if int(path.name.removeprefix("step-")) > last:
                shutil.rmtree(path)
        finish(out, jsonl, processes, *plain)
    assert re.findall(r"resuming after step (\d+)", log_of(out)) == ["10", "20"]
    ours, theirs = exact_lines(out), exact_lines(reference)
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    for kind in ("train", "eval"):
        assert losses(out, kind) == pytest.approx(losses(reference, kind), rel=1e-6)
    final, other = (weights(run, "adapter_model.safetensors") for run in (out, reference))
    assert max((final[n] - other[n]).abs().max().item() for n in other) < 1e-6
