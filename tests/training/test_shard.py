"""Sharded mode: real processes (Gloo, CPU), against the same runs without shards."""

import json

import pytest
import workers
from commands import ranks

from deepsynth_min import train

PAIRS = {  # what differs from the run of the same name without shards: nothing but the shards
    "decoder 2x4": dict(size=4, accumulate=1),
    "decoder 2x2x2": dict(size=2, accumulate=2),
    "all 2x4": dict(size=4, accumulate=1, tune="all"),
    "all but sam 2x4": dict(
        size=4, accumulate=1, tune="all-but-sam", rates={"projector": 5.0, "CLIP": 0.1}
    ),
    "lora 2x2x2": dict(size=2, accumulate=2, tune="lora"),
    "lora on an encoder 2x2x2": dict(
        size=2, accumulate=2, tune="lora", targets=("attention", "encoder"), rates={"CLIP": 0.2}
    ),
    "bf16 2x4": dict(size=4, accumulate=1, weights="bf16"),
    "recomputed 2x4": dict(size=4, accumulate=1, recompute=2),
    "spoilt 2x4": dict(size=4, accumulate=1, spoilt=1),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> dict[str, tuple[list[float], dict]]:
    """Name, or "sharded " and name -> (losses, final weights)."""
    folder = tmp_path_factory.mktemp("pairs")
    runs = PAIRS | {
        f"sharded {name}": options | {"sharded": True} for name, options in PAIRS.items()
    }
    entries = [{"name": name, **options} for name, options in runs.items()]
    ranks(2, workers.__file__, folder, json.dumps(entries))
    return workers.trained(folder, runs)


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


@pytest.mark.parametrize("words", [["--tune", "qlora"], ["--optimizer", "adamw8bit"]])
def test_what_cannot_be_divided_is_refused(tmp_path, capsys, words):
    assert train.main(["--shard", *words, "--out", str(tmp_path / "r")]) == 2
    assert "--shard" in capsys.readouterr().err and not (tmp_path / "r").exists()
