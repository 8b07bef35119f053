"""train --dry-run: what it says is so, nothing is written, and mistakes are one line."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from commands import python, words
from small_model import SMALL

from deepsynth_min import train
from deepsynth_min.command_line import parse
from deepsynth_min.corpus import documents as corpus
from deepsynth_min.model.batch import Batch
from deepsynth_min.model.loss import CHUNK, chunked_cross_entropy
from deepsynth_min.options import change
from deepsynth_min.planning import dry_run
from deepsynth_min.planning.plan import USABLE, Plan, logits_bytes, make
from deepsynth_min.planning.pretend import CUDA, on_paper
from deepsynth_min.planning.roofline import GPUS
from deepsynth_min.settings import Settings

HELPERS = Path(__file__).parents[1] / "helpers"


@pytest.fixture(scope="module")
def same_rows(tmp_path_factory) -> Path:
    """Sixteen times the same row, so that every micro-batch is as heavy."""
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    document = corpus.documents("train")[0]
    row = json.dumps({"text": document.text[:300], "summary": document.summary})
    path.write_text(f"{row}\n" * 16, "utf-8")
    return path


def small_batch(size: int) -> Batch:
    """Samples of 40 tokens, one page of 128 px each, 20 tokens scored."""
    ids = torch.randint(3, 99, (size, 40))
    image = torch.zeros(size, 40, dtype=torch.bool)
    image[:, 1:8] = True
    labels = ids.clone()
    labels[:, :20] = -100
    pages = torch.zeros(size, 1, 128, 128, dtype=torch.uint8)
    return Batch(ids, torch.ones_like(image), image, labels, pages)


def plan(processes: int = 1, size: int = 4, **changes) -> Plan:
    adapter = {"lora_rank": 4, "lora_alpha": 8.0, "lora_targets": ("attention+mlp",)}
    return make(SMALL, change(Settings(), **adapter | changes), small_batch(size), processes)


# -- memory ---------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("again", (0, 3))
@pytest.mark.parametrize("tune", ("decoder", "lora", "qlora"))
def test_the_peak_is_within_a_tenth_of_what_a_step_on_the_cpu_takes(
    same_rows, tmp_path, tune, again
):
    """Measured by torch's profiler, which counts what the allocator gives, in a new process."""
    given = "--model tiny --tune {} --data {} --val-fraction 0 --batch-size 8 --device cpu"
    given = words(f"{given} --threads 1 --checkpoint-layers {again}", tune, same_rows)
    run = [*given, *words("--ablation-samples 0 --answer-samples 0 --out {}", tmp_path / "run")]
    done = python(HELPERS / "real_peak.py", json.dumps([run]), check=True)
    (measured,) = json.loads(done.stdout.splitlines()[-1])
    assert dry_run.look(parse(given), 1).heavy.peak == pytest.approx(measured, rel=0.1)


@pytest.mark.parametrize("precision", ("fp32", "bf16"))
def test_logits_are_what_the_loss_holds_beside_its_inputs(precision):
    settings, batch = change(Settings(), precision=precision), small_batch(4)
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    with on_paper() as (count, _):
        hidden = torch.empty(batch.num_scored, 32, device=CUDA, dtype=dtype, requires_grad=True)
        weight = torch.empty(4096, 32, device=CUDA, dtype=dtype)
        targets = torch.empty(batch.num_scored, device=CUDA, dtype=torch.int64)
        before = count.held
        chunked_cross_entropy(hidden, weight, targets)
        assert batch.num_scored < CHUNK
        assert count.peak - before == pytest.approx(logits_bytes(SMALL, settings, batch), rel=0.02)


def test_gradients_of_the_first_micro_step_wait_for_the_second():
    once, twice = plan(), plan(accumulate=2)
    gradients = once.paper.held["gradients"]
    assert twice.paper.peak["encode"] - once.paper.peak["encode"] == pytest.approx(
        gradients, rel=0.1
    )
    assert twice.paper.activations == pytest.approx(once.paper.activations, rel=0.1)


def test_several_processes_hold_gradients_twice_while_they_add_them_up():
    alone, two = plan(), plan(processes=2)
    assert two.paper.peak["reduce"] >= alone.paper.peak["reduce"] + alone.paper.held["gradients"]
    assert plan(processes=2, reduce="bf16").sent * 2 == two.sent == alone.paper.held["gradients"]


def test_shards_hold_a_share_of_the_moments_and_less_in_all():
    whole, shared = plan(processes=8), plan(processes=8, shard=True)
    assert shared.paper.held["moments"] * 8 == pytest.approx(whole.paper.held["moments"], rel=0.01)
    assert shared.peak < whole.peak


