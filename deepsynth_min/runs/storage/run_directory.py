"""The run directory: where a run's settings, metrics, pages, checkpoints and report go.

In: settings and what the loop measures. Out: files, written by rank 0 alone:
    config.toml        the settings as asked for, and what they became; --config reads it again
    metrics.jsonl      one JSON object per logging step and per evaluation
    pages/             a few rendered pages as PNG
    checkpoints/       step-NNNNNN/, each a model directory with training state
    last, best         the name of the newest and of the best checkpoint
    answers/           first.jsonl, last.jsonl, best.jsonl: all answers of these evaluations
    report.html        curves, pages and answers, to open in a browser
    evidence/          of every rank, what it left when it hung or died (evidence.py)
    run.id             with --mirror: says whose mirror it is (mirror.py)

The one idea: a directory that holds a run is never written over; only `--resume` goes on in it.
"""

import json
import os
import re
import sys
import weakref
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ... import config_file
from ...command_line import load
from ...data.row import Row, RowError
from ...data.samples import SampleBuilder
from ...errors import UserError, read_text
from ...files.disk import append_whole, lock, undo_all_unfinished, write_bytes, write_text, writing
from ...pages.png import png
from ...reports import page as report
from ...reports.runs import metric_lines
from ...reports.sinks import numbers_of, open_sinks
from ...settings import Settings
from ...training import checkpoint
from .named_files import places

PREVIEWS = 4  # documents of which pages are kept, and answers of an evaluation in metrics.jsonl
PREVIEW_WIDTH, PREVIEW_ROWS = 512, 3  # px; rows of small pages side by side


def warn(text: str) -> None:
    """A line on stderr that does not tear the progress bar."""
    tqdm.write(f"warning: {text}", file=sys.stderr)


def default_name(model: str) -> str:
    return f"runs/{Path(model).name}-{datetime.now():%Y%m%d-%H%M%S}"


def _check_writable(path: Path) -> None:
    """Raises UserError if the system will not let a run be written there: better now than at the
    first checkpoint."""
    nearest = next(folder for folder in (path, *path.absolute().parents) if os.path.lexists(folder))
    if not os.path.isdir(nearest):
        raise UserError(f"--out {path}: {nearest} is not a folder")
    effective = os.access in os.supports_effective_ids
    if not os.access(nearest, os.W_OK | os.X_OK, effective_ids=effective):
        raise UserError(f"--out {path}: {nearest} may not be written to")


def side_by_side(pages: np.ndarray) -> np.ndarray:
    """uint8 [n, C, h, w] -> grey [H, W]: as many of the pages as are seen at a glance."""
    grey = pages.mean(1).round().astype("uint8")
    columns = PREVIEW_WIDTH // grey.shape[2]
    if columns < 2 or len(grey) == 1:
        return grey[0]
    grey = np.pad(grey[: columns * PREVIEW_ROWS], ((0, 0), (0, 4), (0, 4)), constant_values=128)
    rows = [list(grey[i : i + columns]) for i in range(0, len(grey), columns)]
    empty = np.full_like(grey[0], 128)
    return np.block([row + [empty] * (columns - len(row)) for row in rows])


