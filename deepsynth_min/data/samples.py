"""Row -> sample -> batch: pages drawn, tokens laid out, answers marked.

In: a row, a tokenizer, the mode and the page style. Out: a `Sample`; of several, a `Batch`.

The one idea: making a sample holds no state, so threads share one `SampleBuilder` without a lock.

A sequence is: BOS, image tokens, the tokens of "\\n<instruction>", the answer, EOS. Only the answer
and EOS are scored. A row without a page has its instruction alone, with no line break before it.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from ..errors import UserError, number_of
from ..model.batch import Batch, visual_tokens
from ..model.loss import IGNORE
from ..model.shape.config import ModelConfig
from ..pages import vary
from ..pages.images import (
    cut_tiles,
    open_images,
    page_shaped_grids,
    prepare,
    shrink_into_square,
    squared,
)
from ..pages.modes import page_side
from ..pages.renderer import Pages, PageStyle, TooManyPages, render_pages
from ..settings import Settings
from .page_style import page_style
from .row import Row, RowError, TooLong, prompt_after_pages
from .rows import is_skipped
from .sample import Sample, averaged_tokens, page_as
from .tokenizer import SpecialIds, check_tokenizer, encode, special_ids


def draw(text: str, style: PageStyle, where: str) -> tuple[Pages, int]:
    """(pages of a text, characters drawn as a box or without the shaping that they need).

    Raises TooLong for more pages than the style allows, RowError for what cannot be drawn.
    """
    try:
        drawn = render_pages(text, style)
    except TooManyPages as error:
        raise TooLong(where, str(error)) from None
    except ValueError as error:
        raise RowError(where, str(error), "cannot be drawn") from None
    return drawn, len(drawn.missing) + len(drawn.unshaped)


class SampleBuilder:
    """Turns rows into samples; holds no state that changes, so threads may share it."""

    def __init__(self, settings: Settings, config: ModelConfig, tokenizer: Any):
        self.config, self.format = config, config.page_format
        self.side = page_side(settings.model.mode, self.format)
        self.gundam = settings.model.mode == "gundam"
        self.draws = settings.page.page_as == "rendered"
        self.settings, self.tokenizer = settings, tokenizer
        self.context, self.trained_with = config.decoder.max_position_embeddings, config.text
        self.special = special_ids(tokenizer)
        check_tokenizer(tokenizer, config.decoder.vocab_size)
        # More pages than could ever be used are not drawn, but counted as an error.
        self.most_pages = self.context // self.visual_tokens()
        self.style = page_style(settings.page, config.text, self.side, self.most_pages)
        self.varied = vary.parse(settings.augment.vary, "--vary")
        tile, most = self.format.tile, settings.page.max_tiles or self.format.served_tiles
        if self.gundam and most > self.format.most_tiles:
            raise UserError(f"--max-tiles {most}: this model reads up to {self.format.most_tiles}")
        if self.gundam and settings.page.crop_last:
            raise UserError("--crop-last: not with --mode gundam, whose tiles are of whole pages")
        self.most_tiles = most if self.gundam else 0
        grids_ = page_shaped_grids(self.most_tiles, self.format)
        self.canvases = [  # gundam: one tile after the other until the text fits
            (grid, replace(self.style, width=grid[0] * tile, height=grid[1] * tile))
            for grid in grids_
        ]

    def visual_tokens(self, grid: tuple[int, int] = (1, 1)) -> int:
        """Of one page, with tiles in this grid (w, h)."""
        given = self.format
        return visual_tokens(self.side, self.side, grid, given.tile, given.newlines)

    def look(self, number: int) -> vary.Look:
        """The page settings of the training sample that stands at this place of the run."""
        return vary.draw(self.varied, self.settings.optim.seed, number)

    def check_looks(self) -> None:
        """Raises UserError for styles that could be drawn and are no pages'."""
        vary.check(self.varied, self.style, "--vary")

    def paper(self, look: vary.Look) -> int:
        """The grey of an empty page."""
        return self.style.with_look(look).greys()[1]

    def _draw(self, text: str, where: str, max_pages: int, look: vary.Look):
        """Text -> (pages [n, 1, side, side], tiles, grids, characters not drawn as they should).

        max_pages: draw no more than that, and leave the rest of the text out; 0: as the page
        settings say. Raises TooLong, or RowError for characters that no font has.
        """
        whole = grid = (1, 1)
        canvases = [(whole, self.style), *self.canvases]
        canvases = [(grid, style.with_look(look)) for grid, style in canvases]
        try:
            for grid, style in canvases[:-1]:  # noqa: B007, used below
                one = replace(style, max_pages=1, overflow="truncate")
                drawn, missing = draw(text, one, where)
                if not drawn.truncated:
                    break
            else:  # several of the largest, within limits
                grid, style = canvases[-1]
                if max_pages:
                    style = replace(style, max_pages=max_pages, overflow="truncate")
                drawn, missing = draw(text, style, where)
        except TooLong:
            if self.settings.page.max_pages:
                raise
            raise TooLong(
                where,
                f"the text needs more than {number_of(self.most_pages, 'page')}, which alone "
                f"exceed the model's context of {self.context} tokens "
                "(--max-pages N --overflow truncate|shrink)",
            ) from None
        pages = drawn.pages
        if style.crop_last:
            cropped, fit = drawn.images()[-1], self.settings.page.fit
            pages[-1] = squared(cropped, self.side, self.format, fit)
        if grid == whole:
            return pages[:, None], [], [grid] * len(pages), missing
        tiles = [cut_tiles(page[None], grid) for page in pages]
        return shrink_into_square(pages, self.side), tiles, [grid] * len(pages), missing

    def _pages(self, row: Row, max_pages: int, look: vary.Look):
        """As _draw gives them, of whatever the row's page is made of."""
        if row.text is not None:
            return self._draw(row.text, row.where, max_pages, look)
        prepared, most = [], max_pages or self.most_pages
        for image in self._images(row):
            if len(prepared) == most:
                if max_pages:
                    break
                reason = (
                    f"more than {number_of(most, 'page')}, which alone exceed the model's context"
                )
                raise TooLong(row.where, f"{reason} of {self.context} tokens")
            page = self.settings.page
            prepared.append(prepare(image, self.side, self.format, self.most_tiles, page.fit))
        if not prepared:
            return np.empty((0, 1, self.side, self.side), np.uint8), [], [], 0
        views = np.stack([view for view, _, _ in prepared])
        return views, [t for _, t, _ in prepared if t is not None], [g for _, _, g in prepared], 0

    def _images(self, row: Row) -> Iterator[Any]:
        """The pictures of all image files of a row. Raises RowError."""
        for source in row.images:
            try:
                yield from open_images(source, row.where)
            except UserError as error:
                reason = str(error).removeprefix(f"{row.where}: ")
                raise RowError(row.where, reason, "an image that cannot be read") from None

    def _asked(self, row: Row) -> list[int]:
        """The ids of what follows the pages."""
        instruction = row.instruction or self.settings.data.instruction
        asked = prompt_after_pages(instruction, len(row.images), row.where)
        if row.text is None and not row.images:
            asked = asked.lstrip("\n")
        # Instructions may use the model's own markers (<|grounding|>).
        return encode(self.tokenizer, asked + self.trained_with.prompt_end, "all")

    def skips(self, error: RowError) -> bool:
        """Whether a row that raised this is left out (--on-bad-row, --on-too-long)."""
        return is_skipped(self.settings.data, isinstance(error, TooLong))

    def check_answer(self, row: Row) -> None:
        """Raises TooLong for an answer that cannot fit whatever is drawn; draws nothing."""
        if len(row.summary.encode()) + 2 <= self.context:  # a token is a byte at least
            return
        answer, asked = len(encode(self.tokenizer, row.summary, "own")) + 1, len(self._asked(row))
        if 1 + asked + answer > self.context:
            raise TooLong(
                row.where,
                f"an instruction of {number_of(asked, 'token')} and an answer of {answer} make "
                f"more than the model's context of {self.context}, without any page",
            )

    def placeholder(self) -> Sample:
        """Two tokens of which none is scored: a micro-batch whose rows are all left out."""
        none = np.empty((0, 1, self.side, self.side), np.uint8)
        return self._sample([self.special.bos, self.special.eos], 2, 0, none, [], [], 0)

    def prompt(self, row: Row, max_pages: int = 0, look: vary.Look = vary.BASE) -> Sample:
        """The sequence up to where the answer begins; max_pages: of more, the first. Raises
        RowError."""
        pages, tiles, grids_, missing = self._pages(row, max_pages, look)
        visual = sum(map(self.visual_tokens, grids_))
        ids = [self.special.bos] + [self.special.image] * visual + self._asked(row)
        sample = self._sample(ids, len(ids), visual, pages, tiles, grids_, missing)
        if self.draws or row.text is None and not row.images:
            return sample
        kind = self.settings.page.page_as
        if row.text is None:
            raise RowError(row.where, f"an image, which --page-as {kind} cannot stand for")
        document = encode(self.tokenizer, row.text)
        document = document[:visual] if max_pages else document  # as much as its pages would take
        return page_as(sample, kind, document, self.special.image)

    def _sample(self, *parts: Any) -> Sample:
        return Sample(*parts, newlines=self.format.newlines)

    def __call__(self, row: Row, look: vary.Look = vary.BASE) -> Sample:
        """Row -> Sample, its pages in the base style or with other settings. Raises RowError,
        TooLong if it does not fit into the context, unless --on-too-long says that it is to be
        cut."""
        answer = [*encode(self.tokenizer, row.summary, "own"), self.special.eos]
        try:
            sample = self.prompt(row, look=look)
            self._check_length(row, sample, answer)
        except TooLong:
            if self.settings.data.on_too_long != "truncate":
                raise
            return self._cut(row, answer, look)
        return replace(sample, ids=[*sample.ids, *answer])

    def _check_length(self, row: Row, sample: Sample, answer: list[int]) -> None:
        length = len(sample.ids) + len(answer)
        if length <= self.context:
            return
        asked, hint = len(self._asked(row)), ""
        before = len(sample.ids) - asked - 1
        pages = f"{number_of(len(sample.pages), 'page')} ({before} visual tokens)"
        if not self.draws:
            kind = self.settings.page.page_as
            pages = f"{number_of(before, 'token')} in place of pages (--page-as {kind})"
        elif before > len(answer):
            hint = " (--max-pages N --overflow truncate|shrink limits the pages)"
        raise TooLong(
            row.where,
            f"{pages}, an instruction of {number_of(asked, 'token')} and an answer of "
            f"{len(answer)} make {length}; the model's context is {self.context}{hint}",
        )

    def _cut(self, row: Row, answer: list[int], look: vary.Look) -> Sample:
        """The first pages that fit beside the answer, at least one; then as much of the answer as
        fits, without EOS if that is not all: where it was cut is no end."""
        grid = self.canvases[-1][0] if self.canvases else (1, 1)
        fixed = 1 + len(self._asked(row))
        left = (self.context - fixed - len(answer)) // self.visual_tokens(grid)
        sample = self.prompt(row, max(1, left), look)
        if len(sample.ids) >= self.context:
            raise TooLong(row.where, "a page and the instruction alone fill the model's context")
        ids = [*sample.ids, *answer][: self.context]
        return replace(sample, ids=ids, truncated=True)


