"""What training would read, read once: figures of every row, and what is wrong with some.

In: settings. Out: `Statistics`: of each usable row its pages, tokens and characters; the rows that
cannot be used, with the reason; characters that are not drawn as they should; rows that say the
same. check.py prints them, page.py draws them.

The one idea: every row goes through the same `SampleBuilder` as in training, so what is counted is
what would be trained on. Rows are dealt to processes in pieces; of a row some 60 bytes are kept and
no page, so memory grows neither with pages nor with the length of texts. The pieces come back in
order: the figures do not depend on the number of processes.
"""

import multiprocessing
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from ..data.order import Mixture
from ..data.row import Row, RowError, TooLong
from ..data.rows import place_in_files
from ..data.samples import Sample, SampleBuilder
from ..data.sources import Data, open_data
from ..data.tokenizer import load_tokenizer
from ..errors import UserError
from ..files.index import Fault
from ..model.shape.presets import find_shape
from ..pages.renderer import cores, line_ranges, undrawn
from ..settings import Settings
from .duplicates import NEAR, key, normalised, similarity, sketch
from .processes import ctrl_c_waits

# Of a row. length: tokens of the whole sequence; answer: those that are scored; characters: of a
# text, drawn: those that are on its pages (both -1 without a text); missing: characters that no
# font has or whose script was drawn without shaping; cut: whether pages or answer were cut to fit.
FIGURES = ("pages", "visual", "length", "answer", "characters", "drawn", "missing", "cut")
SPLITS = ("train", "held_out")
SKETCHED = 4096  # held-out rows that training rows are compared with for near duplicates
PIECE, LEAST = 128, 2000  # rows of a piece of work; rows for which a process is worth its start


class BadRow(NamedTuple):
    """A row that showed itself unusable when it was drawn."""

    row: int
    fault: Fault
    too_long: bool


class Near(NamedTuple):
    """A training row, the held-out row that is most like it, and how much."""

    row: int
    held_out: int
    similarity: float


@dataclass
class Part:
    """What is known of some rows of one split."""

    numbers: np.ndarray  # int64 [n], of the usable rows
    figures: np.ndarray  # int64 [n, FIGURES]
    keys: np.ndarray  # uint64 [n, 2]: of the page alone; of page, instruction and answer
    bad: list[BadRow] = field(default_factory=list)
    missing: Counter[str] = field(default_factory=Counter)  # character -> how often no font had it
    unshaped: Counter[str] = field(default_factory=Counter)
    near: list[Near] = field(default_factory=list)  # training rows alone
    touched: set[int] = field(default_factory=set)  # held-out rows that some row is near to

    def column(self, name: str) -> np.ndarray:
        return self.figures[:, FIGURES.index(name)]


@dataclass
class Statistics:
    """Of all rows; rows are numbered as in `data`."""

    data: Data
    builder: SampleBuilder
    train: Part
    held_out: Part
    weights: np.ndarray  # float64 [train rows]: how often each comes in an epoch

    @property
    def bad(self) -> list[Fault]:
        """All rows that cannot be used: found in the files, or when they were drawn."""
        return self.data.faults + [b.fault for p in (self.train, self.held_out) for b in p.bad]

    def same_page(self) -> tuple[np.ndarray, np.ndarray]:
        """Places, in their parts, of (training rows, held-out rows) whose page is in the other."""
        ours, theirs = self.train.keys[:, 0], self.held_out.keys[:, 0]
        return np.flatnonzero(np.isin(ours, theirs)), np.flatnonzero(np.isin(theirs, ours))

    def repeats(self) -> int:
        """Training rows that say what another before them says: page, instruction and answer."""
        return len(self.train.keys) - len(np.unique(self.train.keys[:, 1]))

    def per_epoch(self, name: str) -> float:
        """The sum of a figure over what one epoch takes."""
        return float(self.weights[self.train.numbers] @ self.train.column(name))


