"""What --data names -> the rows that train and the rows that are held out.

In: embedded documents, files, folders, data sets on the hub, each with a weight if there are
several. Out: `Data`: training rows, held-out rows, and what is to be said of them.

The one idea: nothing trains that its owner set apart. Of a data set with splits "train" trains,
"validation" is held out and "test" is left alone; of others a share is held out, chosen by the
seed. What was done is said in a line.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..corpus.families import family_of
from ..errors import UserError, find_file, number_of
from ..files.download import fetch_data, files_of, is_hub_id
from ..files.index import Fault
from ..files.splits import SYNONYMS, choose_split, named_after, splits_of
from ..settings import DataSettings
from .formats.readers import KINDS, kind_of
from .order import Mixture, Permutation
from .row import Row
from .rows import EmbeddedRows, FileRows, View

NAMES = {"train": "train", "val": "validation", "test": "test", "": "files of no split"}


@dataclass
class Data:
    """The rows of a run, and lines that say where they come from."""

    train: Sequence[Row]
    held_out: Sequence[Row]  # none with --val-fraction 0, where nothing else is set apart
    notes: list[str] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)  # rows that are left out, of all sources
    files: list[FileRows] = field(default_factory=list)  # of all sources


# -- one source -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """A data set's files by split, and the folder that its image paths may not leave."""

    name: str
    splits: dict[str, list[Path]]  # the key "" alone where no file is named after a split
    root: Path | None = None

    def rows(
        self, split: str, settings: DataSettings, progress: bool = False, answered: bool = True
    ) -> FileRows:
        files = choose_split(self.splits, split, self.name)
        return FileRows(of_one_kind(files, self.name), settings, progress, answered, self.root)


def find_source(path: str, settings: DataSettings, revision: str = "") -> Source:
    """The data files of a file, a folder or a data set on the hub. Raises UserError."""
    if is_hub_id(path):
        folder = fetch_data(path, revision)
        names = [Path(name) for name in files_of(folder) if kind_of(name)]
        if not names:
            raise UserError(f"{path}: no file of rows in this data set ({', '.join(KINDS)})")
        # Files of the cache are links to where it keeps their bytes, two folders above.
        return _divided(path, folder, names, settings.data_subset, folder.parents[1])
    if not os.path.isdir(path):
        file = find_file(path)
        if not kind_of(file):
            raise UserError(f"{path}: not a file of rows; known are {', '.join(KINDS)}")
        return Source(path, {"": [file]})
    folder = Path(path)
    names = _files_in(folder)
    if not names:
        raise UserError(f"{path}: no file of rows in this folder ({', '.join(KINDS)})")
    return _divided(path, folder, names, settings.data_subset, folder)


def _divided(name: str, folder: Path, files: list[Path], subset: str, root: Path) -> Source:
    splits = splits_of(folder, files, subset)
    found = {split: [find_file(folder / f) for f in chosen] for split, chosen in splits.items()}
    return Source(name, found, root)


def _files_in(folder: Path) -> list[Path]:
    """Files of rows in a folder, and in its folders that are named after a split or a subset."""
    try:
        found = sorted(os.listdir(folder))
        inner = [name for name in found if (folder / name).is_dir() and not kind_of(name)]
        names = [Path(name) for name in found if kind_of(name)]
        every = {word for words in SYNONYMS.values() for word in words}
        for name in inner:
            below = sorted(os.listdir(folder / name))
            if name.lower() in every | {"data"} or any(
                kind_of(file) and named_after(Path(file)) for file in below
            ):
                names += [Path(name, file) for file in below if kind_of(file)]
    except OSError as error:
        raise UserError(f"{folder}: {error.strerror}") from None
    return names


def of_one_kind(files: list[Path], where: str) -> list[Path]:
    """The files, if all are read in the same way. Raises UserError."""
    kinds = {kind_of(file): file.name for file in files}
    if len(kinds) > 1:
        raise UserError(f"{where}: holds {' and '.join(kinds.values())}; give one kind of files")
    return files


