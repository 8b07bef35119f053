"""A process killed in the middle of anything: what is resumed ends as the undisturbed run does."""

import pytest
from killed_runs import (
    KILLS,
    assert_bit_identical,
    finish,
    kill_again_and_again,
    kill_all,
    launch,
    log_of,
    options,
    wait_for_a_save,
    wait_for_life,
)
from run_files import exact_lines

from deepsynth_min import train


@pytest.mark.slow
def test_a_run_killed_once_is_bit_identical_to_an_undisturbed_one(tmp_path, jsonl):
    """As soon as something is being saved: one of the kills of the series below."""
    few, killed, whole = ["--max-steps", 12], tmp_path / "killed", tmp_path / "whole"
    assert train.main(options(whole, jsonl, 2, *few)) == 0
    process = launch(killed, jsonl, 1, *few)
    wait_for_life(process, killed, 0)
    wait_for_a_save(process, killed)
    assert process.poll() is None, log_of(killed)[-3000:]
    kill_all(process)
    assert len(exact_lines(killed)) < len(exact_lines(whole))
    assert train.main(options(killed, jsonl, 2, *few)) == 0
    assert_bit_identical(killed, whole)


@pytest.mark.slow
def test_a_run_killed_twenty_times_is_bit_identical_to_an_undisturbed_one(tmp_path, jsonl):
    """LoRA with dropout and augmentation; some of the kills fall into a save."""
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    kills, amid = kill_again_and_again(killed, jsonl, 1, seed=1)
    finish(killed, jsonl, 1)
    assert kills == KILLS and amid >= 1
    finish(whole, jsonl, 1)
    assert_bit_identical(killed, whole)
