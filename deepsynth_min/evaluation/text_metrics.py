"""How near a generated text is to its reference: ROUGE, character errors, repetition.

In: pairs of texts (and an answer's token ids). Out: numbers for each pair, and where the two differ
(`alignment`); figures.py makes one figure of many answers.

The one idea: the bit-parallel edit distance of Myers 1999 in Hyyro's form. A column of the dynamic
programme is two whole numbers of as many bits as the reference has characters, one for +1 and one
for -1 steps; Python's integers are as long as needed, so a character of the answer costs a dozen
operations.

ROUGE (Lin 2004) is computed as by the package rouge-score without stemming, but over Unicode words:
the package's split knows a-z and 0-9 only and would score a Greek or Chinese answer as empty. In
ASCII both agree to the bit.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby
from unicodedata import normalize

import numpy as np

ROUGE = ("rouge1", "rouge2", "rougeL")
RUN = 4  # tokens in a row that count as a repetition
RESAMPLES = 2000  # of a bootstrap interval


def _columns(a: Sequence[str], b: Sequence[str]) -> Iterator[tuple[int, int, int]]:
    """After each element of b: (bits of +1 steps down the column, bits of -1 steps, the distance
    from all of a). a must not be empty."""
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
        yield up, down, distance


def edit_distance(a: Sequence[str], b: Sequence[str]) -> int:
    """Fewest insertions, deletions and substitutions from a to b: of characters (code points) of
    two texts, of words of two lists."""
    if not a:
        return len(b)
    distance = len(a)
    for column in _columns(a, b):
        distance = column[2]
    return distance


def alignment(a: str, b: str) -> list[tuple[bool, str, str]]:
    """One way to change a into b with the fewest edits: pieces (equal, of a, of b) in order, equal
    and changed ones in turn. A changed piece costs as many edits as the longer of its two texts.

    Holds 2 len(a) len(b) bits: cut what may be long.
    """
    columns = [(up, down) for up, down, _ in _columns(a, b)] if a else []
    pairs, i, j = [], len(a), len(b)  # (character of a or "", of b or ""), the last ones first
    while i and j:
        if columns[j - 1][0] >> (i - 1) & 1:
            i -= 1
            pairs.append((a[i], ""))
            continue
        j -= 1
        if j and columns[j - 1][1] >> (i - 1) & 1:
            pairs.append(("", b[j]))
        else:
            i -= 1
            pairs.append((a[i], b[j]))
    pairs += [(x, "") for x in a[:i][::-1]] + [("", y) for y in b[:j][::-1]]
    runs = groupby(reversed(pairs), key=lambda pair: pair[0] == pair[1])
    return [(equal, *map("".join, zip(*run))) for equal, run in runs]


def character_edits(reference: str, answer: str) -> tuple[int, int]:
    """(edits, characters of the reference), surrounding white space left out."""
    reference, answer = reference.strip(), answer.strip()
    return edit_distance(reference, answer), len(reference)


def word_edits(reference: str, answer: str) -> tuple[int, int]:
    """The same in words, which white space of any kind separates."""
    words = reference.split()
    return edit_distance(words, answer.split()), len(words)


def rate(edits: float, length: float) -> float:
    """Edits per character, or per word, of the reference; may exceed 1."""
    return edits / max(1, length)


def character_error_rate(reference: str, answer: str) -> float:
    return rate(*character_edits(reference, answer))


def normalised_error_rate(reference: str, answer: str) -> float:
    """Character errors that are left where case, punctuation and white space count for nothing."""
    texts = [" ".join(words_of(normalize("NFKC", t))) for t in (reference, answer)]
    return character_error_rate(*texts)


def bootstrap_interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % percentile bootstrap interval (Efron 1979) of the mean of some values: from where to
    where the means of RESAMPLES samples of them lie. The same for the same values in one order."""
    chance, data = np.random.RandomState(0), np.asarray(values, np.float64)
    count = len(data)
    means = [data[chance.randint(0, count, count)].mean() for _ in range(RESAMPLES)]
    low, high = np.percentile(means, (2.5, 97.5))
    return float(low), float(high)


def repetition(ids: list[int]) -> float:
    """Share of the runs of RUN tokens that have occurred before in the same answer."""
    runs = [tuple(ids[i : i + RUN]) for i in range(len(ids) - RUN + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


_UNSPACED = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]")
_WORD = re.compile(_UNSPACED.pattern + r"|[^\W_\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+")


def words_of(text: str) -> list[str]:
    """Lower case words and numbers of any script; a character of a script that is written without
    spaces is a word."""
    return _WORD.findall(text.lower())


def precision(reference: str, answer: str) -> float:
    """Share of an answer's different words that stand in the reference, 0 to 1; 0 of no words.

    The precision of the Fox benchmark's script (eval_ocr_test.py: sets of words between white
    space, nltk's `precision`), by which DeepSeek-OCR's paper says how much it reads at which
    compression (arXiv 2510.18234, table 2). The script divides Chinese by jieba; here a character
    of a script without spaces is a word.
    """
    expected, found = (set(_UNSPACED.sub(r" \g<0> ", text).split()) for text in (reference, answer))
    return len(expected & found) / max(1, len(found))


def common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence, bit-parallel as the edit distance (Hyyro 2004): a
    bit of `rest` is 0 where the length rises from one element of a to the next."""
    places: dict[str, int] = Counter()
    for i, element in enumerate(a):
        places[element] |= 1 << i
    every = rest = (1 << len(a)) - 1
    for element in b:
        match = rest & places.get(element, 0)
        rest = (rest + match | rest - match) & every
    return len(a) - rest.bit_count()


def rouge(reference: str, answer: str) -> list[float]:
    """F1 of ROUGE-1, -2 and -L, 0 to 1."""
    a, b = words_of(reference), words_of(answer)
    scores = []
    for n in (1, 2):
        ours, theirs = (Counter(zip(*(words[i:] for i in range(n)))) for words in (a, b))
        scores.append(_f1((ours & theirs).total(), ours.total(), theirs.total()))
    return [*scores, _f1(common_subsequence(a, b), len(a), len(b))]


def _f1(common: int, reference: int, answer: int) -> float:
    """Of the counts that two texts have in common, and that each of them has."""
    if not common:
        return 0.0
    precision, recall = common / answer, common / reference
    return 2 * precision * recall / (precision + recall)


def compared(reference: str, text: str) -> dict[str, float]:
    """All figures of one answer that follow from its text and the reference, by name."""
    edits, characters = character_edits(reference, text)
    word_changes, words = word_edits(reference, text)
    return {
        **dict(zip(ROUGE, rouge(reference, text))),
        "cer": rate(edits, characters),
        "wer": rate(word_changes, words),
        "cer_normalised": normalised_error_rate(reference, text),
        "precision": precision(reference, text),
        "exact_match": float(text.strip() == reference.strip()),
        "edits": edits,
        "characters": characters,
        "word_edits": word_changes,
        "words": words,
    }
