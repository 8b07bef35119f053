"""What lies in a run's mirror: which checkpoints are whole there, and how one of them comes here.

In: a Remote and the sizes of its files. Out: names of checkpoints with their manifests; a
checkpoint here, whole, or nothing.

The one idea: a manifest is sent last and taken away first, so a checkpoint that has one was
complete once. It counts if every file that the manifest names has its size there, and is used once
every file that came has its digest too. Nothing that is read from there decides where it is
written: names are the run's own, or plain names of files.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ...files.disk import whole_directory
from ...files.remote import Remote
from ...training import checkpoint
from ...training.checkpoint import MANIFEST
from .run_directory import warn
from .status import FILE as STATUS

CONFIG, ID = "config.toml", "run.id"
FILES = ("metrics.jsonl", STATUS, "skipped.jsonl", "skipped.json", "report.html", "last", "best")
FOLDERS = ("pages", "answers", "base")


def step_of(name: str) -> int:
    """The step of a checkpoint's name; -1: it is no such name."""
    number = name.removeprefix("step-")
    fits = name != number and 6 <= len(number) <= 12 and number.isascii() and number.isdigit()
    return int(number) if fits else -1


def listed(manifest: bytes) -> dict[str, int]:
    """File -> bytes, as a manifest says; none if it is not as it was written."""
    try:
        sizes = {name: entry["bytes"] for name, entry in json.loads(manifest).items()}
    except (ValueError, TypeError, KeyError, AttributeError):
        return {}
    return sizes if all(Path(name).name == name for name in sizes) else {}


def is_small(name: str) -> bool:
    """Whether a file there is one of the run's beside config.toml and the checkpoints."""
    folder, _, file = name.rpartition("/")
    return name in FILES or folder in FOLDERS and file not in ("", ".", "..")


def holds_run(found: dict[str, int]) -> bool:
    return CONFIG in found or any(name.startswith("checkpoints/") for name in found)


def look(remote: Remote, found: dict[str, int]) -> dict[str, bytes]:
    """Name -> manifest of the checkpoints there of which every file has its size, oldest first."""
    whole = {}
    names = {name.split("/")[1] for name in found if name.startswith("checkpoints/step-")}
    for name in sorted(names, key=step_of):
        place = f"checkpoints/{name}/"
        if step_of(name) >= 0 and place + MANIFEST in found:
            manifest = remote.read(place + MANIFEST)
            sizes = listed(manifest)
            if sizes and all(found.get(place + file) == size for file, size in sizes.items()):
                whole[name] = manifest
    return whole


class _Damaged(Exception):
    """What came is not to be kept."""


@contextmanager
def _unless_damaged(final: Path) -> Iterator[Path]:
    """whole_directory, of which _Damaged leaves nothing and is no error."""
    try:
        with whole_directory(final) as partial:
            yield partial
    except _Damaged:
        pass


def bring(remote: Remote, name: str, manifest: bytes, folder: Path) -> bool:
    """Whether a checkpoint has come to folder/name whole; in place of one that was damaged."""
    print(f"bringing {name} from {remote.url}", flush=True)
    wrong = None
    with _unless_damaged(folder / name) as partial:
        for file in [*listed(manifest), MANIFEST]:
            remote.bring(f"checkpoints/{name}/{file}", partial / file)
        wrong = checkpoint.damage(partial)
        if wrong:
            raise _Damaged
    if wrong:
        warn(f"{remote.name}: {name} is damaged there ({wrong})")
    return wrong is None
