"""Row -> sample -> batch: pages drawn, tokens laid out, answers marked.

In: a row, a tokenizer, the mode and the page style. Out: a `Sample`; of several, a `Batch`.

The one idea: making a sample holds no state, so threads share one `SampleBuilder` without a lock.

A sequence is: BOS, image tokens, the tokens of "\\n<instruction>", the answer, EOS. Only the answer
and EOS are scored.
"""

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from ..errors import UserError
from ..model.batch import Batch, visual_tokens
from ..model.config import ModelConfig
from ..model.loss import IGNORE
from ..pages.font import FontChain
from ..pages.images import cut_tiles, grids, open_image, prepare
from ..pages.modes import MODES, TILE, page_side
from ..pages.renderer import PageStyle, render_pages
from ..settings import Settings
from .row import Row
from .tokenizer import SpecialIds, check_tokenizer, encode, special_ids


@dataclass(frozen=True)
class Sample:
    """One row, ready to be padded into a batch; lengths in tokens."""

    ids: list[int]  # the whole sequence
    prompt: int  # tokens before the answer
    visual: int  # visual tokens, at positions 1 .. visual
    pages: np.ndarray  # uint8 [n, C, side, side]
    tiles: list[np.ndarray]  # uint8 [w*h, C, 640, 640] for each page that has any
    grids: list[tuple[int, int]]
    missing: int  # characters drawn as a box, or without the shaping that their script needs