# -- reading --------------------------------------------------------------------------------------


def sample_builder(settings: Settings) -> SampleBuilder:
    """As training makes it, from the model's configuration and tokenizer alone: no weights."""
    config, directory = find_shape(settings.model)
    return SampleBuilder(settings, config, load_tokenizer(directory))


class Reader:
    """Reads rows of either split and measures them; each process has its own."""

    def __init__(self, settings: Settings, data: Data | None = None):
        self.data = data or open_data(settings.data, settings.optim.seed)
        self.builder = sample_builder(settings)
        page = settings.page
        self.may_cut = page.max_pages > 0 and page.overflow == "truncate"
        held, found = self.data.held_out, []
        for number in range(min(len(held), SKETCHED)):
            try:
                found.append((number, sketch(compared(held[number]))))
            except RowError:  # is named when its turn comes
                continue
        found = [(number, made) for number, made in found if made is not None]
        self.sketched = np.array([number for number, _ in found], np.int64)
        self.sketches = np.array([made for _, made in found], np.uint32)

    def __call__(self, split: str, numbers: np.ndarray) -> Part:
        rows, good, figures, keys = getattr(self.data, split), [], [], []
        part = Part(numbers[:0], np.empty((0, len(FIGURES)), np.int64), np.empty((0, 2), np.uint64))
        for number in numbers.tolist():
            row = None
            try:
                row = rows[number]
                sample = self.builder(row)
                keys.append(keys_of(row))
            except RowError as error:
                fault = Fault(error.where, error.reason, error.kind)
                part.bad.append(BadRow(number, fault, isinstance(error, TooLong)))
                if row and error.kind == "cannot be drawn":
                    self._note_characters(row, part)
                continue
            good.append(number)
            figures.append(self._figures(row, sample))
            if sample.missing:
                self._note_characters(row, part)
            if split == "train" and len(self.sketches):
                self._note_near(number, row, part)
        if good:
            part.numbers, part.figures = np.array(good), np.array(figures)
            part.keys = np.array(keys, np.uint64)
        return part

    def _figures(self, row: Row, sample: Sample) -> list[int]:
        characters = drawn = -1 if row.text is None else len(row.text)
        if row.text is not None and (sample.truncated or self.may_cut):
            style = self.builder.canvases[-1][1] if self.builder.canvases else self.builder.style
            style = replace(style, max_pages=len(sample.pages), overflow="truncate")
            drawn = line_ranges(row.text, style)[-1][1]
        length, answer = len(sample.ids), len(sample.ids) - sample.prompt
        sizes = [len(sample.pages), sample.visual, length, answer, characters, drawn]
        return [*sizes, sample.missing, int(sample.truncated)]

    def _note_characters(self, row: Row, part: Part) -> None:
        missing, unshaped = undrawn(row.text or "", self.builder.style)
        part.missing.update(row.text[i] for i in missing.tolist())
        part.unshaped.update(row.text[i] for i in unshaped.tolist())

    def _note_near(self, number: int, row: Row, part: Part) -> None:
        ours = sketch(compared(row))
        if ours is None:
            return
        found = similarity(ours, self.sketches)
        near = np.flatnonzero(found >= NEAR)
        if len(near):
            best = int(found.argmax())
            part.near.append(Near(number, int(self.sketched[best]), float(found[best])))
            part.touched.update(self.sketched[near].tolist())


def compared(row: Row) -> str:
    """The text by which a row may be like another; of a row with images, its answer."""
    if row.text is not None:
        return row.text
    return row.summary if row.images else f"{row.instruction} {row.summary}"


def keys_of(row: Row) -> tuple[int, int]:
    """(key of the page, key of page, instruction and answer); without a page, the same twice.

    Raises RowError.
    """
    instruction, answer = normalised(row.instruction or ""), normalised(row.summary)
    if row.text is not None:
        page = key("text", normalised(row.text))
    elif row.images:
        page = key("images", *(_content(image, row.where) for image in row.images))
    else:
        page = key("instruction", instruction, answer)
    return page, key(str(page), instruction, answer)


