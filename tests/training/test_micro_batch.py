"""Micro-batches that memory decides: halved where it runs out, found by --batch-size auto."""

import json
import sys
from pathlib import Path

import pytest
import torch
from adapter_runs import run, write_base, write_rows
from commands import python, ranks, words
from run_files import losses
from small_model import SMALL

from deepsynth_min.command_line import parse
from deepsynth_min.data.order import Order
from deepsynth_min.errors import UserError, is_out_of_memory
from deepsynth_min.evaluation.evaluator import in_halves
from deepsynth_min.options import change
from deepsynth_min.settings import Settings
from deepsynth_min.training.micro_batch import smaller, with_auto
from deepsynth_min.training.shard import check

LIMITED = Path(__file__).parents[1] / "helpers" / "limited.py"
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, limits address space")


@pytest.mark.parametrize(
    "size, accumulate, then", [(8, 1, (4, 2)), (5, 1, (1, 5)), (6, 2, (3, 4)), (3, 4, (1, 12))]
)
def test_a_smaller_micro_batch_is_half_or_what_divides_the_step(size, accumulate, then):
    made = smaller(change(Settings(), batch_size=size, accumulate=accumulate)).optim
    assert (made.batch_size, made.accumulate) == then


@pytest.mark.parametrize(
    "global_batch, processes, device, size",
    [(256, 2, "cuda", 128), (24, 1, "cpu", 8), (20, 2, "cpu", 5), (7, 1, "cpu", 7)],
)
def test_auto_begins_with_all_of_a_gpus_share_and_with_8_at_most_on_a_cpu(
    global_batch, processes, device, size
):
    optim = parse(words(f"--batch-size auto --global-batch {global_batch}")).optim
    assert with_auto(optim, processes, device) == size


def test_auto_needs_to_know_the_samples_of_a_step():
    with pytest.raises(UserError, match="--batch-size auto: give --global-batch"):
        with_auto(parse(words("--batch-size auto")).optim, 1, "cpu")


def test_auto_refuses_a_global_batch_that_processes_cannot_share():
    with pytest.raises(UserError, match="--global-batch 9: not a multiple of 2 processes"):
        with_auto(parse(words("--batch-size auto --global-batch 9")).optim, 2, "cuda")


def test_auto_is_refused_with_shards():
    with pytest.raises(UserError, match="--batch-size auto: not with --shard"):
        check(parse(words("--batch-size auto --global-batch 8 --shard")))


def test_neither_a_word_nor_a_fraction_is_a_batch_size():
    for wrong in ("automatic", "1.5"):
        with pytest.raises(UserError, match=f"--batch-size: '{wrong}' is not a whole number"):
            parse(["--batch-size", wrong])


def test_a_file_may_say_auto(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text('[optim]\nbatch_size = "auto"\nglobal_batch = 12\n')
    assert parse(["--config", str(path)]).optim.batch_size == 0


def test_an_allocation_that_the_system_refuses_is_told_from_other_errors():
    with pytest.raises(RuntimeError) as refused:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(refused.value) and is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("shapes do not match"))


def test_what_does_not_fit_at_once_is_done_in_halves_in_the_same_order():
    def act(items):
        if len(items) > 3:
            torch.empty(2**60, dtype=torch.uint8)
        return [item * 2 for item in items]

    assert in_halves(list(range(10)), act) == [2 * i for i in range(10)]


@pytest.mark.slow
def test_a_run_with_auto_is_that_of_the_same_global_batch(tmp_path):
    write_base(tmp_path / "base", SMALL)
    write_rows(tmp_path / "rows.jsonl")
    steps = words("--max-steps 2 --eval-every 0 --save-every 0 --tune decoder")
    auto = run(tmp_path, *steps, *words("--batch-size auto --global-batch 4"), out="auto")
    fixed = run(tmp_path, *steps, *words("--batch-size 2 --accumulate 2"), out="fixed")
    assert losses(auto, "train") == pytest.approx(losses(fixed, "train"), rel=1e-6)


