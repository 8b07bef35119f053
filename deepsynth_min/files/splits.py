"""The splits and subsets of a data set: which of its files train, are held out, are left alone.

In: the folder of a data set, downloaded or the user's own. Out: its data files by split.

The one idea: names say it. Files or folders are called train, validation, test, as the hub's own
loader expects; a README.md with `configs` (the hub's way to declare subsets) has the last word.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..errors import UserError

SYNONYMS = {
    "train": ("train", "training"),
    "val": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
NO_ROWS = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}


def _split_of(name: str) -> str:
    """train, val or test for any of their names; another name stays what it is."""
    return next((split for split, names in SYNONYMS.items() if name.lower() in names), name)


def _words(path: Path) -> set[str]:
    return set(re.split(r"[^a-z]+", str(path.with_suffix("")).lower()))


def named_after(path: Path) -> str:
    """The split that a file, or a folder on its path, is named after; "" if none is."""
    words = _words(path)
    return next((split for split, names in SYNONYMS.items() if words & set(names)), "")


def splits_of(folder: Path, files: Iterable[Path], subset: str = "") -> dict[str, list[Path]]:
    """Split -> its files, all relative to `folder`; the key "" where no file is named after any.

    Raises UserError for a subset that is not there, or that must be named since there are several.
    """
    files = [file for file in files if file.name.lower() not in NO_ROWS]
    declared = _declared(folder, files)
    if declared:
        if not subset and len(declared) > 1 and "default" not in declared:
            names = ", ".join(declared)
            raise UserError(f"{folder}: has the subsets {names}; name one with --data-subset")
        name = subset or ("default" if "default" in declared else next(iter(declared)))
        if name not in declared:
            names = ", ".join(declared)
            raise UserError(f"{folder}: no subset {subset!r}; there are {names}")
        return declared[name]
    if subset:
        chosen = [file for file in files if subset in (*file.parts[:-1], file.stem)]
        chosen = chosen or [file for file in files if subset.lower() in _words(file)]
        if not chosen:
            raise UserError(f"{folder}: no folder and no file of the subset {subset!r}")
        files = chosen
    found: dict[str, list[Path]] = {}
    for file in files:
        found.setdefault(named_after(file), []).append(file)
    if len(found) > 1:
        found.pop("", None)
    return found


def _declared(folder: Path, files: list[Path]) -> dict[str, dict[str, list[Path]]]:
    """Subset -> split -> files, as README.md declares them; none if it declares none."""
    card = folder / "README.md"
    if not card.is_file():
        return {}
    from huggingface_hub import metadata_load  # seconds, for which --help need not wait

    try:
        facts = metadata_load(card) or {}
    except Exception:  # a card's YAML may be anything; then the names of files must do
        return {}
    configs = facts.get("configs") if isinstance(facts, dict) else None
    found = {}
    for config in configs if isinstance(configs, list) else []:
        if isinstance(config, dict) and config.get("data_files"):
            splits = {
                _split_of(str(split)): _matching(files, patterns)
                for split, patterns in _patterns(config["data_files"])
            }
            if any(splits.values()):
                found[str(config.get("config_name", "default"))] = {
                    split: chosen for split, chosen in splits.items() if chosen
                }
    return found


def _patterns(given: Any) -> list[tuple[str, list[str]]]:
    """The forms that `data_files` has -> pairs of a split and its patterns."""
    as_list = lambda value: [value] if isinstance(value, str) else list(value)  # noqa: E731
    if isinstance(given, dict):
        return [(split, as_list(value)) for split, value in given.items()]
    if isinstance(given, list) and all(isinstance(item, dict) for item in given):
        return [(item.get("split", "train"), as_list(item.get("path", []))) for item in given]
    return [("train", [str(item) for item in as_list(given)])]


def _matching(files: list[Path], patterns: list[str]) -> list[Path]:
    """Those that fit one of the patterns: * within a name, ** over folders."""
    parts = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    rules = [
        "".join(parts.get(piece, re.escape(piece)) for piece in re.split(r"(\*\*/|\*\*|\*|\?)", p))
        for p in patterns
    ]
    return [file for file in files if any(re.fullmatch(rule, str(file)) for rule in rules)]


def choose_split(found: dict[str, list[Path]], split: str, where: str) -> list[Path]:
    """The files of one split; all files where none is named after any; for "val" those of "test"
    do as well. Raises UserError."""
    if set(found) == {""} and split in SYNONYMS:
        return found[""]
    wanted = _split_of(split)
    chosen = found.get(wanted) or [
        file for files in found.values() for file in files if split.lower() in _words(file)
    ]
    if not chosen and wanted == "val":
        chosen = found.get("test", [])
    if not chosen:
        there = ", ".join(name for name in found if name) or "none"
        raise UserError(f"{where}: no files of the split {split!r} in this data set, only {there}")
    return chosen
