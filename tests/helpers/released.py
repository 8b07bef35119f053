"""Random batches for transformers' released classes, and what those take of them."""

import torch
from small_model import SMALL

from deepsynth_min.model.batch import Batch, visual_tokens
from deepsynth_min.model.deepseek_ocr import DeepseekOCR

IMAGE = 4  # the id of a visual token


def batch_of(
    grids: list[list[tuple[int, int]]],
    answers: list[int],
    side: int = 128,
    tile: int = 64,
    newlines: bool = True,
) -> Batch:
    """A padded sample for each list of pages; a page is its grid of tiles, (1, 1) without any.

    side, tile: px; newlines: as in Batch. The vocabulary is that of the small models.
    """
    torch.manual_seed(1)
    flat = [grid for pages in grids for grid in pages]
    tiled = sum(w * h for w, h in flat if w * h > 1)
    visual = [
        sum(visual_tokens(side, side, grid, tile, newlines) for grid in pages) for pages in grids
    ]
    lengths = [1 + n + 4 + answer for n, answer in zip(visual, answers)]
    T = max(lengths)
    ids = torch.randint(5, SMALL.decoder.vocab_size, (len(grids), T))
    real, image = torch.zeros(2, len(grids), T, dtype=torch.bool)
    labels = torch.full((len(grids), T), -100)
    for b, (n, length) in enumerate(zip(visual, lengths)):
        real[b, :length] = True
        image[b, 1 : 1 + n] = True
        labels[b, 5 + n : length] = ids[b, 5 + n : length]
    pages = torch.randint(0, 256, (len(flat), 1, side, side), dtype=torch.uint8)
    tiles = torch.randint(0, 256, (tiled, 1, tile, tile), dtype=torch.uint8) if tiled else None
    owners = tuple(b for b, pages in enumerate(grids) for _ in pages)
    found = torch.tensor(flat) if tiled else None
    return Batch(ids, real, image, labels, pages, tiles, found, owners=owners, newlines=newlines)


def images_of(batch: Batch) -> dict:
    """Pages and tiles as the library takes them."""
    import peers  # needs transformers

    images = {"pixel_values": peers.normalised(batch.pages)}
    if batch.tiles is not None:
        grids = batch.grids.tolist()
        images["pixel_values_local"] = peers.normalised(batch.tiles)
        images["num_local_patches"] = [w * h if w * h > 1 else 0 for w, h in grids]
        if batch.newlines:  # else it does not matter how tiles lie
            images["patches_grid"] = grids
    return images


@torch.no_grad()
def logits_of(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """[tokens, V] of ours or of the library's class, without those of padding."""
    if isinstance(model, DeepseekOCR):
        return model(batch)[batch.attention_mask]
    text = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask.long()}
    return model(**text, **images_of(batch)).logits[batch.attention_mask]
