"""The same run however it is divided: over processes (Gloo, CPU), in shards, and as by torch's DDP.

The runs of two processes are made one after the other in the same two: to start takes longest.
"""

import json
from pathlib import Path

import pytest
import torch
import workers
from commands import ranks

from deepsynth_min import train
from deepsynth_min.training.distributed import GradientReducer, World, _buckets

RUNS = {  # name: (processes, options); all have a global batch of 8
    "1x8": (1, dict(size=8, accumulate=1)),
    "1x2x4": (1, dict(size=2, accumulate=4)),
    "2x4": (2, dict(size=4, accumulate=1)),
    "2x2x2": (2, dict(size=2, accumulate=2)),
    "4x2": (4, dict(size=2, accumulate=1)),
    "ddp 2x4": (2, dict(size=4, accumulate=1, with_ddp=True)),
    "lora 1x8": (1, dict(size=8, accumulate=1, tune="lora")),
    "lora 2x2x2": (2, dict(size=2, accumulate=2, tune="lora")),
}
MORE = {  # by two processes, for the shards
    "all 2x4": dict(size=4, accumulate=1, tune="all"),
    "all but sam 2x4": dict(
        size=4, accumulate=1, tune="all-but-sam", rates={"projector": 5.0, "CLIP": 0.1}
    ),
    "lora on an encoder 2x2x2": dict(
        size=2, accumulate=2, tune="lora", targets=("attention", "encoder"), rates={"CLIP": 0.2}
    ),
    "bf16 2x4": dict(size=4, accumulate=1, weights="bf16"),
    "recomputed 2x4": dict(size=4, accumulate=1, recompute=2),
    "spoilt 2x4": dict(size=4, accumulate=1, spoilt=1),
}
RUNS |= {name: (2, options) for name, options in MORE.items()}
SHARDED = ("2x4", "2x2x2", "lora 2x2x2", *MORE)  # made twice, without shards and with them
RUNS |= {f"sharded {name}": (2, RUNS[name][1] | {"sharded": True}) for name in SHARDED}


def train_in(processes: int, folder: Path) -> dict[str, tuple[list[float], dict]]:
    """The runs of so many processes: name -> (losses, final weights)."""
    given = {name: options for name, (n, options) in RUNS.items() if n == processes}
    entries = [{"name": name, **options} for name, options in given.items()]
    if processes > 1:
        ranks(processes, workers.__file__, folder, json.dumps(entries))
    else:
        for entry in entries:
            workers.train(World(0, 1, torch.device("cpu")), str(folder), **entry)
    return workers.trained(folder, given)


@pytest.fixture(scope="module")
def undivided(tmp_path_factory) -> dict[str, tuple[list[float], dict]]:
    return train_in(1, tmp_path_factory.mktemp("undivided"))


@pytest.fixture(scope="module")
def runs(undivided, tmp_path_factory) -> dict[str, tuple[list[float], dict]]:
    return undivided | train_in(2, tmp_path_factory.mktemp("divided"))


def assert_equal(run, whole) -> None:
    (losses, weights), (expected, reference) = run, whole
    assert losses == pytest.approx(expected, rel=1e-6)
    assert max((weights[n] - reference[n]).abs().max().item() for n in reference) < 1e-6


@pytest.mark.parametrize("name", ["1x2x4", "2x4", "2x2x2", "ddp 2x4", "lora 2x2x2"])
def test_a_divided_run_has_the_losses_and_weights_of_the_whole_one(runs, name):
    """Very uneven answers, a third of the samples without a page; float32."""
    assert_equal(runs[name], runs["lora 1x8" if name.startswith("lora") else "1x8"])


@pytest.mark.slow  # four processes start
def test_a_run_divided_by_four_has_the_losses_and_weights_of_the_whole_one(undivided, tmp_path):
    assert_equal(train_in(4, tmp_path)["4x2"], undivided["1x8"])


def test_our_reduction_gives_what_torch_ddp_gives(runs):
    (losses, weights), (whole, reference) = runs["2x4"], runs["ddp 2x4"]
    assert losses == pytest.approx(whole, rel=1e-7)
    assert max((weights[n] - reference[n]).abs().max().item() for n in reference) < 1e-7


def test_the_runs_moved(runs):
    """The comparisons above would hold for runs that do nothing."""
    losses, weights = runs["1x8"]
    torch.manual_seed(0)
    start = dict(workers.make_model("projector+decoder").named_parameters())
    assert losses[-1] < losses[0]
    assert all((weights[n] - start[n]).abs().max() > 1e-5 for n in weights)


@pytest.mark.parametrize("name", SHARDED)
def test_a_run_in_shards_has_the_losses_and_weights_of_one_without(runs, name):
    """`spoilt`: one rank's loss of the second step is no number, so that all must skip it; `bf16`:
    weights rounded at random."""
    (losses, weights), (expected, reference) = runs[f"sharded {name}"], runs[name]
    assert losses == pytest.approx(expected, rel=1e-5, nan_ok=True)
    assert weights.keys() == reference.keys()
    assert max((weights[n] - reference[n]).abs().max().item() for n in reference) < 1e-5


def test_the_spoilt_step_was_one(runs):
    assert [loss == loss for loss in runs["sharded spoilt 2x4"][0]] == [True, False, True]


@pytest.mark.parametrize("words", [["--tune", "qlora"], ["--optimizer", "adamw8bit"]])
def test_what_cannot_be_divided_is_refused(tmp_path, capsys, words):
    assert train.main(["--shard", *words, "--out", str(tmp_path / "r")]) == 2
    assert "--shard" in capsys.readouterr().err and not (tmp_path / "r").exists()


def test_buckets_hold_every_parameter_once_and_never_mix_types():
    parameters = [
        torch.empty(n, dtype=t)
        for n in (3, 2**20, 7, 2**18)
        for t in (torch.float32, torch.bfloat16)
    ]
    buckets = _buckets(parameters)
    assert [id(p) for bucket in buckets for p in bucket] == [id(p) for p in parameters]
    assert all(len({p.dtype for p in bucket}) == 1 for bucket in buckets)


def test_with_one_process_a_missing_gradient_becomes_zeros_and_is_named():
    used, unused = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    reducer = GradientReducer(World(0, 1, torch.device("cpu")), [used, unused])
    reducer.armed = True
    used.sum().backward()
    reducer.finish()
    assert unused.grad.eq(0).all() and used.grad.eq(1).all()
    assert reducer.without_gradient() == [1]
