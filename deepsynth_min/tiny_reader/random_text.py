"""Training data of the recipe: random texts, pages labelled by letters, more documents.

In: a seed and a number. Out: text, page or document of that number, the same at any time.

The one idea: made-up words, numbers, and words of the embedded training documents in no order leave
nothing to lower the loss with but the page. The text of a page also decides what it is for: one
whose checksum is a multiple of 16 is never trained on, and errors are counted on such texts only.
They are unseen however short they are.
"""

import zlib
from functools import cache
from itertools import accumulate

import torch
from torch import Tensor

from ..corpus.documents import Document, Draw, documents
from ..data.row import Row
from ..data.samples import SampleBuilder
from ..data.tokenizer import encode
from ..model.loss import IGNORE
from ..pages.glyphs import GlyphStore
from ..pages.renderer import line_ranges

SLOTS = 8  # letters that a visual token predicts
HELD_OUT = 16  # one text in so many is never trained on
UNSEEN = 2**40  # held-out texts are drawn from this number on

_ONSETS = (
    "b c d f g h j k l m n p r s t v w z ch sh th br cr dr fr gr pr tr bl cl fl gl pl st sp "
    "sch qu x y ñ ç"
).split() + [""] * 4
_VOWELS = "a e i o u a e i o u a e i o ei au ou ie ea é è ê à â á í ó ú ä ö ü î ô y".split()
_CODAS = "n r s l t m d k g ck st nd ng x z ß f p b w".split() + [""] * 12


def made_up_word(draw: Draw) -> str:
    """One to three syllables, as it stands, capitalised or in capitals."""
    word = "".join(
        draw.pick(_ONSETS) + draw.pick(_VOWELS) + draw.pick(_CODAS)
        for _ in range(1 + draw.below(3))
    )
    form = draw.below(10)
    return word.capitalize() if form < 4 else word.upper() if form == 4 else word


def number(draw: Draw) -> str:
    """Digits, some with a point, a comma, a colon or a sign."""
    digits = "".join(draw.pick("0123456789") for _ in range(1 + draw.below(4)))
    form = draw.below(6)
    more = "".join(draw.pick("0123456789") for _ in range(3 if form == 0 else 2))
    return {
        0: f"{digits}{draw.pick(',.')}{more}",
        1: f"{digits}{draw.pick(':.')}{more}",
        2: f"{draw.pick('£«“(-')}{digits}",
    }.get(form, digits)


def is_held_out(text: str) -> bool:
    """Whether a text is never trained on."""
    return zlib.crc32(text.encode()) % HELD_OUT == 0


class Words:
    """Random texts: text n is a function of (seed, n, its limits of length)."""

    def __init__(self, seed: int):
        self.seed = seed
        self.known = sorted({word for d in documents("train") for word in d.text.split()})

    def word(self, draw: Draw) -> str:
        """Half are made up, three in ten known, two in ten numbers; some with punctuation."""
        chance = draw.below(10)
        if 5 <= chance < 8:
            return draw.pick(self.known)  # with what punctuation it has there
        word = made_up_word(draw) if chance < 5 else number(draw)
        return word + draw.pick(".,;:!»’-") if draw.below(8) == 0 else word

    def _drawn(self, draw: Draw, min_chars: int, max_chars: int) -> str:
        size, text = min_chars + draw.below(max_chars - min_chars + 1), ""
        while len(text) <= size:
            text += self.word(draw) + " "
        return text[:size].strip()

    def text(self, n: int, min_chars: int, max_chars: int) -> str:
        """Text n: from UNSEEN on a held-out one, before it any other."""
        draw = Draw(self.seed * 2**48 + n)
        while True:
            text = self._drawn(draw, min_chars, max_chars)
            if text and is_held_out(text) == (n >= UNSEEN):
                return text


@cache  # a second to draw, 7 MB a seed
def _more_documents(seed: int) -> list[Document]:
    """Training documents of a seed, but for those that share an entity combination with the
    held-out ones of a run on the embedded corpus."""
    held_out = {pair for d in documents("val") for pair in d.combinations()}
    return [d for d in documents("train", seed) if held_out.isdisjoint(d.combinations())]


def document(n: int) -> Document:
    """Document n of an endless corpus: the embedded one, then those of further seeds."""
    seed = 0
    while n >= len(_more_documents(seed)):
        n, seed = n - len(_more_documents(seed)), seed + 1
    return _more_documents(seed)[n]


class Letters:
    """Letters and visual tokens: pages full of words with the letters that each token is to predict
    (the first stage), and the tokens that a text's letters are on (the last)."""

    def __init__(self, words: Words, builder: SampleBuilder):
        self.words, self.builder = words, builder
        self.store = GlyphStore(builder.style, ink=False)
        self.columns = builder.side // 64  # visual tokens in a row of a page, and rows

    def _ends(self, line: str) -> list[float]:
        """Where each letter of a line ends, px from the left edge of the page."""
        widths = (self.store.glyph(ord(letter)).advance / 64 for letter in line)
        return list(accumulate(widths, initial=self.builder.style.margin))

    def _line(self, draw: Draw) -> str:
        line, longer = "", self.words.word(draw)
        while self._ends(longer)[-1] <= self.builder.side - self.builder.style.margin:
            line, longer = longer, f"{longer} {self.words.word(draw)}"
        return line

    def visual_positions(self, text: str) -> list[int]:
        """Of each character of a text the position, in a prompt with its pages, of the visual token
        that its middle is on (0 of those that are on no page, as newlines)."""
        n, found = self.columns, [0] * len(text)
        page_tokens = self.builder.visual_tokens()
        for number, (start, stop) in enumerate(line_ranges(text, self.builder.style)):
            page, row = divmod(number, n)  # a line is as high as a visual token
            first = 1 + page * page_tokens + row * (n + 1)
            ends = self._ends(text[start:stop])
            for i, (left, right) in enumerate(zip(ends, ends[1:]), start):
                found[i] = first + min(n - 1, int((left + right) / 2 // 64))
        return found

    def page(self, n: int) -> tuple[Tensor, Tensor]:
        """Page n, uint8 [1, s, s], and labels, token ids [rows, columns, SLOTS]: the letters along
        the line from the first whose middle is on the visual token, EOS at the line's end; the rest
        IGNORE."""
        draw = Draw(self.words.seed * 2**48 + n)
        while True:
            lines = [self._line(draw) for _ in range(self.columns)]
            if is_held_out("\n".join(lines)) == (n >= UNSEEN):
                break
        eos = self.builder.special.eos
        labels = torch.full((self.columns, self.columns, SLOTS), IGNORE)
        for row, line in zip(labels, lines):
            ids = [*encode(self.builder.tokenizer, line), eos]
            ends, started = self._ends(line), set()
            for k in range(len(line)):
                column = int((ends[k] + ends[k + 1]) / 2 // 64)
                if column not in started:
                    row[column, : len(ids) - k] = torch.tensor(ids[k : k + SLOTS])
                started.add(column)
        pages = self.builder.prompt(Row("letters", "", "\n".join(lines))).pages
        assert len(pages) == 1, lines
        return torch.from_numpy(pages[0]), labels
