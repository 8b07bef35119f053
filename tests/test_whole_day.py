"""A whole working day with tiny-reader, each command a process of its own, as users start it.

Morning: page images in three layouts; an adapter, killed and gone on with; a second one under
torchrun, interrupted; the decoder, begun by two processes and finished by one. Noon: figures from
elsewhere, and after a move. Afternoon: answers of runs and exports; PEFT and transformers; a
training that starts from an export. Evening: mistakes in a hurry.

The one idea: whatever is done ends where an undisturbed run ends, or where another program does.
`pytest -m slow -n 1 -rP tests/test_whole_day.py` prints the figures.
"""

import json
import os
import re
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import hurried
import pytest
import torch
from commands import LAUNCHER, TRAIN, begun, python, start, words
from golden import TOLERANCE, difference
from killed_runs import kill_all
from released import logits_of
from run_files import assert_same_run, exact_lines, lines, losses, newest, weights
from scans import LAYOUTS, PAGES, draw_scans

from deepsynth_min.command_line import load_of_run
from deepsynth_min.data.samples import SampleBuilder, collate
from deepsynth_min.data.sources import open_files
from deepsynth_min.data.tokenizer import load_tokenizer, special_ids
from deepsynth_min.model.batch import Batch
from deepsynth_min.model.deepseek_ocr import DeepseekOCR
from deepsynth_min.model.shape.presets import find_checkpoint
from deepsynth_min.training import checkpoint
from deepsynth_min.training.stopping import STOPPING
from deepsynth_min.tuning.adapter import base_digest, load_adapter
from deepsynth_min.tuning.lora import Base

pytestmark = pytest.mark.slow

STEPS = 24
COMMON = words(
    "--data scans --instruction Read. --max-steps {} --log-every 1 --eval-every 0 --beams 1 "
    "--answer-samples 0 --ablation-samples 2 --max-new-tokens 48 --precision fp32 --threads 1",
    STEPS,
)
LORA = [*COMMON, *words("--tune lora --lr 3e-4")]
DECODER = [*COMMON, *words("--tune decoder --lr 1e-4")]
READING = words("scans/validation --max-new-tokens 48 --threads 1 --batch-size 4")


def command(place: Path, name: str, *arguments) -> subprocess.CompletedProcess:
    """Runs a command in a directory; it must end with 0."""
    done = python("-m", f"deepsynth_min.{name}", *arguments, cwd=place)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def stopped_step(run: Path) -> int:
    """The step of the newest checkpoint, which is whole, and before the last step."""
    assert checkpoint.damage(newest(run)) is None
    step = int(newest(run).name.removeprefix("step-"))
    assert 0 < step < STEPS
    return step


# -- morning: three trainings, each disturbed -----------------------------------------------------


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """The user's folder: scans/, and runs/lora, runs/decoder that nothing disturbs."""
    tree = tmp_path_factory.mktemp("day") / "tree"
    draw_scans(tree / "scans")
    command(tree, "train", *LORA, *words("--batch-size 4 --out runs/lora"))
    command(tree, "train", *DECODER, *words("--batch-size 2 --accumulate 2 --out runs/decoder"))
    return tree


def test_a_killed_run_goes_on_from_its_directory_alone_to_the_same_bytes(tree):
    out = tree / "runs" / "killed"
    given = words("--batch-size 4 --save-every 4 --out runs/killed")
    process = start(*TRAIN, *LORA, *given, cwd=tree)
    while not (out / "last").exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    kill_all(process)
    step = stopped_step(out)
    printed = command(tree, "train", *words("--out runs/killed --resume auto")).stdout
    assert f"resuming after step {step} from runs/killed/checkpoints/step-{step:06}" in printed
    assert_same_run(out, tree / "runs" / "lora", "adapter_model.safetensors")


def interrupt(process: subprocess.Popen, out: Path, number: int) -> str:
    """A signal to the group of a launcher and its two ranks, as a terminal or a scheduler sends
    it. Returns what was printed."""
    begun(process, out)
    os.killpg(process.pid, number)
    printed, errors = process.communicate(timeout=120)
    ours, _, of_launcher = errors.partition("Traceback")
    assert ours.splitlines().count(STOPPING) == 1, errors
    assert process.returncode == 1 and "SignalException" in of_launcher
    return printed


