"""Metrics for TensorBoard and Weights & Biases (extra `[log]`), beside metrics.jsonl.

In: settings, and every line that run_directory.py logs. Out: the same numbers there, named
`train/loss`, `eval/reads/shuffled`, ..., at their step.

The one idea: metrics.jsonl is the record; a sink only repeats it. Nothing of either package is
imported unless it is asked for. A run that is resumed goes on in the same place.
"""

import hashlib
import importlib
from numbers import Real
from pathlib import Path
from types import ModuleType

from ..errors import UserError
from ..settings import RunSettings, Settings

NEEDS = {"tensorboard": "torch.utils.tensorboard", "wandb": "wandb"}


def _load(option: str) -> ModuleType:
    """The package behind an option. Raises UserError naming what to install."""
    try:
        return importlib.import_module(NEEDS[option])
    except ImportError:
        raise UserError(f"--{option}: not installed: pip install 'deepsynth-min[log]'") from None


def check_sinks(settings: Settings) -> None:
    """Raises UserError if a package that was asked for is missing."""
    for option in NEEDS:
        if getattr(settings.run, option):
            _load(option)


class TensorBoard:
    """Event files in RUN/tensorboard."""

    def __init__(self, run: Path):
        self.writer = _load("tensorboard").SummaryWriter(str(run / "tensorboard"))

    def __call__(self, numbers: dict[str, float], step: int) -> None:
        for name, value in numbers.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()  # a run may end at any time


class WandB:
    """A run of a project; offline if WANDB_MODE says so, which the package itself reads."""

    def __init__(self, project: str, run: Path):
        # The same directory is the same run there, whenever it goes on.
        identity = hashlib.sha256(str(run.resolve()).encode()).hexdigest()[:16]
        self.run = _load("wandb").init(
            project=project, name=run.resolve().name, id=identity, resume="allow", dir=str(run)
        )

    def __call__(self, numbers: dict[str, float], step: int) -> None:
        self.run.log({"step": step, **numbers})


def open_sinks(settings: RunSettings, run: Path) -> list[TensorBoard | WandB]:
    """What the settings ask for, to be called with (numbers, step). Raises UserError if a package
    is missing."""
    sinks = [TensorBoard(run)] if settings.tensorboard else []
    return sinks + ([WandB(settings.wandb, run)] if settings.wandb else [])


def numbers_of(kind: str, values: dict) -> dict[str, float]:
    """The figures of a line of metrics.jsonl, under the names that they have in a sink."""
    return {
        f"{kind}/{name}": float(value)
        for name, value in values.items()
        if isinstance(value, Real) and name != "step"
    }