def open_files(
    path: str, settings: DataSettings, progress: bool = False, answered: bool = True
) -> FileRows:
    """All rows of a file or folder, or of --data-split of a data set. Raises UserError."""
    source = find_source(path, settings)
    return source.rows(settings.data_split or "train", settings, progress, answered)


# -- all of them ----------------------------------------------------------------------------------


def pinned(settings: DataSettings, before: DataSettings | None = None) -> DataSettings:
    """Settings in which every data set on the hub has its commit for a revision.

    before: those of the run that is taken up; without a word to the contrary its commits stay.
    Raises UserError.
    """
    found = {}
    for name, revision in (("data", "data_revision"), ("val_data", "val_revision")):
        value, given = getattr(settings, name), getattr(settings, revision)
        values = [weighted(v)[0] for v in value] if name == "data" else [value] if value else []
        on_hub = [v for v in values if is_hub_id(v)]
        given = given if isinstance(given, tuple) else (given,) if given else ()
        if not given and before and getattr(before, name) == value:
            given = getattr(before, revision)
            given = given if isinstance(given, tuple) else (given,) if given else ()
        if given and len(given) != len(on_hub):
            option = "--" + revision.replace("_", "-")
            which = values[0] if len(values) == 1 else values
            if not on_hub:
                raise UserError(f"{option} {given[0]}: {which!r} is not a data set on the hub")
            revisions, sets = number_of(len(given), "revision"), number_of(len(on_hub), "data set")
            raise UserError(f"{option}: {revisions} for {sets}")
        commits = tuple(
            fetch_data(v, at).name for v, at in zip(on_hub, given or ("",) * len(on_hub))
        )
        if commits:
            found[revision] = commits if name == "data" else commits[0]
    return replace(settings, **found)


def weighted(name: str) -> tuple[str, float]:
    """ "rows.parquet:0.3" -> (name, weight); without a weight it is 1. Raises UserError."""
    path, colon, number = name.rpartition(":")
    if not colon or os.path.lexists(name) or not re.fullmatch(r"[0-9.]+(e-?[0-9]+)?", number):
        return name, 1.0
    try:
        weight = float(number)
    except ValueError:
        return name, 1.0
    if not 0 < weight <= 1000:
        raise UserError(f"--data {name}: the weight {number} is not above 0 and at most 1000")
    return path, weight


def open_data(settings: DataSettings, seed: int, progress: bool = False) -> Data:
    """The rows of a run. Raises UserError."""
    given = [weighted(name) for name in settings.data]
    names = [name for name, _ in given]
    if len(set(names)) < len(names):
        raise UserError(f"--data: {names[0]!r} is given twice")
    data = Data((), ())
    train, held_out, opened = [], [], []
    for name, revision in _with_revisions(settings):
        rows, held = _open_one(name, revision, settings, seed, progress, data)
        opened += getattr(rows, "files", [])
        if settings.limit and len(rows) > settings.limit:
            rows = View(rows, 0, settings.limit)
        train.append(rows)
        held_out += [] if held is None else [held]
    data.train = train[0]
    if len(train) > 1 or given[0][1] != 1:
        data.train = Mixture(train, [weight for _, weight in given])
    if settings.val_data:
        held_out = [_held_out(settings, progress, opened, data)]
    data.held_out = held_out[0] if held_out else View(data.train, 0, 0)
    order = None
    if len(held_out) > 1:
        data.held_out = Mixture(held_out, [1.0] * len(held_out))
        order = Permutation(len(data.held_out), seed, 5)  # some of each source
    if settings.val_samples and len(data.held_out) > settings.val_samples:
        data.held_out = View(data.held_out, 0, settings.val_samples, order)
    return data


def _with_revisions(settings: DataSettings) -> list[tuple[str, str]]:
    """The names of --data without weights, each with its revision, "" where it has none."""
    revisions = iter(settings.data_revision)
    names = [weighted(name)[0] for name in settings.data]
    return [(name, next(revisions, "") if is_hub_id(name) else "") for name in names]