def _content(image: Path | bytes, where: str) -> bytes:
    try:
        return image if isinstance(image, bytes) else image.read_bytes()
    except OSError as error:
        raise RowError(where, f"{image}: {error.strerror}", "no such image") from None


# -- in several processes -------------------------------------------------------------------------

_reader: Reader | None = None  # of a process of the pool


def _start(settings: Settings) -> None:
    global _reader
    torch.set_num_threads(1)
    _reader = Reader(settings)


def _measure(task: tuple[str, np.ndarray]) -> Part:
    return _reader(*task)


def collect(settings: Settings, workers: int = 0, progress: bool = False) -> Statistics:
    """Reads every row. workers: processes; 0: as many as there are cores and rows for. The settings
    must let bad rows be skipped. Raises UserError."""
    data = open_data(settings.data, settings.optim.seed, progress)
    reader = Reader(settings, data)
    sizes = [len(getattr(data, split)) for split in SPLITS]
    workers = workers or max(1, min(cores(), sum(sizes) // LEAST))
    tasks = [task for split in SPLITS for task in _tasks(split, getattr(data, split))]
    parts = {split: [reader(split, np.empty(0, np.int64))] for split in SPLITS}
    bar = tqdm(total=sum(sizes), unit="row", desc="reading", disable=not progress, leave=False)
    with bar:
        for (split, numbers), part in zip(tasks, _all(reader, settings, tasks, workers)):
            parts[split].append(part)
            bar.update(len(numbers))
    train, held_out = (_joined(parts[split]) for split in SPLITS)
    return Statistics(data, reader.builder, train, held_out, epoch_weights(data.train))


def _all(
    reader: Reader, settings: Settings, tasks: list[tuple[str, np.ndarray]], workers: int
) -> Iterator[Part]:
    """The parts of all tasks, in order."""
    if workers == 1:
        yield from (reader(*task) for task in tasks)
        return
    # Started anew: threads of torch, Arrow or the tokenizer do not survive a fork.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, _start, (settings,))
    try:
        with ctrl_c_waits():
            parts = pool.map(_measure, tasks)
        yield from parts
    except BrokenProcessPool:
        raise UserError(
            "a process that reads rows has ended; if memory was short, give fewer --workers"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _tasks(split: str, rows: Sequence[Row]) -> list[tuple[str, np.ndarray]]:
    """Pieces of the rows in the order of the files, so that a row group of Parquet is decoded once
    although training takes the rows in another order."""
    places = (place_in_files(rows, i) for i in range(len(rows)))
    places = np.fromiter(places, np.dtype((np.int64, 2)), len(rows))
    order = np.lexsort((places[:, 1], places[:, 0]))
    return [(split, order[start : start + PIECE]) for start in range(0, len(rows), PIECE)]


def _joined(parts: list[Part]) -> Part:
    """One part of all, its rows in the order of their numbers; bad ones as they were found."""
    numbers = np.concatenate([part.numbers for part in parts])
    order = numbers.argsort()
    whole = Part(
        numbers[order],
        np.concatenate([part.figures for part in parts])[order],
        np.concatenate([part.keys for part in parts])[order],
    )
    for part in parts:
        whole.bad += part.bad
        whole.near += part.near
        whole.missing += part.missing
        whole.unshaped += part.unshaped
        whole.touched |= part.touched
    return whole


def epoch_weights(rows: Sequence[Row]) -> np.ndarray:
    """How often each row comes in an epoch, on average over epochs: float64 [rows]."""
    if not isinstance(rows, Mixture):
        return np.ones(len(rows))
    sizes = [len(source) for source in rows.sources]
    return np.repeat([share / size for share, size in zip(rows.shares, sizes)], sizes)
