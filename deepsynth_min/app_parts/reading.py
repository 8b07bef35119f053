"""The tabs Pages and Read: a document's pages, its answer, where the answer looked.

In: a session's text or file, and settings. Out: what the page shows, as dictionaries.

The one idea: nothing is computed here that a command does not compute: prompts, answers, ablations
and attention are those of runs/reader.py and evaluation/.
"""

import base64
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import options
from ..data.inputs import open_inputs
from ..data.row import Row
from ..data.sample import Sample, page_as
from ..data.samples import SampleBuilder, collate
from ..data.tokenizer import encode
from ..errors import UserError, number_of
from ..evaluation.ablations import ablate
from ..evaluation.attention_map import attention_weights, over_views, views
from ..model.shape.presets import TINY_READER
from ..options import change
from ..pages.png import png
from ..pages.renderer import undrawn
from ..pages.scripts import complaints
from ..runs.open_model import OpenModel
from ..runs.reader import Reader
from ..settings import DataSettings, GenerationSettings, ModelSettings, PageSettings
from ..tiny_reader.guide import HEADS
from .safety import arguments, settings_of
from .server import Session

PAGE = ("mode", *(f.name for f in fields(PageSettings)))
ANSWER = ("instruction", *(f.name for f in fields(GenerationSettings)))
MOST_TEXT, MOST_PAGES = 200_000, 24  # characters of a document; pages that are shown
CONCERNS = (ModelSettings, DataSettings, PageSettings, GenerationSettings)
COSTS = {"blank": "an empty page", "without": "no page", "tail": "as many tokens of its text's end"}


@dataclass
class Document:
    """What a session has read: the row, its sample, with the answer once there is one."""

    row: Row
    sample: Sample
    opened: OpenModel
    answered: bool = False