def gone_on_alone(tree: Path, out: Path, reference: Path, file: str) -> tuple[float, float]:
    """Finishes a run of two processes by one that makes twice as many micro-steps; returns by how
    much a weight differs from the undisturbed run's, and a tensor relative to its norm, at most.

    Rounding grows with the steps, AdamW divides by small gradients: without any interruption, two
    ways to divide a step in one process end as far apart.
    """
    command(tree, "train", *words("--out {} --resume auto --accumulate 2", out.relative_to(tree)))
    ours, theirs = exact_lines(out), exact_lines(reference)
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    for kind in ("train", "eval"):
        assert losses(out, kind) == pytest.approx(losses(reference, kind), abs=1e-5)
    final, expected = weights(out, file), weights(reference, file)
    assert final.keys() == expected.keys()
    errors = {name: final[name] - expected[name] for name in expected}
    relative = (error.norm() / expected[n].norm() for n, error in errors.items() if error.any())
    return max(float(e.abs().max()) for e in errors.values()), max(map(float, relative), default=0)


def test_ctrl_c_under_torchrun_leaves_a_whole_checkpoint_and_one_process_goes_on(tree):
    """The run saves at its end alone, so that the checkpoint is that of Ctrl-C."""
    out = tree / "runs" / "interrupted"
    given = words("--batch-size 2 --save-every 0 --out runs/interrupted")
    process = start(*LAUNCHER, 2, *TRAIN, *LORA, *given, cwd=tree)
    printed = interrupt(process, out, signal.SIGINT)
    assert checkpoint.all_checkpoints(out / "checkpoints") == [newest(out)]
    said = (
        f"stopped after step {stopped_step(out)}; go on with --out runs/interrupted --resume auto"
    )
    assert said in printed
    reference, file = tree / "runs" / "lora", "adapter_model.safetensors"
    weight, tensor = gone_on_alone(tree, out, reference, file)
    print(f"adapter, two processes and Ctrl-C: weights {weight:.1e}, tensors {tensor:.1e} apart")
    assert tensor < 5e-5


def test_a_decoder_begun_by_two_processes_and_finished_by_one_is_the_undisturbed_one(tree):
    out = tree / "runs" / "fewer"
    given = words("--batch-size 2 --out runs/fewer")
    process = start(*LAUNCHER, 2, *TRAIN, *DECODER, *given, cwd=tree)
    interrupt(process, out, signal.SIGTERM)
    stopped_step(out)
    reference, file = tree / "runs" / "decoder", "model.safetensors"
    weight, tensor = gone_on_alone(tree, out, reference, file)
    print(f"decoder, two processes and SIGTERM: weights {weight:.1e}, tensors {tensor:.1e} apart")
    assert tensor < 1e-6
    assert losses(out)[-1] < 0.9 * losses(out)[0]


# -- noon: figures from elsewhere -----------------------------------------------------------------


def figures(place: Path, *arguments) -> dict:
    found = json.loads(command(place, "evaluate", *arguments).stdout)
    found.pop("checkpoint")
    return found


