"""Notices on a board, in English: documents of a kind that tiny-reader has never seen.

In: a split and a seed. Out: Documents of 100 to 450 characters: a heading, then short lines in any
order. What an answer tells depends on the sort of notice; beside what it needs stand other
persons, things and days. notices.toml has the format of LANGUAGE.toml (documents.py), and `slots`
that all kinds share.

The one idea: whether a training document or a held-out one may use a value (a last name, a town, a
thing, a place, a day, a number) is decided by the value's own checksum. No such value of the
held-out documents stands in a training document: what a model says of them, it has read.
"""

import tomllib
import zlib
from functools import lru_cache

from .documents import FOLDER, Document, Draw, Value, make_document

SIZES = {"train": 1600, "val": 64}
MIN_CHARS, MAX_CHARS = 100, 450
HELD_OUT = 5  # one value in so many is kept for the held-out documents


@lru_cache(maxsize=1)
def tables() -> dict:
    """The names, slots and kinds of notices.toml."""
    return tomllib.loads((FOLDER / "notices.toml").read_text("utf-8"))


def is_of(split: str, value: Value) -> bool:
    """Whether the documents of a split may use a value; of a person the last name decides."""
    form = {"person": "last", "day": "short"}.get(value.kind, "")
    kept = zlib.crc32(value.written("en", form).encode()) % HELD_OUT == 0
    return kept == (split == "val")


def _made(split: str, draw: Draw) -> list[Document]:
    """The documents of a split, no text twice; kinds take turns."""
    genres, made, texts = list(tables()["genre"]), [], set()
    while len(made) < SIZES[split]:
        id, genre = f"{split}-{len(made):04d}", genres[len(made) % len(genres)]
        document = make_document(id, "en", tables(), genre, draw, lambda v: is_of(split, v))
        if MIN_CHARS <= len(document.text) <= MAX_CHARS and document.text not in texts:
            made.append(document)
            texts.add(document.text)
    return made


@lru_cache(maxsize=2)
def _splits(seed: int) -> dict[str, list[Document]]:
    draw = Draw(seed)
    return {split: _made(split, draw) for split in SIZES}


def documents(split: str, seed: int = 0) -> list[Document]:
    """The notices of `split` ("train" or "val"): the same bytes for the same seed, anywhere.

    Raises ValueError for another split.
    """
    if split not in SIZES:
        raise ValueError(f"split must be one of {', '.join(SIZES)}, not {split!r}")
    return list(_splits(seed)[split])
