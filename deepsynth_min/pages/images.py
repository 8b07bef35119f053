"""Images as pages: the official preprocessing of pictures that the user brings (extra `[images]`).

In: an image file, or the bytes of one, and the mode. Out: the global view, uint8 [3, side, side],
and in gundam mode the tiles [w*h, 3, 640, 640] with their grid.

The one idea: do what the model's own training did. The image is turned as its EXIF data says, made
RGB, and shows white paper where it is transparent; small pages are stretched to the square, large
ones fitted into it and padded with grey (127); gundam adds tiles of 640 px where the image is
larger than one, on the grid whose shape is nearest to the image's.
Source: the official processor of DeepSeek-OCR (Wei et al. 2025).
"""

import io
import logging
import struct
import warnings
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import UserError, find_file
from .modes import TILE

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

logging.getLogger("PIL").addHandler(logging.NullHandler())  # what it logs is in our errors
STRETCHED_UP_TO = 640  # px: modes tiny and small; larger pages are padded
PADDING = (127, 127, 127)
FORMATS = ("PNG", "JPEG", "TIFF", "WEBP", "BMP", "GIF", "PPM")
MAX_PIXELS = 178_956_970  # of one image: where Pillow, too, takes it for an attack


def grids(max_tiles: int) -> list[tuple[int, int]]:
    """All grids (w, h) of 2 to `max_tiles` tiles, fewest tiles first."""
    sides = range(1, max_tiles + 1)
    pairs = [(w, h) for w in sides for h in sides if 2 <= w * h <= max_tiles]
    return sorted(pairs, key=lambda grid: (grid[0] * grid[1], grid))


def choose_grid(width: int, height: int, max_tiles: int) -> tuple[int, int]:
    """The grid whose aspect ratio is nearest to the image's; (1, 1) if the image fits one tile.

    Among equally near ones the larger is taken if the image has more than half of its pixels.
    """
    if width <= TILE and height <= TILE:
        return (1, 1)
    best, best_distance = (1, 1), float("inf")
    for w, h in grids(max_tiles):
        distance = abs(width / height - w / h)
        enough = width * height > 0.5 * TILE * TILE * w * h
        if distance < best_distance or (distance == best_distance and enough):
            best, best_distance = (w, h), distance
    return best


def open_image(source: Path | bytes, where: str) -> "PillowImage":
    """A Pillow image, turned upright, in RGB. Raises UserError naming `where` and the file."""
    try:
        from PIL import Image, ImageOps
    except ImportError:
        raise UserError(
            f"{where}: images need Pillow: pip install 'deepsynth-min[images]'"
        ) from None
    name, file = "the image", None
    if isinstance(source, bytes):
        file = io.BytesIO(source)
    else:
        name = file = find_file(source, f"{where}: ", "no such image")
    # Pillow's plugins raise what they like for a damaged file.
    damage = (
        OSError,
        ValueError,
        SyntaxError,
        NotImplementedError,
        RuntimeError,
        EOFError,
        ArithmeticError,
        LookupError,
        AttributeError,
        TypeError,
        MemoryError,
        struct.error,
        zlib.error,
        Image.DecompressionBombError,
    )
    warnings.filterwarnings("ignore", module=r"PIL\.")  # metadata is no matter
    try:
        with Image.open(file, formats=FORMATS) as image:
            # Of a phone's JPEG (MPO), the first picture is the photograph, others are made of it.
            if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":
                problem = f"holds {image.n_frames} pictures; give each a file of its own"
            elif image.mode in ("I", "F"):
                problem = f"pixels of 32 bits (mode {image.mode}) have no known white"
            elif image.width * image.height > MAX_PIXELS:
                problem = f"{image.width} x {image.height} pixels are more than {MAX_PIXELS}"
            else:
                return _on_white_paper(ImageOps.exif_transpose(image))
    except damage as error:
        problem = f"not a readable image ({error})"
    raise UserError(f"{where}: {name}: {problem}")


def _on_white_paper(image: "PillowImage") -> "PillowImage":
    """RGB of an 8- or 16-bit image in any mode; transparency shows white."""
    from PIL import Image

    if image.mode.startswith("I;16"):  # 16 bits of grey, which Pillow would clip to 8
        grey = (np.asarray(image).astype(np.uint32) + 128) // 257
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if "A" in image.getbands() or "transparency" in image.info:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image.convert("RGB")


def _array(image: "PillowImage") -> np.ndarray:
    return np.ascontiguousarray(np.asarray(image, dtype=np.uint8).transpose(2, 0, 1))  # [3, h, w]


def prepare(
    image: "PillowImage", side: int, gundam: bool, max_tiles: int
) -> tuple[np.ndarray, np.ndarray | None, tuple[int, int]]:
    """Image -> (global view [3, side, side], tiles [w*h, 3, 640, 640] or None, grid (w, h)); both
    uint8."""
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
