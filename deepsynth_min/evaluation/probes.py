"""Reading tests: the rows' own texts as answers, as they are or spoilt, to see what is guessed.

In: rows with a text. Out: rows whose page and answer are that text, or what a probe makes of it:
    real      the text as it is
    words     its words in another order
    letters   the letters of each word in another order
    made-up   its letters in other words: all vowels of the text change places, and so do its other
              small letters, its capitals and its digits

The one idea: all four are equally long, have the same white space and punctuation, and are made of
the same letters. Who reads letters reads them equally well; what a model loses on the way from
`real` to `made-up` it had not read but guessed, from the order of words, then from the words.

After Liang et al., arXiv 2601.03714, who found DeepSeek-OCR to fall from 90 % to 20 % without the
help of language.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from unicodedata import normalize

import numpy as np

from ..data.row import Row, RowError
from ..data.tokenizer import encode
from ..model.shape.presets import TINY_READER
from ..settings import Settings

_VOWELS = frozenset("aeiouyAEIOUY")
READ_TINY_READER, READ = "Read.", "Free OCR."  # what asks for the text: tiny-reader, official


def read_prompt(settings: Settings) -> str:
    """The instruction that a model takes for: write down what stands on the page."""
    return READ_TINY_READER if settings.model.model == TINY_READER else READ


def _shuffled(items: Sequence[str], chance: np.random.RandomState) -> list[str]:
    return [items[i] for i in chance.permutation(len(items))]


def _words(text: str, chance: np.random.RandomState) -> str:
    pieces = re.split(r"(\s+)", text)  # words and white space in turn
    pieces[::2] = _shuffled(pieces[::2], chance)
    return "".join(pieces)


def _letters(text: str, chance: np.random.RandomState) -> str:
    return re.sub(r"[^\W_]+", lambda word: "".join(_shuffled(word[0], chance)), text)


def _kind(character: str) -> str:
    """Which characters one may change places with; "" for those that stay."""
    if character.isdigit():
        return "digit"
    if not character.isalpha():
        return ""
    vowel = "vowel" if normalize("NFD", character)[0] in _VOWELS else "other"
    return f"{vowel} {'capital' if character.isupper() else 'small'}"


def _made_up(text: str, chance: np.random.RandomState) -> str:
    kinds, characters = [_kind(c) for c in text], np.array(list(text), dtype=object)
    for kind in sorted(set(kinds) - {""}):
        places = [i for i, found in enumerate(kinds) if found == kind]
        characters[places] = characters[chance.permutation(places)]
    return "".join(characters)


PROBES: dict[str, Callable[[str, np.random.RandomState], str]] = {
    "real": lambda text, chance: text,
    "words": _words,
    "letters": _letters,
    "made-up": _made_up,
}


@dataclass(frozen=True)
class Reading(Sequence[Row]):
    """Rows to be read: each one's text, or what a probe makes of it, is its page and its answer.

    What row i becomes depends on (seed, i) alone. Raises RowError for a row without a text.
    """

    rows: Sequence[Row]
    instruction: str
    probe: str = "real"
    seed: int = 0

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> Row:
        row = self.rows[i]
        if row.text is None:
            raise RowError(row.where, "has no text that could be read", "no text")
        chance = np.random.RandomState([self.seed % 2**32, 7, i])
        text = PROBES[self.probe](row.text, chance)
        return Row(row.where, text, text, instruction=self.instruction)


def long_enough(rows: Sequence[Row], tokenizer: Any) -> int:
    """Tokens that an answer may have: a quarter more than any text that is to be read, so that none
    is cut and one that goes astray ends."""
    texts = (rows[i].text or "" for i in range(len(rows)))
    return max(len(encode(tokenizer, text)) for text in texts) * 5 // 4 + 1


COLUMNS = ("loss", "cer", "precision", "exact_match")
_HEADS = ("nats per token", "CER", "precision", "exact match")


def table(found: dict[str, dict[str, float]]) -> str:
    """The figures of each probe for people, and how much of the real text's precision is lost."""
    lines = [f"{'page':<10}" + "".join(f"{head:>16}" for head in (*_HEADS, "precision lost"))]
    for probe, figures in found.items():
        cells = [f"{figures[name]:>16.3f}" if name in figures else " " * 16 for name in COLUMNS]
        if found["real"].get("precision") and "precision" in figures:
            cells.append(f"{1 - figures['precision'] / found['real']['precision']:>16.1%}")
        lines.append(f"{probe:<10}" + "".join(cells))
    return "\n".join(lines)
