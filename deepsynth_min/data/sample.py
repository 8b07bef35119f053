"""One row, ready to be padded into a batch, and what may stand in its page's place.

In: a document's tokens and how many its page would cost. Out: the sample with these, or some of
them, or averages of them, between BOS and the instruction (--page-as).

The one idea: whatever it is that a page is compared with, all else stays: the same row, the same
instruction and answer, and, for `head`, `tail` and `mean`, the same number of positions. What the
page is worth is what is lost without it (Liang et al., arXiv 2601.03714; arXiv 2512.03643).
"""

from dataclasses import dataclass, replace

import numpy as np
import torch

from ..errors import UserError
from ..model.deepseek_ocr import ENCODER
from ..settings import Settings
from ..tuning.freeze import TUNED_PARTS


@dataclass(frozen=True)
class Sample:
    """One row, ready to be padded into a batch; lengths in tokens."""

    ids: list[int]  # the whole sequence
    prompt: int  # tokens before the answer
    visual: int  # visual tokens, or averages in their place, at positions 1 .. visual
    pages: np.ndarray  # uint8 [n, C, side, side]
    tiles: list[np.ndarray]  # uint8 [w*h, C, s, s] for each page that has any
    grids: list[tuple[int, int]]
    missing: int  # characters drawn as a box, or without the shaping that their script needs
    truncated: bool = False  # whether something was left out to fit the context
    newlines: bool = True  # whether a visual token ends each row of a page
    averaged: tuple[int, ...] = ()  # tokens whose embeddings are averaged, in `visual` equal pieces


def in_place_of_pages(
    sample: Sample,
    ids: list[int],
    visual: int = 0,
    pages: np.ndarray | None = None,
    tiles: list[np.ndarray] | None = None,
    grids: list[tuple[int, int]] | None = None,
) -> Sample:
    """The sample with `ids` where its visual tokens are. Of these ids `visual` are visual tokens:
    of `pages`, with `tiles` in `grids`."""
    return replace(
        sample,
        ids=[*sample.ids[:1], *ids, *sample.ids[1 + sample.visual :]],
        prompt=sample.prompt + len(ids) - sample.visual,
        visual=visual,
        pages=sample.pages[:0] if pages is None else pages,
        tiles=tiles or [],
        grids=grids or [],
        missing=0,
        truncated=False,
    )


def page_as(sample: Sample, kind: str, document: list[int], image: int) -> Sample:
    """The sample with something of its document where its visual tokens are (--page-as).

    document: its tokens; image: the id that stands where an average goes.
    """
    budget = min(sample.visual, len(document))  # a shorter document is there as it is
    if kind == "mean":
        changed = in_place_of_pages(sample, [image] * budget, budget)
        return replace(changed, averaged=tuple(document))
    kept = {
        "text": document,
        "head": document[:budget],
        "tail": document[len(document) - budget :],
        "none": [],
    }
    return in_place_of_pages(sample, kept[kind])


def averaged_tokens(samples: list[Sample]) -> dict[str, torch.Tensor]:
    """Of a batch: the tokens whose embeddings are averaged, and how many of them in each average.
    Empty where there are none."""
    averaged = [np.array_split(np.array(s.averaged), s.visual) for s in samples if s.averaged]
    pieces = [piece for of_sample in averaged for piece in of_sample]
    if not pieces:
        return {}
    sizes = torch.tensor([len(piece) for piece in pieces])
    return {"averaged": torch.from_numpy(np.concatenate(pieces)), "averaged_sizes": sizes}


def check(settings: Settings) -> None:
    """Raises UserError for settings that need the pages which --page-as leaves out."""
    kind = settings.page.page_as
    if kind == "rendered":
        return
    tune, reads_pages = settings.model.tune, ENCODER | {"projector"}
    needs = {
        f"--tune {tune}": bool(TUNED_PARTS[tune] & reads_pages),
        "--lora-targets encoder": any("encoder" in t for t in settings.adapter.lora_targets),
        "--augment": settings.augment.augment,
        "--vary": bool(settings.augment.vary),
        "--unseen-style": bool(settings.evaluation.unseen_style),
        "--feature-cache": settings.data.feature_cache != "off",
        f"--best {settings.evaluation.best}": settings.evaluation.best.startswith("reads/"),
    }
    for option, given in needs.items():
        if given:
            raise UserError(f"{option}: not with --page-as {kind}, which has no pages")
