"""Pages that the user brings: the official preprocessing of foreign images (extra `[images]`).

In: an image file, the mode. Out: the global view, uint8 [3, side, side], and in gundam mode the
tiles [w*h, 3, 640, 640] with their grid.

The one idea: do what the model's own training did. Orientation from EXIF, RGB; small pages are
stretched to the square, large ones fitted into it and padded with grey (127); gundam adds tiles of
640 px where the image is larger than one, on the grid whose shape is nearest to the image's.
Source: the official processor of DeepSeek-OCR (Wei et al. 2025).
"""

from pathlib import Path

import numpy as np

from .config import UserError
from .settings import TILE

STRETCHED_UP_TO = 640  # px: modes tiny and small; larger pages are padded
PADDING = (127, 127, 127)


def grids(most: int) -> list[tuple[int, int]]:
    """All grids (w, h) of 2 to `most` tiles, fewest tiles first."""
    pairs = [(w, h) for w in range(1, most + 1) for h in range(1, most + 1) if 2 <= w * h <= most]
    return sorted(pairs, key=lambda grid: (grid[0] * grid[1], grid))


def choose_grid(width: int, height: int, most: int) -> tuple[int, int]:
    """The grid whose aspect ratio is nearest to the image's; (1, 1) if the image fits one tile.

    Among equally near ones the larger is taken if the image has more than half of its pixels.
    """
    if width <= TILE and height <= TILE:
        return (1, 1)
    best, best_distance = (1, 1), float("inf")
    for w, h in grids(most):
        distance = abs(width / height - w / h)
        enough = width * height > 0.5 * TILE * TILE * w * h
        if distance < best_distance or (distance == best_distance and enough):
            best, best_distance = (w, h), distance
    return best


def open_image(path: Path, where: str):
    """A Pillow image, turned upright, in RGB. Raises UserError naming `where` and the file."""
    try:
        from PIL import Image, ImageOps
    except ImportError:
        raise UserError(f"{where}: images need Pillow: pip install 'deepsynth-min[images]'") from None
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except FileNotFoundError:
        raise UserError(f"{where}: {path}: no such image") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{where}: {path}: not a readable image ({error})") from None


def _array(image) -> np.ndarray:
    return np.ascontiguousarray(np.asarray(image, dtype=np.uint8).transpose(2, 0, 1))  # [3, h, w]


def prepare(image, side: int, gundam: bool, max_tiles: int):
    """Image -> (global view [3, side, side], tiles [w*h, 3, 640, 640] or None, grid (w, h))."""
    from PIL import Image, ImageOps

    if side <= STRETCHED_UP_TO:
        view = image.resize((side, side), Image.Resampling.BICUBIC)
    else:
        view = ImageOps.pad(image, (side, side), Image.Resampling.BICUBIC, color=PADDING)
    w, h = choose_grid(*image.size, max_tiles) if gundam else (1, 1)
    if w * h == 1:
        return _array(view), None, (1, 1)
    large = _array(image.resize((w * TILE, h * TILE), Image.Resampling.BICUBIC))
    return _array(view), cut_tiles(large, (w, h)), (w, h)


def cut_tiles(canvas: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """[C, h*s, w*s] -> [w*h, C, s, s], row by row."""
    w, h = grid
    channels, height, width = canvas.shape
    cells = canvas.reshape(channels, h, height // h, w, width // w)
    return np.ascontiguousarray(cells.transpose(1, 3, 0, 2, 4)).reshape(
        w * h, channels, height // h, width // w
    )
