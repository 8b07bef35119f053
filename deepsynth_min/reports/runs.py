"""Run directories -> what a report shows of them.

In: a directory that training wrote (runs/storage/run_directory.py names its files), perhaps while
it is written, or with a line cut short by a kill. Out: `Run`: its settings, figures and answers.

The one idea: what cannot be read is left out; a report of the rest is better than none.
"""

import json
import re
import tomllib
from pathlib import Path

from ..config_file import to_show


def _objects(path: Path) -> list[dict]:
    """The objects of a file of JSON lines that have a whole `step`; [] if it is not there."""
    if not path.is_file():
        return []
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            values = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(values, dict) and isinstance(values.get("step"), int):
            found.append(values)
    return found


def metric_lines(run: Path) -> list[dict]:
    """The lines of metrics.jsonl; one cut short by a kill, or that is not ours, is left out."""
    return [v for v in _objects(run / "metrics.jsonl") if isinstance(v.get("kind"), str)]


def read_metrics(run: Path) -> dict[str, list[dict]]:
    """{"train": [...], "eval": [...], "answers": [...]} of metrics.jsonl, in the order written.

    Each line gets `minutes`, of training alone: evaluating and saving are left out.
    """
    lines: dict[str, list[dict]] = {"train": [], "eval": [], "answers": []}
    minutes, samples = 0.0, 0
    for values in metric_lines(run):
        if values["kind"] == "train":
            rate = values["samples_per_s"]
            minutes += (values["samples"] - samples) / rate / 60 if rate else 0.0
            samples = values["samples"]
        lines.setdefault(values["kind"], []).append({**values, "minutes": minutes})
    return lines


def best_evaluation(run: Path, evaluations: list[dict]) -> dict | None:
    """The evaluation of the checkpoint that the run has marked as its best one; None if there is no
    such checkpoint."""
    marker = run / "best"
    if not marker.is_file():
        return None
    name = re.fullmatch(r"step-(\d{6,12})", marker.read_text("utf-8", errors="replace").strip())
    found = [line for line in evaluations if name and line["step"] == int(name[1])]
    return found[-1] if found else None


class Run:
    """What the report shows of one run directory; `css` is its colour among several."""

    def __init__(self, path: Path, number: int):
        self.path, self.name, self.css = path, path.resolve().name, f"c{number % 6}"
        self.lines = read_metrics(path)
        config = path / "config.toml"
        self.config = to_show(config.read_text(encoding="utf-8")) if config.exists() else ""
        self.settings = tomllib.loads(self.config)  # {table: {setting: value}}, as asked for
        self.resolved = self.settings.pop("resolved", {})  # {setting: what it became}
        self.metric = self.settings.get("evaluation", {}).get("best", "loss")
        self.best = best_evaluation(path, self.lines["eval"]) or {}

    @property
    def last(self) -> dict:
        """The figures of the last evaluation, empty if there was none."""
        return (self.lines["eval"] or [{}])[-1]

    def column(self, kind: str, key: str, x: str, scale: float = 1.0) -> list[tuple[float, float]]:
        """Points (x, scaled value) of a figure in the lines of one kind."""
        return [(line[x], line[key] * scale) for line in self.lines[kind] if key in line]

    def band(self, key: str, x: str) -> list[tuple[float, float, float]]:
        """(x, low, high): the interval of a figure at each evaluation that has one."""
        ends = f"{key}_low", f"{key}_high"
        return [(v[x], *(v[e] for e in ends)) for v in self.lines["eval"] if ends[0] in v]

    def answers(self, step: int, which: str) -> list[dict]:
        """All answers of the evaluation after `step`, which is the "first", the "last" or the
        "best" one; where they are not (runs of before), those that metrics.jsonl keeps."""
        kept = [line["shown"] for line in self.lines["answers"] if line["step"] == step]
        every = [a for a in _objects(self.path / f"answers/{which}.jsonl") if a["step"] == step]
        return every or (kept[-1] if kept else [])

    def first_answers(self) -> list[dict]:
        """Those of the first evaluation; [] where it is the last one too."""
        scored = self.lines["eval"]
        if not scored or scored[0]["step"] == scored[-1]["step"]:
            return []
        return self.answers(scored[0]["step"], "first")
