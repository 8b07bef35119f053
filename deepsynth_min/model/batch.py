"""The batch: what data/ hands to the model, checked once, on the CPU, where it was made.

The one idea: everything that the model would have to read back from the GPU (how many visual tokens
a page gives, where they go, which positions are scored) is known here already, as index tensors, so
that a training step never waits for the device.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from .loss import IGNORE


def visual_tokens(
    height: int, width: int, grid: tuple[int, int] = (1, 1), tile: int = 640, newlines: bool = True
) -> int:
    """Visual tokens of one page: a token per 64 px and, if `newlines`, one per row; a separator.

    height, width: px of the global view; grid (w, h): tiles of the local view, none if (1, 1).
    >>> visual_tokens(1024, 1024), visual_tokens(1024, 1024, (2, 1))
    (273, 483)
    >>> visual_tokens(1024, 1024, newlines=False), visual_tokens(1024, 1024, (2, 1), 768, False)
    (257, 545)
    """
    rows, cols, q = height // 64, width // 64, tile // 64
    w, h = grid
    local = (q * h) * (q * w + newlines) if w * h > 1 else 0
    return local + rows * (cols + newlines) + 1


@dataclass(frozen=True)
class Batch:
    """B samples, padded to T tokens, with their N pages (and M tiles) in sample order.

    input_ids       [B, T] int64
    attention_mask  [B, T] bool, True where a real token stands (padding is to the right)
    image_mask      [B, T] bool, True where a visual token goes
    labels          [B, T] int64, the token itself where it is scored, else -100: position t holds
                    what is to be predicted from t-1 (unshifted)
    pages           [N, C, h, w] uint8, C = 1 or 3, h and w multiples of 64
    tiles           [M, C, s, s] uint8 or None, row by row, page after page
    grids           [N, 2] int64 or None, tiles per page as (w, h); (1, 1) means no tiles
    rows            numbers of the data rows, for messages
    places          where each sample stands in the micro-step, if some places hold none
    missing         characters of all pages that could not be drawn as they should
    truncated       samples of which something was left out to fit the context
    owners          the sample, 0 .. B-1, that each page belongs to
    lengths         empty, or the samples' lengths if they are packed: then the text tensors are
                    [1, T], the samples one after another in one row, and nothing is padding
    newlines        whether a token ends each row of a page, as PageFormat says of the model
    page_keys       empty, or the keys of pages and tiles in the feature cache
    features        [N, h, w, F] what the encoder makes of the pages, if cached (feature_cache.py)
    tile_features   [M, q, q, F] the same of the tiles
    averaged        [A] int64, tokens of all samples whose embeddings are averaged, in order
    averaged_sizes  [V] int64, how many of them in each average: these fill image_mask, and there
                    are no pages (--page-as mean)

    Raises ValueError if the visual tokens of all pages do not fill image_mask exactly.
    """

    input_ids: Tensor
    attention_mask: Tensor
    image_mask: Tensor
    labels: Tensor
    pages: Tensor
    tiles: Tensor | None = None
    grids: Tensor | None = None
    rows: tuple[int, ...] = ()
    places: tuple[int, ...] = ()
    missing: int = 0
    truncated: int = 0
    owners: tuple[int, ...] = ()
    lengths: tuple[int, ...] = ()
    newlines: bool = True
    page_keys: tuple[str, ...] = ()
    features: Tensor | None = None
    tile_features: Tensor | None = None
    averaged: Tensor | None = None
    averaged_sizes: Tensor | None = None
    image_index: Tensor | None = None  # flat positions in [B*T] of the visual tokens, in order
    score_index: Tensor | None = None  # flat positions in [B*T] that predict a scored token
    targets: Tensor | None = None  # [L] the scored tokens
    positions: Tensor | None = None  # [1, T] if packed: from 0 on in each sample
    prompts: tuple[int, ...] = ()  # tokens of each sample before the first that is scored
    tokens: int = 0  # real tokens, padding left out

    def __post_init__(self):
        if self.image_index is not None:
            return  # moved from another device: already checked
        assert self.input_ids.device.type == "cpu", "build batches on the CPU, then .to(device)"
        B, T = self.input_ids.shape
        for name in ("attention_mask", "image_mask", "labels"):
            if getattr(self, name).shape != (B, T):
                raise ValueError(f"{name} is {tuple(getattr(self, name).shape)}, not {(B, T)}")
        kinds = {"attention_mask": torch.bool, "image_mask": torch.bool, "pages": torch.uint8}
        for name, kind in (kinds | {"input_ids": torch.long, "labels": torch.long}).items():
            if getattr(self, name).dtype != kind:
                raise ValueError(f"{name} is of {getattr(self, name).dtype}, not {kind}")
        N, _, h, w = self.pages.shape
        if h % 64 or w % 64:
            raise ValueError(f"pages of {w} x {h} px: sides must be multiples of 64")
        grids = [(1, 1)] * N if self.grids is None else [tuple(g) for g in self.grids.tolist()]
        tile = 0 if self.tiles is None else self.tiles.shape[-1]
        expected = sum(visual_tokens(h, w, grid, tile, self.newlines) for grid in grids)
        expected += 0 if self.averaged_sizes is None else len(self.averaged_sizes)
        found = int(self.image_mask.sum())
        if expected != found or len(grids) != N:
            raise ValueError(f"{N} pages make {expected} visual tokens, image_mask holds {found}")
        tiles = sum(x * y for x, y in grids if x * y > 1)
        if tiles != (0 if self.tiles is None else len(self.tiles)):
            raise ValueError(f"grids ask for {tiles} tiles, {tile and len(self.tiles)} are given")
        scored = self.labels != IGNORE
        if self.lengths and (B, T) != (1, sum(self.lengths)):
            raise ValueError(f"samples of {self.lengths} tokens do not fill {B} x {T}")
        starts = [0, *itertools.accumulate(self.lengths)][: len(self.lengths) or 1]
        if scored[:, starts].any():
            raise ValueError("labels: position 0 has nothing to be predicted from")
        found_at = scored.flatten().nonzero()[:, 0]
        set_ = lambda name, value: object.__setattr__(self, name, value)  # noqa: E731 (frozen)
        set_("image_index", self.image_mask.flatten().nonzero()[:, 0])
        set_("score_index", found_at - 1)
        set_("targets", self.labels.flatten()[found_at])
        if self.lengths:
            positions = torch.cat([torch.arange(length) for length in self.lengths])
            set_("positions", positions[None])
        set_("tokens", int(self.attention_mask.sum()))
        samples = scored[0].split(self.lengths) if self.lengths else scored
        answers = [sample.nonzero()[:1, 0].tolist() for sample in samples]
        set_("prompts", tuple(a[0] if a else len(s) for a, s in zip(answers, samples)))

    @property
    def num_scored(self) -> int:
        """Scored tokens."""
        return len(self.targets)

    @property
    def token_mask(self) -> Tensor:
        """[B, T] bool, which tokens are which sample's; of a packed batch too, where B counts its
        samples and T runs over all of them."""
        if not self.lengths:
            return self.attention_mask
        samples = torch.arange(len(self.lengths), device=self.input_ids.device)[:, None]
        return (self.positions == 0).cumsum(1) - 1 == samples

    def packed(self) -> "Batch":
        """The same samples, one after another in a row [1, T] without padding."""
        if self.lengths:
            return self
        keep = self.attention_mask
        lengths = tuple(keep.sum(1).tolist())
        assert all(keep[b, :n].all() for b, n in enumerate(lengths)), "padding is to the right"
        names = ("input_ids", "attention_mask", "image_mask", "labels")
        text = {name: getattr(self, name)[keep][None] for name in names}
        return Batch(
            **text,
            pages=self.pages,
            tiles=self.tiles,
            grids=self.grids,
            rows=self.rows,
            places=self.places,
            missing=self.missing,
            truncated=self.truncated,
            owners=self.owners,
            lengths=lengths,
            newlines=self.newlines,
            averaged=self.averaged,
            averaged_sizes=self.averaged_sizes,
        )

    def mapped(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        """`change` done to every tensor but grids, which say how to cut and stay on the CPU."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "grids"}
        return replace(self, **{k: change(v) for k, v in tensors.items() if isinstance(v, Tensor)})

    def pinned(self) -> "Batch":
        """The same in memory from which a GPU can fetch by itself; `to` does not wait for it."""
        return self.mapped(Tensor.pin_memory)

    def to(self, device: torch.device) -> "Batch":
        return self.mapped(lambda tensor: tensor.to(device, non_blocking=True))