# -- memory that really ends ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A base, and rows of which those of the third step have many pages, all others one."""
    folder = tmp_path_factory.mktemp("memory")
    write_base(folder / "base", SMALL)
    long = set(Order(range(40), 0, 8, 0).step(2))
    with open(folder / "rows.jsonl", "w") as file:
        for i in range(40):
            text = "A word or two. " * (600 if i in long else 4)
            file.write(json.dumps({"text": text, "summary": f"Number {i}."}) + "\n")
    return folder


def arguments(folder, name, size) -> list[str]:
    names = words(
        "--model {} --data {} --out {}", folder / "base", folder / "rows.jsonl", folder / name
    )
    more = words(
        "--tune all --mode 256 --bucket 0 --max-steps 4 --eval-every 0 --save-every 0 "
        f"--val-fraction 0 --batch-size {size} --global-batch 8"
    )
    return [*names, *more, *words("--log-every 1 --lr 0.001 --threads 1")]


def peak(folder, name, rank=0) -> int:
    return int((folder / name / f"peak-{rank}").read_text())


@pytest.fixture
def exact_memory(monkeypatch):
    """What is freed goes back to the system at once, so that a run reserves what it needs."""
    for name, value in (("ARENA_MAX", "1"), ("MMAP_THRESHOLD_", "65536"), ("TRIM_THRESHOLD_", "0")):
        monkeypatch.setenv(f"MALLOC_{name}", value)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@linux
@pytest.mark.slow
def test_a_step_that_runs_out_of_memory_goes_on_with_half_the_micro_batch(folder, exact_memory):
    for name, size in (("whole", 8), ("half", 4)):
        done = python(LIMITED, 0, 0, *arguments(folder, name, size))
        assert done.returncode == 0 and "out of memory" not in done.stderr, done.stderr
    limit = (peak(folder, "whole") + peak(folder, "half")) // 2
    done = python(LIMITED, limit, 0, *arguments(folder, "limited", 8))
    assert done.returncode == 0, done.stderr
    assert "step 3: out of memory with micro-batches of 8; goes on with --batch-size 4" in (
        done.stderr
    )
    found, reference = losses(folder / "limited", "train"), losses(folder / "half", "train")
    assert len(found) == 4 and found == pytest.approx(reference, rel=1e-6)


@linux
@pytest.mark.slow
def test_a_rank_that_runs_out_of_memory_takes_the_others_with_it(folder, exact_memory):
    for name, size in (("whole-2", 4), ("half-2", 2)):
        ranks(2, LIMITED, 0, 1, *arguments(folder, name, size))
    limit = (peak(folder, "whole-2", 1) + peak(folder, "half-2", 1)) // 2
    said = ranks(2, LIMITED, limit, 1, *arguments(folder, "limited-2", 4))
    assert said.count("step 3: out of memory with micro-batches of 4; goes on with") == 1
    found, reference = losses(folder / "limited-2", "train"), losses(folder / "half-2", "train")
    assert len(found) == 4 and found == pytest.approx(reference, rel=1e-6)


@linux
@pytest.mark.slow
def test_with_shards_it_ends_in_a_line_that_says_how_to_go_on_and_so_it_does(folder, exact_memory):
    for name, size in (("whole-s", 4), ("half-s", 2)):
        ranks(2, LIMITED, 0, 1, *arguments(folder, name, size), "--shard")
    limit = (peak(folder, "whole-s", 1) + peak(folder, "half-s", 1)) // 2
    often = ("--shard", "--save-every", "1")
    with pytest.raises(AssertionError) as ended:
        ranks(2, LIMITED, limit, 1, *arguments(folder, "limited-s", 4), *often)
    said = [line for line in str(ended.value).splitlines() if line.startswith("error: ")]
    assert len(said) == 1, ended.value
    assert said[0].startswith("error: --batch-size 4: out of memory, and with --shard no step is")
    assert (
        "go on with --resume auto --batch-size 2 --accumulate 2, which changes no result"
        in (said[0])
    )
    smaller = [*arguments(folder, "limited-s", 2), *often, "--accumulate", "2"]
    ranks(2, LIMITED, 0, 1, *smaller, "--resume", "auto")
    found, reference = losses(folder / "limited-s", "train"), losses(folder / "half-s", "train")
    assert len(found) == 4 and found == pytest.approx(reference, rel=1e-6)