def test_figures_are_the_same_from_another_directory_and_after_a_move(tree, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    given = words("--run {} --answer-samples 4", tree / "runs" / "lora")
    here = figures(tree, *words("--run runs/lora --answer-samples 4"))
    assert here["loss"] == pytest.approx(losses(tree / "runs" / "lora")[-1], abs=1e-6)
    assert here["answers"] == 4 and figures(tmp_path / "elsewhere", *given) == here
    moved = tree.rename(tmp_path / "moved")
    try:
        assert figures(tmp_path, *words("--run moved/runs/lora --answer-samples 4")) == here
        assert not tree.exists()
    finally:
        moved.rename(tree)


# -- afternoon: answers, exports, other programs --------------------------------------------------

EXPORTS = {
    "whole": words("--run runs/decoder --dtype float32"),
    "merged": words("--run runs/lora --merge --dtype float32"),
    "adapter": words("--run runs/lora"),
}
READERS = {
    "runs/decoder": words("--run runs/decoder"),
    "whole": words("--model whole"),
    "runs/lora": words("--run runs/lora"),
    "adapter": words("--model tiny-reader --adapter adapter"),
    "merged": words("--model merged"),
}


@pytest.fixture(scope="module")
def exports(tree) -> Path:
    """The user's folder, with whole/, merged/ and adapter/ in it."""
    for name, given in EXPORTS.items():
        command(tree, "export", *given, "--to", name)
    return tree


@pytest.fixture(scope="module")
def records(exports) -> dict[str, list[dict]]:
    """Reader -> what it wrote about the held-out pages, as JSON lines."""
    found = {}
    for name, given in READERS.items():
        out = exports / f"{name.replace('/', '-')}.jsonl"
        command(exports, "generate", *given, *READING, "--out", out)
        found[name] = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    return found


def test_run_base_with_adapter_and_exports_answer_alike_to_the_letter(records):
    answers = {name: [line["answer"] for line in found] for name, found in records.items()}
    assert answers["whole"] == answers["runs/decoder"]
    assert answers["adapter"] == answers["merged"] == answers["runs/lora"]
    assert answers["runs/lora"] != answers["runs/decoder"]
    for found in answers.values():
        assert len(found) == PAGES["validation"] and len(set(found)) > PAGES["validation"] // 2


@pytest.mark.parametrize("run", ["runs/lora", "runs/decoder"])
def test_error_rates_are_jiwers_on_the_written_answers(exports, records, run):
    jiwer = pytest.importorskip("jiwer")
    out = exports / f"{run.replace('/', '-')}-evaluated.jsonl"
    found = figures(exports, *words("--run {} --batch-size 4 --out {}", run, out))
    evaluated = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    rows = (exports / "scans" / "validation" / "metadata.jsonl").read_text("utf-8").splitlines()
    references = [json.loads(row)["text"] for row in rows]
    assert [line["reference"] for line in records[run]] == references
    assert [line["reference"] for line in evaluated] == references
    answers = [line["answer"] for line in records[run]]
    assert [line["answer"] for line in evaluated] == answers
    print(f"{run}: loss {found['loss']:.4f}, CER {found['cer_corpus']:.4f}")
    assert found["cer_corpus"] == pytest.approx(jiwer.cer(references, answers), rel=1e-12)
    assert found["wer_corpus"] == pytest.approx(jiwer.wer(references, answers), rel=1e-12)
    known = slice(0, None, len(LAYOUTS))  # the layout that it could read before
    assert jiwer.cer(references[known], answers[known]) < 0.4


def scans_as(tree: Path, run: str) -> Batch:
    """Three held-out pages, one of each layout, as a run sees them."""
    settings = load_of_run(tree / "runs" / run)
    base = find_checkpoint("tiny-reader")
    model = DeepseekOCR.from_pretrained(base)
    builder = SampleBuilder(settings, model.config, load_tokenizer(base))
    rows = open_files(str(tree / "scans" / "validation"), settings.data)
    return collate([builder(rows[i]) for i in range(3)], builder.special)


def test_peft_and_transformers_give_the_logits_of_the_exports(exports, monkeypatch):
    peers, peft = (pytest.importorskip(name) for name in ("peers", "peft"))
    monkeypatch.chdir(exports)
    base, batch = find_checkpoint("tiny-reader"), scans_as(exports, "lora")
    image = special_ids(load_tokenizer(base)).image
    for name in ("adapter", "merged", "whole"):
        place = base if name == "adapter" else Path(name)
        ours = DeepseekOCR.from_pretrained(place, torch.float32).eval()
        peer = peers.whole_peer(ours)
        config = peer.config
        config.image_token_id = image
        peer = type(peer).from_pretrained(place, config=config, dtype=torch.float32).eval()
        unadapted = logits_of(ours, batch)
        if name == "adapter":
            load_adapter(ours, Path(name), Base("tiny-reader", None, base_digest(base)))
            peer = peft.PeftModel.from_pretrained(peer, name)
            assert difference(logits_of(ours, batch), unadapted) > 0.01
        found = difference(logits_of(ours, batch), logits_of(peer, batch))
        print(f"{name}: logits {found:.1e} from transformers'")
        assert found < TOLERANCE


@pytest.mark.parametrize("name, run", [("whole", "decoder"), ("merged", "lora")])
def test_a_training_starts_from_an_export_where_the_run_ended(exports, name, run):
    """Two steps; what is scored before the first one is the run's last."""
    out = exports / "runs" / f"on-{name}"
    given = words("--model {} --tune decoder --max-steps 2 --batch-size 4 --lr 1e-4", name)
    command(exports, "train", *COMMON, *given, "--out", out)
    assert [line["step"] for line in lines(out, "train")] == [1, 2]
    assert losses(out)[0] == pytest.approx(losses(exports / "runs" / run)[-1], abs=1e-5)
    assert losses(out)[-1] < losses(out)[0]


# -- evening: in a hurry --------------------------------------------------------------------------


def test_each_mistake_is_one_line_with_exit_code_2_and_writes_nothing(exports):
    hurried.write_bad_data(exports)
    before = sorted(exports.rglob("*"))
    with ThreadPoolExecutor(2) as pool:  # a process for each, two at a time
        found = pool.map(lambda line: python(*words(line), cwd=exports), hurried.MISTAKES)
    for (line, says), done in zip(hurried.MISTAKES.items(), found):
        print(f"{line}\n    {done.stderr.strip()}")
        (said,) = done.stderr.splitlines()
        assert done.returncode == 2 and re.match(f"error: .*{says}", said), line
    assert sorted(exports.rglob("*")) == before
