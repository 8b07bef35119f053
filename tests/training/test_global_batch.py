"""--global-batch: a step has as many samples, however many processes there are."""

import pytest
from adapter_runs import run, write_base, write_rows
from commands import TRAIN, ranks, words
from run_files import losses, weights
from small_model import SMALL

from deepsynth_min.command_line import parse
from deepsynth_min.errors import UserError
from deepsynth_min.training.build import accumulation

GIVEN = words("--batch-size 1 --global-batch 12 --tune decoder --seed 3 --save-every 2")


@pytest.mark.parametrize(
    "given, processes, micro_steps",
    [("--batch-size 4", 2, 3), ("--batch-size 24", 1, 1), ("--batch-size 2 --accumulate 4", 3, 4)],
)
def test_accumulation_follows_from_it(given, processes, micro_steps):
    optim = parse(words(f"--global-batch 24 {given}")).optim
    assert accumulation(optim, processes) == micro_steps


@pytest.mark.parametrize(
    "given, processes, says",
    [
        ("--batch-size 5", 1, r"24: not a multiple of 5 \(.*; 20 and 25 are"),
        ("--batch-size 4", 5, "not a multiple of 20 .*processes 5.; 20 and 40 are"),
        ("--batch-size 32", 1, "32 is the least"),
        ("--batch-size 4 --accumulate 2", 1, "--accumulate: follows from --global-batch"),
    ],
)
def test_one_that_cannot_be_is_refused_with_the_nearest(given, processes, says):
    with pytest.raises(UserError, match=says):
        accumulation(parse(words(f"--global-batch 24 {given}")).optim, processes)


@pytest.mark.slow
def test_processes_may_come_and_go_with_no_option_changed(tmp_path):
    """3, 4, 2, then 1 process go on with the same run; one process makes it alone."""
    write_base(tmp_path / "base", SMALL)
    write_rows(tmp_path / "rows.jsonl")
    names = words(
        "--model {} --data {} --out {}", *(tmp_path / n for n in ("base", "rows.jsonl", "r"))
    )
    small = words("--val-samples 2 --log-every 1 --lr 0.01 --answer-samples 0 --ablation-samples 0")
    for processes, steps in ((3, 2), (4, 4), (2, 6), (1, 8)):
        # --max-steps says where each "machine" is lost; the schedule must be that of 8 steps.
        more = ["--max-steps", str(steps), "--min-lr-ratio", "1", "--warmup-ratio", "0"]
        resume = ["--resume", "auto"] if processes != 3 else []
        ranks(processes, *TRAIN, *GIVEN, *names, *small, *more, *resume)
    run(tmp_path, *GIVEN, *words("--max-steps 8 --min-lr-ratio 1 --warmup-ratio 0"), out="alone")
    one, other = losses(tmp_path / "r", "train"), losses(tmp_path / "alone", "train")
    assert len(one) == 8 and one == pytest.approx(other, rel=1e-6)
    ours, whole = weights(tmp_path / "r"), weights(tmp_path / "alone")
    for name, tensor in whole.items():
        assert (ours[name].float() - tensor.float()).norm() <= 1e-5 * tensor.float().norm(), name
