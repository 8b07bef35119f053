"""Is it right on this device? Rows of gpu.py: each gives lines as soon as it knows them.

In: a device, and whether it is a dry run. Out: `line`s, most of them distances from what the
official code, the plain form of an operation or the CPU gives, with the bar that holds anywhere.

gpu_forms.py compares the forms of single operations; here are the whole model and the trainer.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from deepsynth_min import train
from deepsynth_min.model import DeepseekOCR
from deepsynth_min.training.compile import compile_parts, parts_to_compile
from deepsynth_min.training.precision import autocast

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tests" / "helpers"))
from golden import CASES, GOLDEN, GRADIENT_TOLERANCE, expected, golden_batch  # noqa: E402
from run_files import lines, weights  # noqa: E402

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
# Relative, of a norm. bf16 keeps 8 binary digits: 0.4 % a rounding, of which some follow another.
APART = {"fp32": 1e-4, "bf16": 3e-2}
STEPS = 20


def line(what: str, value: float | str, unit: str = "", bar: tuple = (), note: str = "") -> dict:
    """One line of the table. bar: (">=" or "<=", the limit, where it holds: right, size, speed)."""
    return {"what": what, "value": value, "unit": unit, "bar": bar, "note": note}


def off(what: str, value: float, limit: float) -> dict:
    return line(what, value, "off", ("<=", limit, "right"))


def distance(ours: Tensor, plain: Tensor) -> float:
    """Relative, in the norm."""
    return ((ours.double() - plain.double()).norm() / plain.double().norm()).item()


def worst(ours: list[Tensor], plain: list[Tensor]) -> float:
    return max(distance(a, b) for a, b in zip(ours, plain))


# -- the official code's numbers ------------------------------------------------------------------


def golden(device: torch.device, dry: bool, precision: str) -> Iterator[dict]:
    """tests/golden, padded and packed: the loss, and in float32 gradients."""
    model = DeepseekOCR.from_pretrained(GOLDEN, torch.float32).to(device)
    for case in CASES:
        for form in ("padded", "packed"):
            batch = golden_batch(case)
            batch = (batch.packed() if form == "packed" else batch).to(device)
            model.zero_grad(set_to_none=True)
            with autocast(device, precision):
                total, count = model.loss(batch)
            (total / count).backward()
            loss = expected()[f"{case}.loss"].item()
            apart = abs(total.item() / count - loss)
            if precision == "fp32":
                yield off(f"golden {case}, {form}: loss", apart, 2e-4)
            else:
                yield off(f"golden {case}, {form}, bf16: loss, relative", apart / loss, 1e-2)
            if precision == "fp32" and case == "base":
                yield off(f"golden {case}, {form}: gradients", _gradients(model, case), 1e-3)


def _gradients(model: DeepseekOCR, case: str) -> float:
    """The largest relative distance; those whose names are the official ones."""
    mine, prefix = dict(model.named_parameters()), f"{case}.train.grad."
    names = [name for name in expected() if name.startswith(prefix)]
    found = [
        distance(mine[short].grad.cpu(), expected()[name])
        for name in names
        if (short := name.removeprefix(prefix)) in mine
    ]
    assert len(found) >= 20 and GRADIENT_TOLERANCE == 1e-3
    return max(found)


def compiled(device: torch.device, dry: bool) -> Iterator[dict]:
    """`--compile` on the golden model. A dry run traces the parts, and writes no kernels."""
    batch = golden_batch("small").packed().to(device)
    for precision in ("bf16",) if dry else PRECISIONS:
        model = DeepseekOCR.from_pretrained(GOLDEN, torch.float32).to(device)

        def step(model=model, precision=precision) -> list[Tensor]:
            model.zero_grad(set_to_none=True)
            with autocast(device, precision):
                total, _ = model.loss(batch)
            total.backward()
            return [total.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]

        eager = step()
        if dry:
            for part in list(parts_to_compile(model, precision))[-2:]:
                part.compile(backend="aot_eager")
        else:
            compile_parts(model, precision)
        # Of bf16 the sum of all gradients: a single small one may be rounding and nothing else.
        ours, plain = (torch.cat([g.flatten().float() for g in step_]) for step_ in (step(), eager))
        yield off(f"golden model, --compile, {precision}", distance(ours, plain), APART[precision])


# -- the trainer ----------------------------------------------------------------------------------


def _options(out: Path, device: str, size: int, *more: str) -> list[str]:
    few = f"--batch-size {size} --val-samples 4 --answer-samples 0 --ablation-samples 0"
    steps = f"--max-steps {STEPS} --limit 200 --log-every 1 --save-every 5 --device {device}"
    threads = f"--threads {torch.get_num_threads()}"
    return [*few.split(), *steps.split(), *threads.split(), "--out", str(out), *more]


def _train(out: Path, device: str, size: int, *more: str) -> dict[int, float]:
    """Trains; the loss of each step."""
    code = train.main(_options(out, device, size, *more))
    assert code == 0, f"training ended with {code}"
    return _losses(out)


def _losses(run: Path) -> dict[int, float]:
    entries = lines(run, "train")
    assert len({entry["step"] for entry in entries}) == len(entries), "a step is there twice"
    return {entry["step"]: entry["loss"] for entry in entries}


def _apart(ours: dict[int, float], theirs: dict[int, float]) -> float:
    """The largest relative distance of two runs' losses."""
    assert list(ours) == list(theirs) == list(range(1, STEPS + 1)), "steps are missing"
    return max(abs(ours[step] - theirs[step]) / theirs[step] for step in theirs)


