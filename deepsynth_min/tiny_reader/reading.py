"""How well a model reads pages and summarises them: the measures of the recipe `tiny-reader`.

In: a model. Out: what it writes of pages that it has never seen, and the share that is right.

The one idea: each measure compares with a text that nobody could guess: of random words the words,
of a document's summary the names in the summaries that would be right, and the names and numbers in
the document itself.
"""

import re

import torch

from ..corpus.documents import Document, documents
from ..data.row import Row
from ..data.samples import SampleBuilder, collate
from ..data.tokenizer import decode
from ..evaluation.text_metrics import character_error_rate, edit_distance
from ..model.deepseek_ocr import DeepseekOCR
from ..model.generation import generate
from ..settings import DataSettings, GenerationSettings
from .random_text import UNSEEN, Words

READ, SUMMARIZE = "Read.", DataSettings.instruction


def summary_row(document: Document) -> Row:
    """A document to be summarised, as a row of data."""
    return Row(document.id, document.summary, document.text, instruction=SUMMARIZE)


def nearest(document: Document, written: str) -> str:
    """Of the summaries that are right the one that takes the fewest edits, character by
    character."""
    return min(document.summaries, key=lambda right: edit_distance(right, written))


def statements(summary: str) -> list[str]:
    """Its numbers and capitalised words but the first: names, and what German calls a thing."""
    words = re.findall(r"[\w’'.,]*\w", summary)[1:]
    return [word for word in words if word[0].isupper() or any(map(str.isdigit, word))]


@torch.no_grad()
def answers(
    model: DeepseekOCR, builder: SampleBuilder, rows: list[Row], max_tokens: int
) -> list[str]:
    """What the model writes of each row's pages by greedy decoding."""
    prompts = [builder.prompt(row) for row in rows]
    greedy = GenerationSettings(max_new_tokens=max_tokens)
    found = generate(model, collate(prompts, builder.special), greedy)
    return [decode(builder.tokenizer, a.ids) for a in found]


class Reading:
    """Measures of a model on unseen texts and held-out documents."""

    def __init__(self, model: DeepseekOCR, builder: SampleBuilder, words: Words):
        self.model, self.builder, self.words = model, builder, words

    def error_rate(
        self, min_chars: int, max_chars: int, count: int = 64
    ) -> tuple[float, list[tuple[str, str]]]:
        """(character error rate over `count` unseen texts, three of them and what was read)."""
        texts = [self.words.text(UNSEEN + i, min_chars, max_chars) for i in range(count)]
        rows = [Row("unseen", "", text) for text in texts]
        read = answers(self.model, self.builder, rows, 8 + max_chars)
        edits = sum(character_error_rate(t, r) * len(t) for t, r in zip(texts, read))
        return edits / sum(map(len, texts)), list(zip(texts, read))[:3]

    def misread(self) -> dict[str, float]:
        """Shares of the characters of unseen texts: on a page, and on two to five."""
        return {
            "256 unseen texts of 8 to 70 characters": self.error_rate(8, 70, 256)[0],
            "64 of 150 to 330": self.error_rate(150, 330, 64)[0],
        }

    def summary_accuracy(self, count: int) -> tuple[float, float, list[tuple[str, str]]]:
        """(named, stated, two right summaries and what was written) over held-out documents.

        named: of the persons and towns in the right summary nearest to what was written, the share
        that is named there too. stated: of its capitalised words and numbers, the share that stands
        in the document.
        """
        chosen = documents("val")[:count]
        written = answers(self.model, self.builder, [summary_row(d) for d in chosen], 200)
        right = [nearest(d, text) for d, text in zip(chosen, written)]
        named = [
            name in text
            for d, best, text in zip(chosen, right, written)
            for name in d.entities
            if name in best
        ]
        stated = [word in d.text for d, text in zip(chosen, written) for word in statements(text)]
        shares = sum(named) / len(named), sum(stated) / max(1, len(stated))
        return *shares, list(zip(right, written))[:2]
