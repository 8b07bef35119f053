"""Needles: a fact somewhere in a long document, a question about it, the answer in four digits.

In: a split, a seed and lengths in characters. Out: a sequence of Needles, each made when it is
asked for. A document is sentences of the English reports of its split in any order, and among them
FACTS that say which number a town has. The question names one of the towns, the answer is its
number: who reads a number without the question is right in one case of four.

The one idea: where the fact stands is decided by the row's number. Depths take turns, then lengths,
so that any stretch of rows has all places equally often, and what is answered can be counted by
place (evaluation/needles.py). Towns and numbers of the facts in held-out documents are those of no
training document, as in the notices.

After the needles of RULER (Hsieh et al., arXiv 2404.06654), several keys of which one is asked for.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

from ..errors import UserError
from . import notices
from .documents import Draw, Scene, documents as reports

SIZES = {"train": 1500, "val": 150}
DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)  # share of the document that stands before the fact
LENGTHS = (300, 600, 1200)  # characters; tiny-reader has some 80 on a page
SHORTEST, LONGEST, MOST = 200, 10_000_000, 20
FACTS = 4  # in a document, of the same form
NUMBERS = [str(n) for n in range(1000, 10_000)]
SLOTS = {f"town{n}": "town" for n in range(FACTS)} | {f"number{n}": NUMBERS for n in range(FACTS)}


@dataclass(frozen=True)
class Needle:
    """One document with the fact in it, by the names that data files have for its parts."""

    id: str
    text: str
    instruction: str
    summary: str
    depth: float  # one of DEPTHS
    length: int  # characters that the text has at most; up to a sentence fewer

    @property
    def needle(self) -> tuple[float, int]:
        """Where the fact stands, as rows have it."""
        return self.depth, self.length


def lengths_of(text: str, where: str) -> tuple[int, ...]:
    """500,2000 -> (500, 2000). Raises UserError, whose message begins with `where`."""
    if not re.fullmatch(r"\d{1,9}(,\d{1,9})*", text):
        raise UserError(f"{where}: {text!r} is not lengths in characters, as in needles@500,2000")
    lengths = tuple(map(int, text.split(",")))
    if not SHORTEST <= min(lengths) <= max(lengths) <= LONGEST:
        raise UserError(f"{where}: lengths are {SHORTEST} to {LONGEST:,} characters")
    if len(set(lengths)) < len(lengths) or len(lengths) > MOST:
        raise UserError(f"{where}: lengths differ, and are {MOST} at most")
    return lengths


@lru_cache(maxsize=2)
def _sentences(split: str) -> list[str]:
    """All different ones of the English reports of a split."""
    texts = (document.text for document in reports(split) if document.language == "en")
    pieces = (piece for text in texts for piece in re.split(r"(?<=[.?!])\s+|\n+", text))
    return [piece for piece in dict.fromkeys(pieces) if piece[-1] in ".?!" and " " in piece]


def _haystack(sentences: Sequence[str], room: int, draw: Draw, without: Sequence[str]) -> list[str]:
    """Sentences of `room` characters at most, each with a space; in none is a text of `without`."""
    found: list[str] = []
    while True:
        sentence = draw.pick(sentences)
        if any(text in sentence for text in without):
            continue
        room -= len(sentence) + 1
        if room < 0:
            return found
        found.append(sentence)


class Needles(Sequence[Needle]):
    """The needles of a split: number i depends on (split, seed, i) and the lengths alone."""

    def __init__(self, split: str, seed: int, lengths: tuple[int, ...]):
        self.split, self.seed, self.lengths = split, seed, lengths

    def __len__(self) -> int:
        return SIZES[self.split]

    def __getitem__(self, i: int) -> Needle:
        if not 0 <= i < len(self):
            raise IndexError(i)
        turn, place = divmod(i, len(DEPTHS))
        depth, length = DEPTHS[place], self.lengths[turn % len(self.lengths)]
        draw = Draw((self.seed * 2 + list(SIZES).index(self.split)) * 1_000_000 + i)
        scene = Scene(
            "en", notices.tables(), SLOTS, draw, lambda value: notices.is_of(self.split, value)
        )
        fact, *others = (
            scene.write(f"The secret number of {{town{n}}} is {{number{n}}}.") for n in range(FACTS)
        )
        town, number = scene.write("{town0}"), scene.write("{number0}")
        room = length - len(fact) - sum(len(other) + 1 for other in others)
        found = _haystack(_sentences(self.split), room, draw, (town, number))
        sentences = draw.shuffled([*found, *others])
        ends = [0, *accumulate(len(sentence) + 1 for sentence in sentences)]
        nearest = min(range(len(ends)), key=lambda n: abs(ends[n] - depth * ends[-1]))
        text = " ".join([*sentences[:nearest], fact, *sentences[nearest:]])
        question = f"What is the secret number of {town}?"
        return Needle(f"{self.split}-{i:04d}", text, question, number, depth, length)


def documents(split: str, seed: int = 0, lengths: tuple[int, ...] = LENGTHS) -> Sequence[Needle]:
    """The needles of `split` ("train" or "val"): the same bytes for the same seed, anywhere.

    Raises ValueError for another split.
    """
    if split not in SIZES:
        raise ValueError(f"split must be one of {', '.join(SIZES)}, not {split!r}")
    return Needles(split, seed, lengths)
