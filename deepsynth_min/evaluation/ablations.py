"""Page ablations: does the model read? The same answers are scored with another input for the page.

In: a sample as training sees it. Out: the sample with
    blank      an empty page of the same size
    shuffled   the pages of another held-out document
    without    no page at all
    text       the document's own text, cut to as many text tokens as the page has visual tokens
    tail       the same of its end (not one of ABLATIONS: only the page to try a model on asks)

The one idea: a model can lower its loss without looking at the page, by learning what answers are
like. Then nothing changes when the page does. How much the loss per scored token rises
(`reads/...`, nats) is what the page is worth: against nothing, against a wrong page, and against
plain text of the same length, where a negative figure says that text would have served better.
"""

from dataclasses import replace

import numpy as np

from ..data.row import Row
from ..data.sample import Sample, in_place_of_pages, page_as
from ..data.samples import SampleBuilder
from ..data.tokenizer import encode
from ..pages.vary import BASE

ABLATIONS = ("blank", "shuffled", "without", "text")
MIN_RISE = 0.01  # nats per token: below this, the right page is as good as a wrong one


def partners(rows: int, seed: int) -> np.ndarray:
    """For each row another one [rows], the same at every evaluation: one cycle through all rows."""
    order = np.random.RandomState([seed % 2**32, 4]).permutation(rows)
    partner = np.empty(rows, dtype=np.int64)
    partner[order] = np.roll(order, 1)
    return partner


def ablate(
    sample: Sample, kind: str, row: Row, other: Row | None, builder: SampleBuilder
) -> Sample | None:
    """The changed sample; None where `kind` says nothing about this row (text of an image, say).

    kind: one of ABLATIONS, or tail; row: what the sample was made of; other: whose pages `shuffled`
    takes.
    """
    image = [builder.special.image]
    if kind == "blank":
        paper = 255 if row.text is None else builder.paper(BASE)
        return replace(
            sample,
            pages=np.full_like(sample.pages, paper),
            tiles=[np.full_like(tile, paper) for tile in sample.tiles],
        )
    if kind == "shuffled":
        if other is None:
            return None
        page = builder.prompt(other)
        if not page.visual:
            return None
        return in_place_of_pages(
            sample, image * page.visual, page.visual, page.pages, page.tiles, page.grids
        )
    if kind == "without":
        return in_place_of_pages(sample, [])
    if row.text is None:
        return None
    document = encode(builder.tokenizer, row.text)
    return page_as(sample, "tail" if kind == "tail" else "head", document, image[0])


def warning(result: dict[str, float]) -> str | None:
    """A sentence for the user if the page makes no difference; `result`: figures by name, as an
    Evaluator gives them."""
    for kind, what in (("shuffled", "another document's page"), ("blank", "an empty page")):
        found = result.get(f"reads/{kind}")
        if found is None:
            continue
        if found >= MIN_RISE:
            return None
        return (
            f"with {what} in place of the right one the loss changes by {found:+.4f} nats per "
            "token: the model does not read the page, it guesses from what answers are like"
        )
    return None
