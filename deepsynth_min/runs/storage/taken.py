"""Which checkpoint of a run was taken, and whether the run has a better one, in words.

In: a run directory, one of its checkpoints, the figure of --best. Out: a line for commands that
read or export a run, and its parts for the model card.
"""

from pathlib import Path

from ...errors import UserError
from ...reports.runs import metric_lines
from .run_directory import find_run_checkpoint


def standing(run: Path, checkpoint: Path, metric: str) -> str:
    """`step 40 (last)`, `step 20 (best by loss: 0.5850)`."""
    marks = ["last"] if checkpoint.name == _marked(run, "last") else []
    if checkpoint.name == _marked(run, "best"):
        figure = _figure(run, checkpoint.name, metric)
        marks.append(f"best by {metric}" + (f": {figure}" if figure else ""))
    return f"step {_step(checkpoint.name)}" + (f" ({', '.join(marks)})" if marks else "")


def better(run: Path, checkpoint: Path, metric: str) -> str:
    """The run's best checkpoint in words, if it is another one; else nothing."""
    best = _marked(run, "best")
    if best is None or best == checkpoint.name:
        return ""
    figure = _figure(run, best, metric)
    return f"the best by {metric} is step {_step(best)}" + (f" ({figure})" if figure else "")


def which_checkpoint(run: Path, checkpoint: Path, metric: str) -> str:
    """The line that says which checkpoint a command took, and which one is better."""
    line = f"checkpoint: {standing(run, checkpoint, metric)}"
    other = better(run, checkpoint, metric)
    return f"{line}; {other}: --checkpoint best" if other else line


def _marked(run: Path, marker: str) -> str | None:
    try:
        return find_run_checkpoint(run, marker).name
    except UserError:  # a run without evaluations has no best
        return None


def _step(name: str) -> int:
    return int(name.removeprefix("step-"))


def _figure(run: Path, name: str, metric: str) -> str:
    """What the newest evaluation at that step has found, if it is in metrics.jsonl."""
    lines = [line for line in metric_lines(run) if line["kind"] == "eval"]
    found = [line.get(metric) for line in lines if line["step"] == _step(name)]
    return f"{found[-1]:.4f}" if found and isinstance(found[-1], float) else ""