class RunDirectory:
    """The files of one run. Every method but the constructor's checks is for rank 0."""

    def __init__(self, path: str, resume: str):
        """Raises UserError if the path cannot be used."""
        self.path, self.checkpoints = Path(path), Path(path) / "checkpoints"
        self.metrics_path = self.path / "metrics.jsonl"
        self.sinks: list = []
        self.asked: Settings | None = None  # of the run that is here, and what they became
        self.before: Settings | None = None
        self.claimed = None
        try:
            if self.path.exists() and not self.path.is_dir():
                raise UserError(f"--out {path}: is a file")
            _check_writable(self.path)
            if not self.path.is_dir() or not any(self.path.iterdir()):
                return
        except OSError as error:  # a name that is too long, a folder that may not be read
            raise UserError(f"--out {path}: {error.strerror}") from None
        # A checkpoint given by name may start a new directory; `auto` looks into this one.
        if resume != "auto":
            raise UserError(
                f"--out {path}: already holds files; give another directory, or "
                "--resume auto to go on with the run in it"
            )
        if not (self.path / "config.toml").is_file() or not self.checkpoints.is_dir():
            raise UserError(f"--out {path}: holds files, but no run (config.toml, checkpoints/)")
        config = self.path / "config.toml"
        self.before = load(config)  # raises if it is not one of ours
        self.asked = load(config, is_resolved=False)

    def claim(self) -> None:
        """Makes sure that no other process writes here; holds until this one ends."""
        if self.claimed is None:
            handle = os.open(self.checkpoints, os.O_RDONLY)
            self.claimed = weakref.finalize(self, os.close, handle)
            lock(handle, f"--out {self.path}: another run is writing to it")

    def release(self) -> None:
        """Lets others write here."""
        if self.claimed is not None:
            self.claimed()

    def create(
        self, asked: Settings, resolved: Settings | None = None, has_ended: bool = False
    ) -> None:
        """Makes the directory and writes config.toml, but for a run that has no step left.

        asked: the settings as given; resolved: what they became.
        """
        resolved = resolved or asked
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            self.claim()
            if self.before is None or not has_ended:
                text = config_file.to_text(asked, resolved, self.path, places(resolved))
                write_text(self.path / "config.toml", text)
            self.sinks = open_sinks(resolved.run, self.path)
        except OSError as error:
            raise UserError(f"--out {self.path}: {error.strerror}") from None

    def looks_like(self, resume: str) -> Path | None:
        """The checkpoint that `resume_from` will go on from, by a glance: None if there is none, or
        none that can be read, of which `resume_from` will speak."""
        found = checkpoint.all_checkpoints(self.checkpoints) if resume == "auto" else []
        for path in [Path(resume)] if resume not in ("auto", "none") else reversed(found):
            try:
                checkpoint.read_facts(path)
                return path
            except UserError:
                continue
        return None

    def resume_from(
        self, resume: str, elsewhere: Callable[[Path | None, Path], Path | None] | None = None
    ) -> Path | None:
        """The checkpoint to go on from, or None to start afresh; elsewhere: as newest_whole's.
        Raises UserError."""
        if resume == "none":
            return None
        if resume == "auto":
            if self.checkpoints.is_dir():
                self.claim()
                undo_all_unfinished(self.checkpoints)  # this run was killed while it was saving
            return checkpoint.newest_whole(self.checkpoints, elsewhere=elsewhere)
        path = Path(resume)
        if not os.path.isdir(path):  # unlike Path's, no error for a name that cannot be one
            raise UserError(f"--resume {resume}: no such checkpoint directory")
        ours = (checkpoint.MANIFEST, "training.json")
        if not any(os.path.lexists(path / name) for name in ours):  # a run, or its checkpoints/?
            inner = path / "checkpoints" if (path / "config.toml").is_file() else path
            if newest := checkpoint.newest_whole(inner):
                return newest
            raise UserError(f"--resume {resume}: neither a checkpoint nor a run that has one")
        if wrong := checkpoint.damage(path):
            raise UserError(f"--resume {resume}: damaged ({wrong})")
        return path

    def save_previews(self, rows: Sequence[Row], builder: SampleBuilder) -> None:
        """The first page of the first held-out rows; where pages are small, several of them."""
        folder = self.path / "pages"
        with writing("--out", self.path):
            folder.mkdir(exist_ok=True)
        for i in range(min(PREVIEWS, len(rows))):
            try:
                pages = builder.prompt(rows[i]).pages  # [n, C, h, w]
            except RowError as error:
                if not builder.skips(error):
                    raise
                continue
            if not len(pages):
                continue
            with writing("--out", self.path):
                write_bytes(folder / f"held-out-{i}.png", png(side_by_side(pages)))

    def go_on_after(self, step: int, metric: str = "loss") -> None:
        """Drops what belongs to steps that will be run again; sets the markers to what is there.

        metric: that of --best. Raises UserError if the directory does not let it.
        """
        try:
            self._go_on_after(step, metric)
        except OSError as error:
            raise UserError(
                f"--out {self.path}: {error.filename2 or error.filename}: {error.strerror}"
            ) from None

    def _go_on_after(self, step: int, metric: str) -> None:
        scored = {}
        for path in checkpoint.all_checkpoints(self.checkpoints):
            try:
                facts = checkpoint.read_facts(path)
            except UserError as error:
                warn(f"left alone: {error}")
                continue
            if facts["step"] <= step:
                self.mark("last", path.name)
                if facts["score"] is not None and facts["best_metric"] == metric:  # lower is better
                    scored[path.name] = facts["score"]
        if scored:
            self.mark("best", min(scored, key=scored.get))
        if self.metrics_path.exists():
            lines = metric_lines(self.path)
            kept = [json.dumps(line) for line in lines if line["step"] <= step]
            write_text(self.metrics_path, "".join(line + "\n" for line in kept))

    def log(self, kind: str, **values: object) -> None:
        line = json.dumps({"kind": kind, **values}) + "\n"

        def append() -> None:
            with open(self.metrics_path, "ab", buffering=0) as file:
                append_whole(file, line)

        self.attempt(append, "a line of metrics")
        for sink in self.sinks:
            sink(numbers_of(kind, values), values["step"])

    def log_answers(self, step: int, answers: list[dict]) -> None:
        """The first answers of an evaluation for metrics.jsonl, all of them for answers/."""
        self.log("answers", step=step, shown=answers[:PREVIEWS])
        lines = [json.dumps({"step": step, **a}, ensure_ascii=False) + "\n" for a in answers]

        names = ["first", "last"] if len(self.evaluations()) == 1 else ["last"]

        def write() -> None:
            (self.path / "answers").mkdir(exist_ok=True)
            for name in names:
                write_text(self.path / "answers" / f"{name}.jsonl", "".join(lines))

        if answers:
            self.attempt(write, "the answers")

    def keep_best_answers(self) -> None:
        """The newest evaluation is the best one so far."""
        last = self.path / "answers" / "last.jsonl"

        def copy() -> None:
            write_text(last.with_name("best.jsonl"), last.read_text("utf-8"))

        if last.exists():
            self.attempt(copy, "the best answers")

    def evaluations(self) -> list[dict]:
        """What has been logged of them, the first one first."""
        return [line for line in metric_lines(self.path) if line["kind"] == "eval"]

    def mark(self, marker: str, name: str) -> None:
        write_text(self.path / marker, name + "\n")

    def write_report(self) -> None:
        def write() -> None:
            write_text(self.path / "report.html", report.page(self.path))

        self.attempt(write, "the report")

    def attempt(self, write: Callable, what: str) -> None:
        """A full disk must not end a training: warns, and goes on without."""
        try:
            write()
        except OSError as error:
            warn(f"{self.path}: {what} could not be written: {error.strerror}")


def find_run_checkpoint(run: Path, which: str) -> Path:
    """A run's checkpoint: last, best, or a step number. Raises UserError."""
    if re.fullmatch("[0-9]{1,12}", which):
        name = f"step-{int(which):06}"
    elif which in ("last", "best") and os.path.isfile(run / which):
        name = read_text(run / which).strip()
        if not re.fullmatch("step-[0-9]{6,12}", name):
            raise UserError(f"{run / which}: names no checkpoint")
    else:
        raise UserError(f"{run}: no checkpoint {which!r} (last, best or a step number)")
    path = run / "checkpoints" / name
    if not path.is_dir():
        raise UserError(f"{path}: no such checkpoint")
    return path