def _open_one(
    name: str, revision: str, settings: DataSettings, seed: int, progress: bool, data: Data
) -> tuple[Sequence[Row], Sequence[Row] | None]:
    """(training rows, held-out rows or None if none are of it) of one --data; adds to its notes."""
    if family := family_of(name):
        return EmbeddedRows("train", family), EmbeddedRows("val", family)
    source = find_source(name, settings, revision)
    split = settings.data_split or "train"
    rows = source.rows(split, settings, progress)
    _note(data, name, rows)
    has_splits = set(source.splits) != {""}
    if settings.val_data:
        return rows, None
    if not has_splits or "val" not in source.splits or rows.files == source.splits["val"]:
        if has_splits:
            data.notes.append(f"{name}: only its split {split!r} is used")
        if not settings.val_fraction:
            data.notes.append(f"{name}: nothing is held out (--val-fraction 0)")
            return rows, None
        return _split(rows, name, settings, seed)
    held_out = source.rows("val", settings, progress)
    _note(data, f"{name} (validation)", held_out)
    others = [
        NAMES.get(s, s) for s in source.splits if s != "val" and source.splits[s] != rows.files
    ]
    left = f"; {' and '.join(others)} left alone" if others else ""
    data.notes.append(
        f"{name}: {split!r} trains ({number_of(len(rows), 'row')}), validation is held out "
        f"({number_of(len(held_out), 'row')}){left}"
    )
    return rows, held_out


def _note(data: Data, name: str, rows: FileRows) -> None:
    """Says which field is what, and how many rows there are and are not."""
    left_out = f"; left out: {number_of(len(rows.faults), 'bad row')}" if rows.faults else ""
    found = number_of(len(rows), "row")
    data.notes.append(f"{name}: {rows.columns.describe()}; {found}{left_out}")
    data.faults += rows.faults
    data.files.append(rows)


def _held_out(
    settings: DataSettings, progress: bool, training: list[Path], data: Data
) -> Sequence[Row]:
    """The rows of --val-data, none of whose files may be among those that train."""
    if family := family_of(settings.val_data):
        return EmbeddedRows("val", family)
    source = find_source(settings.val_data, settings, settings.val_revision)
    rows = source.rows("val", settings, progress)
    for file in rows.files:
        if any(os.path.samefile(file, other) for other in training):
            raise UserError(f"--val-data {file}: is in --data too, so nothing is held out")
    _note(data, settings.val_data, rows)
    return rows


def _split(rows: FileRows, name: str, settings: DataSettings, seed: int) -> tuple[View, View]:
    """A share of the rows is held out: the same for the same seed and number of rows."""
    if len(rows) < 2:
        raise UserError(f"{name}: one row cannot be split; give --val-data")
    order = Permutation(len(rows), seed, 1)
    size = min(len(rows) - 1, max(1, round(len(rows) * settings.val_fraction)))
    return View(rows, size, len(rows), order), View(rows, 0, size, order)


def open_all(settings: DataSettings, progress: bool = False, split: str = "train") -> Data:
    """All rows of --data-split, else of `split`, in the order of their files; none is held out.

    Raises UserError.
    """
    data, every, split = Data((), ()), [], settings.data_split or split
    for name, revision in _with_revisions(settings):
        if family := family_of(name):
            rows = EmbeddedRows("val" if split in SYNONYMS["val"] else "train", family)
        else:
            rows = find_source(name, settings, revision).rows(split, settings, progress)
            _note(data, name, rows)
        every.append(View(rows, 0, min(len(rows), settings.limit or len(rows))))
    if any(weighted(name)[1] != 1 for name in settings.data):
        raise UserError("--data NAME:WEIGHT: a weight is for training; here each row comes once")
    data.train = every[0] if len(every) == 1 else Mixture(every, [1.0] * len(every))
    return data


def open_rows(
    settings: DataSettings, seed: int, progress: bool = False
) -> tuple[Sequence[Row], Sequence[Row]]:
    """(training rows, held-out rows), without what is to be said of them. Raises UserError."""
    data = open_data(settings, seed, progress)
    return data.train, data.held_out