def collate(
    samples: list[Sample],
    special: SpecialIds,
    rows: tuple[int, ...] = (),
    pack: bool = False,
    places: tuple[int, ...] = (),
) -> Batch:
    """Pads samples to the right, or packs them; pages stay in sample order.

    Answers are scored, prompts not. rows, places: of the samples, as in Batch.
    """
    B, T = len(samples), max(len(sample.ids) for sample in samples)
    ids = torch.full((B, T), special.pad)
    labels = torch.full((B, T), IGNORE)
    image_mask = torch.zeros(B, T, dtype=torch.bool)
    attention_mask = torch.zeros(B, T, dtype=torch.bool)
    for b, sample in enumerate(samples):
        row = torch.tensor(sample.ids)
        ids[b, : len(row)] = row
        attention_mask[b, : len(row)] = True
        image_mask[b, 1 : 1 + sample.visual] = True
        labels[b, sample.prompt : len(row)] = row[sample.prompt :]
    pages = _stack([sample.pages for sample in samples])
    tiles = [tile for sample in samples for tile in sample.tiles]
    grids_ = [grid for sample in samples for grid in sample.grids]
    batch = Batch(
        ids,
        attention_mask,
        image_mask,
        labels,
        pages,
        _stack(tiles) if tiles else None,
        torch.tensor(grids_) if tiles else None,
        rows,
        places=places,
        missing=sum(sample.missing for sample in samples),
        truncated=sum(sample.truncated for sample in samples),
        owners=tuple(b for b, sample in enumerate(samples) for _ in sample.pages),
        newlines=all(sample.newlines for sample in samples),
        **averaged_tokens(samples),
    )
    return batch.packed() if pack else batch


def _stack(pieces: list[np.ndarray]) -> torch.Tensor:
    """[n, C, h, w] arrays one after another; grey ones become colour where any has colour.

    By numpy: torch would start a team of threads for it, which the training step needs.
    """
    channels = max(piece.shape[1] for piece in pieces)
    shapes = [(len(piece), channels, *piece.shape[2:]) for piece in pieces]
    return torch.from_numpy(
        np.concatenate([np.broadcast_to(piece, shape) for piece, shape in zip(pieces, shapes)])
    )