class Reading:
    """The model of the page, which all sessions share."""

    def __init__(self, opened: OpenModel, root: Path, words: list[str]):
        """words: how the command line names the model."""
        self.opened, self.root, self.words = opened, root, words
        self.parser = options.make_parser(
            {concern.__name__: concern for concern in CONCERNS}, "page", "", ()
        )

    def _opened(self, given: dict[str, Any], allowed: tuple[str, ...]) -> OpenModel:
        """The model with the settings of the page. Raises UserError."""
        words = arguments(given.get("settings", {}), allowed)
        values = settings_of(self.root, words, self.parser)
        settings = change(self.opened.settings, **{"beams": 1, **values})
        tokenizer = self.opened.builder.tokenizer
        builder = SampleBuilder(settings, self.opened.model.config, tokenizer)
        if max(1, settings.page.max_pages) > builder.most_pages:
            most = f"{builder.context} tokens has place for {number_of(builder.most_pages, 'page')}"
            raise UserError(f"--mode, --max-pages: the model's context of {most} of this size")
        return replace(self.opened, settings=settings, builder=builder)

    def _row(self, session: Session, given: dict[str, Any], opened: OpenModel) -> Row:
        """The text that was sent, or what is first in the file. Raises UserError."""
        if given.get("file"):
            path = session.file(given["file"])
            try:
                row = open_inputs([str(path)], opened.settings)[0].row()
            except UserError as error:
                raise UserError(str(error).replace(str(path), path.name)) from None
            row = replace(row, where=path.name)
        else:
            row = Row("the text", "", str(given.get("text", "")))
        if len(row.text or "") > MOST_TEXT:
            raise UserError(f"{len(row.text):,} characters: this page takes {MOST_TEXT:,}")
        if row.text is not None and not row.text.strip():
            raise UserError("there is no text yet")
        return row

    def pages(self, session: Session, given: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The pages, what they cost, and the command that reads such a document."""
        opened = self._opened(given, PAGE)
        row, builder = self._row(session, given, opened), opened.builder
        sample = builder.prompt(row)
        found = {
            "pages": [picture(page) for page in sample.pages[:MOST_PAGES]],
            "facts": [f"{len(sample.pages)} of {builder.side} px", f"{sample.visual:,}"],
            "marks": [],
            "complaints": [],
            "command": shlex.join(
                ["python", "-m", "deepsynth_min.generate", *self.words]
                + arguments(given.get("settings", {}), PAGE)
                + [session.file(given["file"]).name if given.get("file") else "paper.txt"]
            ),
        }
        if row.text is not None and sample.visual:
            tokens = len(encode(builder.tokenizer, row.text))
            found["facts"] += [
                f"{len(row.text) / sample.visual:.2f}",
                f"{tokens / sample.visual:.2f} ({tokens:,} text tokens)",
            ]
            found["complaints"] = complaints([row.text], builder.style)
            if found["complaints"]:
                found["marks"] = marked(row.text, np.concatenate(undrawn(row.text, builder.style)))
        yield found

    def read(self, session: Session, given: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The answer, piece by piece; afterwards it can be looked at (`look`, `costs`)."""
        opened = self._opened(given, PAGE + ANSWER)
        row, reader = self._row(session, given, opened), Reader(opened)
        sample, pieces = reader.prompt(row), []
        session.last = Document(row, sample, opened)
        yield {"progress": "reading the pages"}
        if opened.settings.generation.beams > 1:
            (answer,) = reader.answers([sample], [0])
            pieces = [reader.decode([id]) for id in answer.ids]
            yield {"text": reader.decode(answer.ids)}
        else:
            for piece, answer in reader.stream(sample):  # noqa: B007, used below
                pieces.append(piece)
                yield {"text": piece}
            last = pieces.pop()  # what is left of a character, after the last token
            pieces[-1:] = [piece + last for piece in pieces[-1:]]
        ids = [*sample.ids, *answer.ids, *([opened.builder.special.eos] if answer.ended else [])]
        session.last = Document(row, replace(sample, ids=ids), opened, bool(answer.ids))
        cut = "" if answer.ended else "cut off here (--max-new-tokens, or the context is full)"
        yield {"tokens": pieces, "note": cut}

    def look(self, session: Session, given: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Where each token of the answer looked: the maps, by the heads that are asked for."""
        last = answered(session)
        seen = views(last.sample, last.opened.builder)
        yield {"progress": "looking where it looked"}
        weights = attention_weights(last.opened.model, last.sample, last.opened.builder)
        which = given.get("heads") or ("guided" if self.guided else "all")
        if which == "guided" and self.guided:
            weights = weights[-1, :HEADS].mean(0)
        elif which == "all":
            weights = weights.mean((0, 1))
        elif str(which).isdecimal() and 0 < int(which) <= len(weights):
            weights = weights[int(which) - 1].mean(0)
        else:
            raise UserError(f"heads: {which!r} is none of guided, all, or a layer's number")
        maps = over_views(weights, seen)  # of each view [A, rows, columns]
        yield {
            "views": [
                {"image": picture(view.image), "maps": values.round(4).tolist()}
                for view, values in zip(seen, maps)
            ]
        }

    @property
    def guided(self) -> bool:
        """Whether the first heads of the last layer were trained to attend to what is copied."""
        return self.opened.settings.model.model == TINY_READER

    def costs(self, session: Session, given: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The loss of the answer, and how much it rises with something else in the page's place."""
        last = answered(session)
        base = loss(last.opened, last.sample)
        yield {"cost": "this page", "loss": base, "rise": 0.0}
        for kind, name in COSTS.items():
            changed = instead(last, kind)
            if changed is not None and len(changed.ids) <= last.opened.builder.context:
                found = loss(last.opened, changed)
                yield {"cost": name, "loss": found, "rise": found - base}


def answered(session: Session) -> Document:
    if session.last is None or not session.last.answered:
        raise UserError("there is no answer yet: press Read first")
    return session.last


def instead(last: Document, kind: str) -> Sample | None:
    """The sample with something else in the page's place; None of an image, which has no text."""
    builder = last.opened.builder
    if kind != "tail":
        return ablate(last.sample, kind, last.row, None, builder)
    if last.row.text is None:
        return None
    text = encode(builder.tokenizer, last.row.text)
    return page_as(last.sample, kind, text, builder.special.image)


@torch.no_grad()
def loss(opened: OpenModel, sample: Sample) -> float:
    """Nats per token of the answer."""
    batch = collate([sample], opened.builder.special).to(opened.world.device)
    with opened.precision():
        total, count = opened.model.loss(batch)
    return float(total) / count


def picture(image: np.ndarray) -> str:
    """uint8 [C, H, W] as an address of its own."""
    return "data:image/png;base64," + base64.b64encode(png(image)).decode()


def marked(text: str, positions: np.ndarray) -> list[list]:
    """The text in pieces [piece, whether its characters are not drawn as they should be]."""
    bad, pieces = set(positions.tolist()), []
    for place, letter in enumerate(text[:20_000]):
        if pieces and pieces[-1][1] == (place in bad):
            pieces[-1][0] += letter
        else:
            pieces.append([letter, place in bad])
    return pieces