def runs(device: torch.device, dry: bool) -> Iterator[dict]:
    """20 steps of tiny-reader beside the CPU's (a dry run: beside the same steps divided), in bf16
    beside float32; then the same run killed in the middle and gone on with."""
    size, name = (2, "cpu") if dry else (8, device.type)
    with TemporaryDirectory() as folder:
        here, killed = Path(folder) / "here", Path(folder) / "killed"
        ours = _train(here, name, size)
        otherwise = ("--batch-size", "1", "--accumulate", "2") if dry else ()
        theirs = _train(Path(folder) / "beside", "cpu", size, *otherwise)
        what = f"tiny-reader, {STEPS} steps"
        yield off(f"{what}: losses beside the CPU's", _apart(ours, theirs), 1e-3)
        narrow = _train(Path(folder) / "bf16", name, size, "--precision", "bf16")
        yield off(f"{what} in bf16: losses beside float32's", _apart(narrow, theirs), 0.05)
        step = _killed(killed, name, size)
        resumed = _train(killed, name, size, "--resume", "auto")
        what = f"killed after step {step} of {STEPS}, resumed"
        yield off(f"{what}: losses beside an undisturbed run's", _apart(resumed, ours), 1e-3)
        a, b = weights(killed), weights(here)
        same = all(a[n].equal(b[n]) for n in b)
        yield line(f"{what}: weights", "equal to the bit" if same else "not equal to the bit")


def _killed(out: Path, device: str, size: int) -> int:
    """Starts the run in a process of its own and kills it once it has a checkpoint; the step that
    it had logged last."""
    command = [sys.executable, "-m", "deepsynth_min.train", *_options(out, device, size)]
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH", ""))))
    process = subprocess.Popen(
        command, stdout=sys.stderr, cwd=ROOT, env=os.environ | {"PYTHONPATH": path}
    )
    with _ended(process):
        while process.poll() is None and not (out / "last").exists():
            time.sleep(0.01)
        assert process.poll() is None, f"the run ended by itself: {process.poll()}"
    return max(_losses(out))


@contextmanager
def _ended(process: subprocess.Popen) -> Iterator[None]:
    try:
        yield
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.wait()
