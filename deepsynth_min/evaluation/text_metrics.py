"""How near a generated text is to its reference: ROUGE, character errors, repetition.

In: pairs of texts (and an answer's token ids). Out: numbers for each pair; evaluator.py averages.

The one idea: the bit-parallel edit distance of Myers 1999 in Hyyro's form. A column of the dynamic
programme is two whole numbers of as many bits as the reference has characters, one for +1 and one
for -1 steps; Python's integers are as long as needed, so a character of the answer costs a dozen
operations.

ROUGE is the rouge-score package's (extra `[eval]`, Lin 2004), over Unicode words: its own split
knows a-z and 0-9 only and would score a Greek or Chinese answer as empty. In ASCII both agree.
"""

import re
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING
from unicodedata import normalize

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer

ROUGE = ("rouge1", "rouge2", "rougeL")
RUN = 4  # tokens in a row that count as a repetition


def edit_distance(a: Sequence[str], b: Sequence[str]) -> int:
    """Fewest insertions, deletions and substitutions from a to b: of characters (code points) of
    two texts, of words of two lists."""
    if not a:
        return len(b)
    places: dict[str, int] = Counter()
    for i, character in enumerate(a):
        places[character] |= 1 << i
    every, last = (1 << len(a)) - 1, 1 << (len(a) - 1)
    up, down, distance = every, 0, len(a)  # bits of +1 and of -1 from one row to the next
    for character in b:
        match = places.get(character, 0)
        diagonal = (((match & up) + up) ^ up) | match | down
        right_up = down | ~(diagonal | up) & every
        right_down = up & diagonal
        distance += bool(right_up & last) - bool(right_down & last)
        right_up = (right_up << 1 | 1) & every
        right_down = (right_down << 1) & every
        up = right_down | ~(diagonal | right_up) & every
        down = right_up & diagonal
    return distance


def character_error_rate(reference: str, answer: str) -> float:
    """Edits per character of the reference, surrounding white space left out; may exceed 1."""
    reference, answer = reference.strip(), answer.strip()
    return edit_distance(reference, answer) / max(1, len(reference))


def word_error_rate(reference: str, answer: str) -> float:
    """The same in words, which white space separates."""
    words = reference.split()
    return edit_distance(words, answer.split()) / max(1, len(words))


def normalised_error_rate(reference: str, answer: str) -> float:
    """Character errors that are left where case, punctuation and white space count for nothing."""
    known = Words()
    texts = [" ".join(known.tokenize(normalize("NFKC", t))) for t in (reference, answer)]
    return character_error_rate(*texts)


def repetition(ids: list[int]) -> float:
    """Share of the runs of RUN tokens that have occurred before in the same answer."""
    runs = [tuple(ids[i : i + RUN]) for i in range(len(ids) - RUN + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


class Words:
    """A tokenizer for rouge-score: lower case words and numbers of any script; a
    character of a script that is written without spaces is a word."""

    _WORD = re.compile(
        r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\W_\u3040-\u30ff\u3400-\u9fff"
        r"\uf900-\ufaff]+"
    )

    def tokenize(self, text: str) -> list[str]:
        """Called by rouge-score."""
        return self._WORD.findall(text.lower())


def rouge_scorer() -> "RougeScorer | None":
    """The scorer of rouge-score, or None where that is not installed."""
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError:
        return None
    return RougeScorer(list(ROUGE), tokenizer=Words())


def rouge(scorer: "RougeScorer", reference: str, answer: str) -> list[float]:
    """F1 of ROUGE-1, -2 and -L, 0 to 1."""
    scores = scorer.score(reference, answer)
    return [scores[name].fmeasure for name in ROUGE]
