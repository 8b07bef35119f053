"""The tabs Pages and Read: a document's pages, its answer, where the answer looked.

In: a text or a file, and settings, as a browser gave them. Out: HTML with all texts escaped.

The one idea: nothing is computed here that a command does not compute: prompts, answers, ablations
and attention are those of runs/reader.py and evaluation/.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from html import escape
from pathlib import Path

import gradio as gr
import numpy as np

from ..data.inputs import open_inputs
from ..data.row import Row
from ..data.sample import Sample
from ..data.samples import SampleBuilder
from ..data.tokenizer import encode
from ..errors import UserError, number_of
from ..evaluation.ablations import ablate
from ..evaluation.attention_map import attention_weights, over_views, views
from ..model.shape.presets import TINY_READER
from ..options import change
from ..pages.png import in_html, png
from ..pages.renderer import undrawn
from ..pages.scripts import complaints
from ..reports.tables import table
from ..runs.open_model import OpenModel
from ..runs.reader import Reader
from ..settings import GenerationSettings, PageSettings
from ..tiny_reader.guide import HEADS
from .safety import fenced, sent, settings_of

PAGE = ("mode", *(f.name for f in fields(PageSettings)))
ANSWER = ("instruction", *(f.name for f in fields(GenerationSettings)))
MOST_TEXT, MOST_PAGES = 200_000, 24  # characters of a document; pages that are shown
COSTS = {"": "this page", "blank": "an empty page", "without": "no page"}
COSTS |= {"tail": "as many tokens of its text's end"}
BEFORE, NEXT = "◀ token before", "next token ▶"
ORANGE = np.array([255, 102, 0])[:, None, None]  # RGB of where a token looks


@dataclass
class Document:
    """What a session has read: the row, its sample with the answer, the answer's tokens as text;
    of each picture its HTML and, once asked for, each token's map [A, rows, columns]."""

    row: Row
    sample: Sample
    reader: Reader
    pieces: list[str]
    note: str
    images: list[str] = field(default_factory=list)
    maps: list[np.ndarray] = field(default_factory=list)


class Reading:
    """The model of the page, which all sessions share."""

    def __init__(self, opened: OpenModel, root: Path, words: list[str]):
        """words: how the command line names the model."""
        self.opened, self.root, self.words = opened, root, words
        # whether the first heads of the last layer were trained to attend to what is copied
        guided = opened.settings.model.model == TINY_READER
        guided = [("guided to copied words", "guided")] if guided else []
        layers = [(f"layer {i + 1}", str(i)) for i in range(len(opened.model.model.layers))]
        self.heads = [*guided, ("mean of all", "all"), *layers]

    def _document(
        self, given: dict[str, str], text: str | None, file: str | None
    ) -> tuple[Row, OpenModel, list[str]]:
        """The text, or what is first in the file; the model with the settings of the page; these as
        a command line. Raises UserError."""
        words, values = settings_of(self.root, given)
        settings = change(self.opened.settings, **{"beams": 1, **values})
        builder = SampleBuilder(settings, self.opened.model.config, self.opened.builder.tokenizer)
        if max(1, settings.page.max_pages) > builder.most_pages:
            most = f"{builder.context} tokens has place for {number_of(builder.most_pages, 'page')}"
            raise UserError(f"--mode, --max-pages: the model's context of {most} of this size")
        row = Row("the text", "", text or "")
        if file:
            name = sent(file)
            try:
                row = replace(open_inputs([file], settings)[0].row(), where=name)
            except UserError as error:
                raise UserError(str(error).replace(file, name)) from None
        if len(row.text or "") > MOST_TEXT:
            raise UserError(f"{len(row.text):,} characters: this page takes {MOST_TEXT:,}")
        if row.text is not None and not row.text.strip():
            raise UserError("there is no text yet")
        return row, replace(self.opened, settings=settings, builder=builder), words

    def pages(self, given: dict[str, str], text: str, file: str | None) -> tuple[str, str]:
        """The pages and what they cost, and the command that reads such a document."""
        if not file and not (text or "").strip():
            return "", ""
        row, opened, words = self._document(given, text, file)
        builder = opened.builder
        sample = builder.prompt(row)
        facts, notes = {"pages": f"{len(sample.pages)} of {builder.side} px"}, ""
        facts["visual tokens"] = f"{sample.visual:,}"
        if row.text is not None and sample.visual:
            tokens = len(encode(builder.tokenizer, row.text))
            facts["characters per token"] = f"{len(row.text) / sample.visual:.2f}"
            facts["compression"] = f"{tokens / sample.visual:.2f} ({tokens:,} text tokens)"
            if found := complaints([row.text], builder.style):
                bad = set(np.concatenate(undrawn(row.text, builder.style)).tolist())
                notes = "".join(f'<p class="note">{escape(line)}</p>' for line in found)
                notes += f'<p class="said">{marked(row.text[:20_000], bad)}</p>'
        told = "".join(f"<div><dt>{name}</dt><dd>{fact}</dd></div>" for name, fact in facts.items())
        shown = figures([in_html(png(page), "page") for page in sample.pages[:MOST_PAGES]])
        words = [*self.words, *words, Path(file).name if file else "paper.txt"]
        command = fenced(["python", "-m", "deepsynth_min.generate", *words])
        return f'<dl class="facts">{told}</dl>{notes}{shown}', command

    def read(self, given: dict[str, str], text: str, file: str | None) -> Iterator[tuple]:
        """The answer so far as HTML, and again; at last with what can be looked at."""
        yield "", None, "", ""
        row, opened, _ = self._document(given, text, file)
        reader, pieces = Reader(opened), []
        sample = reader.prompt(row)
        if opened.settings.generation.beams > 1:
            (answer,) = reader.answers([sample], [0])
            pieces = [reader.decode([id]) for id in answer.ids]
        else:
            for piece, answer in reader.stream(sample):  # noqa: B007, used below
                pieces.append(piece)
                yield said(pieces), None, "", ""
            rest = pieces.pop()  # what is left of a character, after the last token
            pieces[-1:] = [piece + rest for piece in pieces[-1:]]
        ids = [*sample.ids, *answer.ids, *([opened.builder.special.eos] if answer.ended else [])]
        cut = "" if answer.ended else "cut off here (--max-new-tokens, or the context is full)"
        last = Document(row, replace(sample, ids=ids), reader, pieces, cut)
        yield said(pieces, cut), last, "", ""

    def look(self, last: Document | None, which: str, number: int) -> tuple:
        """Where each token of the answer looked, by the heads that are asked for."""
        seen = views(answered(last).sample, last.reader.builder)
        weights = attention_weights(last.reader.model, last.sample, last.reader.builder)
        if which == "guided":
            weights = weights[-1:, :HEADS]
        elif which != "all":
            weights = weights[int(which)][None]
        last.images = [in_html(png(view.image), "page") for view in seen]
        last.maps = over_views(weights.mean((0, 1)), seen)
        most = len(last.pieces)
        slider = gr.Slider(maximum=max(2, most), value=min(number, most))
        return last, slider, *step(last, number)

    def costs(self, last: Document | None) -> Iterator[str]:
        """The loss of the answer, and how much it rises with something else in the page's place."""
        sample, reader, base, rows = answered(last).sample, last.reader, 0.0, []
        for kind, name in COSTS.items():
            changed = ablate(sample, kind, last.row, None, reader.builder) if kind else sample
            if changed is not None and len(changed.ids) <= reader.builder.context:
                found = reader.loss(changed)
                base = base if kind else found
                rows.append([name, f"{found:.3f}", f"{found - base:.3f}"])
                yield table(["in the page's place", "nats per token", "rise"], rows, number=True)