@pytest.mark.parametrize(
    "changes",
    (
        {},
        {"tune": "lora"},
        *(pytest.param(c, marks=pytest.mark.slow) for c in ({"weights": "bf16"}, {"pack": True})),
    ),
)
def test_layers_that_are_computed_again_cost_a_forward_and_keep_little(changes):
    """Their FLOPs, and not those of head and loss."""
    changes = {"precision": "bf16"} | changes
    kept, again = (
        plan(**changes),
        plan(**changes, checkpoint_layers=SMALL.decoder.num_hidden_layers),
    )
    forward, *backward = (
        sum(kernel.flops for kernel in of.paper.kernels[part])
        for of, part in ((kept, "forward"), (kept, "backward"), (again, "backward"))
    )
    assert 0.1 * forward < backward[1] - backward[0] < 0.2 * forward
    assert again.paper.activations < 0.6 * kept.paper.activations


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    (
        {"weights": "bf16", "precision": "bf16"},
        {"optimizer": "adamw8bit"},
        {"tune": "qlora"},
        {"precision": "fp16", "compile": True},
        {"tune": "all", "balance": 0.01},
    ),
)
def test_every_kind_of_step_can_be_counted(changes):
    assert plan(**changes).peak > plan(**changes).paper.held["weights"]


def test_heads_of_a_width_that_16_bit_kernels_do_not_have_are_padded_and_cut_again():
    """As tiny-reader's in CLIP: 44 numbers become 48."""
    config = replace(SMALL, clip=replace(SMALL.clip, heads=8))
    settings = change(Settings(), tune="decoder", precision="bf16")
    paper = make(config, settings, small_batch(2), 1).paper
    assert any(k.kind == "attention" for k in paper.kernels["encode"])


# -- time and cost --------------------------------------------------------------------------------


def test_an_epoch_on_twice_as_many_gpus_takes_half_as_long_or_longer():
    gpu = GPUS["h100"]
    alone, two = plan(), plan(processes=2)
    assert alone.step(gpu) <= two.step(gpu) <= alone.step(gpu) + two.sending(gpu) + 1e-3


# -- what is printed ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def said(same_rows, tmp_path_factory) -> str:
    """What a dry run of `tiny` says, in an empty directory, which stays empty."""
    folder = tmp_path_factory.mktemp("empty")
    given = "--dry-run --model tiny --data {} --val-fraction 0 --batch-size 2 --epochs 3"
    given = words(f"{given} --gpu h100 --gpus 2 --gpu-price 3600", same_rows)
    done = python("-m", "deepsynth_min.train", *given, cwd=folder, check=True)
    assert not list(folder.iterdir())
    return done.stdout


def test_a_dry_run_says_rows_steps_memory_time_and_cost(said):
    for text in ("16 rows in an epoch", "12 steps of 4 samples", "3 x the rows", "per GPU, h100"):
        assert text in said
    for part in ("weights", "gradients", "moments", "kept activations", "logits", "peak, in"):
        assert f"\n  {part}" in said
    assert "  fits: 0% of 80 GB" in said and f"{USABLE:.0%} are taken to be usable" in said
    assert "an epoch: " in said and "for the run at that price" in said
    assert "\n  --precision bf16" in said and "\n  --feature-cache" in said


@pytest.mark.slow  # five steps are counted
def test_the_dry_run_that_readme_prints(capsys):
    readme = Path(__file__).parents[2] / "README.md"
    (given,) = re.findall(r"`(--dry-run [^`]+)`", readme.read_text("utf-8"))
    assert train.main(given.split()) == 0
    assert "--feature-cache, from the second epoch on" in capsys.readouterr().out


@pytest.mark.parametrize(
    "given, message",
    (
        ("--gpu h100", "--gpu: goes with --dry-run"),
        ("--dry-run --gpu v100", "--gpu v100: known are h100, h200"),
        ("--dry-run --gpus 0", "--gpus 0: is below 1"),
        ("--dry-run --gpu-price 2", "--gpu-price: of which GPU? give --gpu"),
        ("--dry-run --gpu t4 --precision bf16", "--gpu t4: computes no bf16"),
        ("--dry-run --gpu l4 --device cpu", "--gpu l4: not with --device cpu"),
        ("--dry-run --data none.jsonl", "none.jsonl: no such file"),
        ("--dry-run --shard --tune qlora", "--shard: --tune qlora"),
        ("--dry-run --tune lora --adapter x", "--adapter x: a dry run reads no weights"),
    ),
)
def test_what_cannot_be_counted_is_said_in_one_line(capsys, given, message):
    assert train.main(given.split()) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