class SampleBuilder:
    """Turns rows into samples; holds no state that changes, so threads may share it."""

    def __init__(self, settings: Settings, config: ModelConfig, tokenizer: Any):
        self.side = page_side(settings.model.mode, config.page_size)
        self.gundam = settings.model.mode == "gundam"
        self.settings, self.tokenizer = settings, tokenizer
        self.context, self.trained_with = config.decoder.max_position_embeddings, config.text
        self.special = special_ids(tokenizer)
        check_tokenizer(tokenizer, config.decoder.vocab_size)
        # More pages than could ever be used are not drawn, but counted as an error.
        self.most_pages = self.context // visual_tokens(self.side, self.side)
        self.style = self._style(self.side, self.side)
        self.canvases = [  # gundam: one tile after the other until the text fits
            (grid, self._style(grid[0] * TILE, grid[1] * TILE))
            for grid in _page_shaped(settings.page.max_tiles)
        ]

    def _style(self, width: int, height: int) -> PageStyle:
        page, trained_with = self.settings.page, self.trained_with
        # What has the same name in both is passed on as it is.
        same = {f.name for f in fields(PageStyle)} & {f.name for f in fields(page)}
        values = {name: getattr(page, name) for name in same}
        # In gundam, letters are as large as on a page of the global view's size.
        values["font_size"] = page.font_size or trained_with.font_size or max(10, self.side // 64)
        values["line_height"] = page.line_height or trained_with.line_height or 1.25
        values["max_pages"] = page.max_pages or self.most_pages
        margins = (page.margin, trained_with.margin, self.side // 32)
        values["margin"] = next(margin for margin in margins if margin >= 0)
        try:
            style = PageStyle(width=width, height=height, fonts=page.font, **values)
            FontChain(style.sources(), style.font_size)  # a font that cannot be used is found now
        except (ValueError, OSError) as error:
            raise UserError(f"page settings: {error}") from None
        return style

    def _draw(self, text: str, where: str):
        """Text -> (pages [n, 1, side, side], tiles, grids, characters not drawn as they should)."""
        whole = grid = (1, 1)
        try:
            if not self.gundam:
                drawn = render_pages(text, self.style)
            else:
                for grid, style in [(whole, self.style), *self.canvases]:  # noqa: B007, used below
                    drawn = render_pages(text, replace(style, max_pages=1, overflow="truncate"))
                    if not drawn.truncated:
                        break
                else:
                    drawn = render_pages(text, style)  # several of the largest, within limits
        except ValueError as error:
            if self.settings.page.max_pages:
                raise UserError(f"{where}: {error}") from None
            raise UserError(
                f"{where}: the text needs more than {self.most_pages} pages, which alone "
                f"exceed the model's context of {self.context} tokens "
                "(--max-pages N --overflow truncate|shrink)"
            ) from None
        pages, missing = drawn.pages, len(drawn.missing) + len(drawn.unshaped)
        if grid == whole:
            return pages[:, None], [], [grid] * len(pages), missing
        tiles = [cut_tiles(page[None], grid) for page in pages]
        return shrink_into_square(pages, self.side), tiles, [grid] * len(pages), missing

    def _pages(self, row: Row):
        if row.text is not None:
            return self._draw(row.text, row.where)
        prepared = [
            prepare(
                open_image(path, row.where), self.side, self.gundam, self.settings.page.max_tiles
            )
            for path in row.images
        ]
        views = np.stack([view for view, _, _ in prepared])
        return views, [t for _, t, _ in prepared if t is not None], [g for _, _, g in prepared], 0

    def prompt(self, row: Row) -> Sample:
        """The sequence up to where the answer begins."""
        pages, tiles, grids_, missing = self._pages(row)
        visual = sum(visual_tokens(self.side, self.side, grid, TILE) for grid in grids_)
        instruction = row.instruction or self.settings.data.instruction
        # Instructions may use the model's own markers (<|grounding|>), but not an image token.
        asked = encode(self.tokenizer, "\n" + instruction, special=True)
        if self.special.image in asked:
            raise UserError(f"{row.where}: the instruction holds the image token itself")
        ids = [self.special.bos] + [self.special.image] * visual + asked
        return Sample(ids, len(ids), visual, pages, tiles, grids_, missing)

    def __call__(self, row: Row) -> Sample:
        """Row -> Sample. Raises UserError naming the row."""
        prompt = self.prompt(row)
        ids = [*prompt.ids, *encode(self.tokenizer, row.summary), self.special.eos]
        if len(ids) > self.context:
            raise UserError(
                f"{row.where}: {len(prompt.pages)} pages ({prompt.visual} visual tokens) and text "
                f"make {len(ids)} tokens; the model's context is {self.context} "
                "(--max-pages N --overflow truncate|shrink limits the pages)"
            )
        return replace(prompt, ids=ids)


def _page_shaped(most: int) -> list[tuple[int, int]]:
    """For 2 .. `most` tiles the grid nearest to a square: upright, no strip, and roomier than the
    global view, which a text is drawn on alone if it fits."""
    best = {}
    for w, h in grids(most):
        if w <= h <= 2 * w and w * h * TILE**2 > MODES["gundam"] ** 2:
            best[w * h] = min(best.get(w * h, (w, h)), (w, h), key=lambda grid: grid[1] / grid[0])
    return [best[tiles] for tiles in sorted(best)]


def shrink_into_square(canvases: np.ndarray, side: int) -> np.ndarray:
    """uint8 [n, H, W] -> [n, 1, side, side]: fitted, antialiased, padded with grey 127."""
    height, width = canvases.shape[1:]
    scale = side / max(height, width)
    size = (round(height * scale), round(width * scale))
    large = torch.from_numpy(canvases)[:, None].float()
    small = F.interpolate(large, size, mode="bicubic", antialias=True, align_corners=False)
    small = small.round().clamp(0, 255).to(torch.uint8)
    top, left = (side - size[0]) // 2, (side - size[1]) // 2
    square = torch.full((len(canvases), 1, side, side), 127, dtype=torch.uint8)
    square[:, :, top : top + size[0], left : left + size[1]] = small
    return square.numpy()


def collate(
    samples: list[Sample], special: SpecialIds, rows: tuple[int, ...] = (), pack: bool = False
) -> Batch:
    """Pads samples to the right, or packs them; pages stay in sample order.

    Answers are scored, prompts not.
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
        missing=sum(sample.missing for sample in samples),
        owners=tuple(b for b, sample in enumerate(samples) for _ in sample.pages),
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