def step(last: Document | None, number: int) -> tuple:
    """The answer with one token marked; the pages with its attention, and a line about it."""
    if last is None or not last.maps:
        return gr.skip(), gr.skip()
    i, shown = min(max(number, 1), len(last.pieces)) - 1, []
    most = max(maps[i].max() for maps in last.maps) or 1
    for image, maps in zip(last.images, last.maps):
        white = 255 - 0.75 * maps[i] / most * (255 - ORANGE)  # [3, rows, columns]
        shown.append(image + in_html(png(white.round().astype(np.uint8)), "its attention", "map"))
    page = max(range(len(shown)), key=lambda n: last.maps[n][i].max())
    y, x = np.unravel_index(last.maps[page][i].argmax(), last.maps[page][i].shape)
    share = 100 * sum(maps[i].sum() for maps in last.maps)
    where = f"token {i + 1} of {len(last.pieces)}, “{escape(last.pieces[i])}”: {share:.0f} % of"
    where += f" its attention lies on pages; most: page {page + 1}, row {y + 1}, column {x + 1}"
    where = f'<p class="where" role="status">{where}</p>'
    return said(last.pieces, last.note, i), where + figures(shown)


def beside(last: Document | None, number: int, button: str) -> int:
    """The token after this one, or the one before it."""
    return min(max(1, number + (1 if button == NEXT else -1)), len(last.pieces) if last else 1)


def said(pieces: list[str], note: str = "", now: int = -1) -> str:
    each = (f"<b>{escape(p)}</b>" if i == now else escape(p) for i, p in enumerate(pieces))
    return f'<p class="said spoken">{"".join(each)}</p><p class="what">{note}</p>'


def answered(last: Document | None) -> Document:
    if last is None or not last.pieces:
        raise UserError("there is no answer yet: press Read first")
    return last


def figures(shown: list[str]) -> str:
    text = "<figure><div>{}</div><figcaption>page {}</figcaption></figure>"
    each = [text.format(one, n) for n, one in enumerate(shown, 1)]
    return f'<div class="thumbs">{"".join(each)}</div>'


def marked(text: str, bad: set[int]) -> str:
    """The text, with those of its characters marked that are not drawn as they should be."""
    pieces = (f"<mark>{escape(c)}</mark>" if i in bad else escape(c) for i, c in enumerate(text))
    return "".join(pieces).replace("</mark><mark>", "")
