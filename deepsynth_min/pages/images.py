"""Images as pages: the official preprocessing of pictures that the user brings (extra `[images]`).

In: an image file, or the bytes of one, the mode, and the model's `PageFormat`; a file of several
pictures (TIFF, GIF, PDF) is as many pages. Out: the global view, uint8 [3, side, side], and in
gundam mode the tiles [w*h, 3, s, s] with their grid.

The one idea: do what the model's own training did. The image is turned as its EXIF data says, made
RGB, and shows white paper where it is transparent; small pages are stretched to the square, large
ones fitted into it and padded with grey (127); gundam adds tiles (of 640 px, DeepSeek-OCR-2: 768)
where the image is larger than one, on the grid whose shape is nearest to the image's, to which it
is stretched. `fit` asks for either kind of view at any size.
Sources: the official processors of DeepSeek-OCR and DeepSeek-OCR-2 (Wei et al. 2025, 2026).
"""

import io
import logging
import re
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from ..errors import UserError, find_file
from .modes import PageFormat

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

logging.getLogger("PIL").addHandler(logging.NullHandler())  # what it logs is in our errors
PADDING = (127, 127, 127)
FORMATS = ("PNG", "JPEG", "TIFF", "WEBP", "BMP", "GIF", "PPM", "JPEG2000", "AVIF", "HEIF")
MOST_PAGES = 1000  # of one file
PDF_DPI = 144  # as the official scripts draw a PDF
MAX_PIXELS = 178_956_970  # of one image: where Pillow, too, takes it for an attack


def grids(max_tiles: int) -> list[tuple[int, int]]:
    """All grids (w, h) of 2 to `max_tiles` tiles, fewest tiles first."""
    sides = range(1, max_tiles + 1)
    pairs = [(w, h) for w in sides for h in sides if 2 <= w * h <= max_tiles]
    return sorted(pairs, key=lambda grid: (grid[0] * grid[1], grid))


def choose_grid(width: int, height: int, max_tiles: int, tile: int) -> tuple[int, int]:
    """The grid of tiles of `tile` px whose aspect ratio is nearest to the image's; (1, 1) if the
    image fits one tile.

    Among equally near ones the larger is taken if the image has more than half of its pixels.
    """
    if width <= tile and height <= tile:
        return (1, 1)
    best, best_distance = (1, 1), float("inf")
    for w, h in grids(max_tiles):
        distance = abs(width / height - w / h)
        enough = width * height > 0.5 * tile * tile * w * h
        if distance < best_distance or (distance == best_distance and enough):
            best, best_distance = (w, h), distance
    return best


_HEADS = (
    *(b"%PDF-", b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"II*\0", b"MM\0*", b"\xff\x4f\xff\x51"),
    b"\0\0\0\x0cjP  ",
)


def is_image(data: bytes) -> bool:
    """Whether the beginning of a file is that of an image or a PDF, whatever its name is."""
    if data[:4] == b"RIFF":
        return data[8:12] == b"WEBP"
    if data[4:8] == b"ftyp":
        return data[8:12] in (b"avif", b"avis", b"heic", b"heix", b"mif1", b"msf1")
    if data[:2] == b"BM":  # a text may begin so; the header's reserved bytes are 0
        return data[6:10] == bytes(4)
    return data.startswith(_HEADS) or re.match(rb"P[1-6]\s+\d+\s+\d+\s", data[:32]) is not None


def open_images(source: Path | bytes, where: str) -> Iterator["PillowImage"]:
    """The pictures of a file one after another, turned upright, in RGB.

    Raises UserError naming `where` and the file.
    """
    try:
        from PIL import Image
    except ImportError:
        raise UserError(
            f"{where}: images need Pillow: pip install 'deepsynth-min[images]'"
        ) from None
    if isinstance(source, bytes):
        name, file = f"{where}: the image", io.BytesIO(source)
    else:
        place = "" if str(source) == where else f"{where}: "  # an image may be its own place
        name, file = f"{place}{source}", open(find_file(source, place, "no such image"), "rb")
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
    with file:
        try:
            head = file.read(16)
            file.seek(0)
            yield from _pdf_pages(file) if head.startswith(b"%PDF-") else _frames(file, head)
        except UserError as error:
            raise UserError(f"{name}: {error}") from None
        except damage as error:
            raise UserError(f"{name}: not a readable image ({error})") from None


def _frames(file: IO[bytes], head: bytes) -> Iterator["PillowImage"]:
    from PIL import Image, ImageOps

    if head[4:12] in (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftypmsf1"):
        try:
            from pillow_heif import register_heif_opener
        except ImportError:
            raise UserError("HEIC needs pillow-heif: pip install 'deepsynth-min[heic]'") from None
        register_heif_opener()
    formats = [name for name in FORMATS if name in Image.registered_extensions().values()]
    with Image.open(file, formats=formats) as image:
        # Of a phone's JPEG (MPO), the first picture is the photograph, others are made of it.
        count = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
        if count > MOST_PAGES:
            raise UserError(f"holds {count} pictures, more than {MOST_PAGES}")
        for number in range(count):
            if number:
                image.seek(number)
            if image.mode in ("I", "F"):
                raise UserError(f"pixels of 32 bits (mode {image.mode}) have no known white")
            if image.width * image.height > MAX_PIXELS:
                size = f"{image.width} x {image.height}"
                raise UserError(f"{size} pixels are more than {MAX_PIXELS}")
            yield _on_white_paper(ImageOps.exif_transpose(image))


_pdfium = threading.Lock()  # it may be used by one thread at a time


def _pdf_pages(file: IO[bytes]) -> Iterator["PillowImage"]:
    try:
        import pypdfium2
    except ImportError:
        raise UserError("PDF needs pypdfium2: pip install 'deepsynth-min[pdf]'") from None
    with _pdfium:
        document = pypdfium2.PdfDocument(file.read())
        count = len(document)
    try:
        if not 0 < count <= MOST_PAGES:
            raise UserError(f"holds {count} pages; 1 to {MOST_PAGES} are read")
        for number in range(count):
            with _pdfium:
                page = document[number]
                width, height = page.get_size()  # in points, 72 an inch
                scale = min(PDF_DPI / 72, (MAX_PIXELS / max(1.0, width * height)) ** 0.5)
                image = page.render(scale=scale).to_pil().convert("RGB")
                page.close()
            yield image
    finally:
        with _pdfium:
            document.close()


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
    image: "PillowImage", side: int, page_format: PageFormat, max_tiles: int, fit: str = "auto"
) -> tuple[np.ndarray, np.ndarray | None, tuple[int, int]]:
    """Image -> (global view [3, side, side], tiles [w*h, 3, s, s] or None, grid (w, h)); both
    uint8.

    max_tiles: 0 for no tiles. fit: how the image becomes the square view: stretch, pad, or auto: as
    the official code does.
    """
    from PIL import Image, ImageOps

    if fit == "stretch" or (fit == "auto" and side <= page_format.stretched_up_to):
        view = image.resize((side, side), Image.Resampling.BICUBIC)
    else:
        view = ImageOps.pad(image, (side, side), Image.Resampling.BICUBIC, color=PADDING)
    tile = page_format.tile
    w, h = choose_grid(*image.size, max_tiles, tile) if max_tiles else (1, 1)
    if w * h == 1:
        return _array(view), None, (1, 1)
    large = _array(image.resize((w * tile, h * tile), Image.Resampling.BICUBIC))
    return _array(view), cut_tiles(large, (w, h)), (w, h)


def squared(page: np.ndarray, side: int, page_format: PageFormat, fit: str) -> np.ndarray:
    """uint8 [h, side], h up to side -> [side, side], as `prepare` makes an image square."""
    free = side - len(page)
    if fit == "stretch" or (fit == "auto" and side <= page_format.stretched_up_to):
        tall = torch.from_numpy(page)[None, None].float()
        tall = F.interpolate(tall, (side, side), mode="bicubic", align_corners=False)
        return tall.round().clamp(0, 255).to(torch.uint8)[0, 0].numpy()
    above = ((free // 2, free - free // 2), (0, 0))
    return np.pad(page, above, constant_values=PADDING[0])


def cut_tiles(canvas: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """[C, h*s, w*s] -> [w*h, C, s, s], row by row."""
    w, h = grid
    channels, height, width = canvas.shape
    cells = canvas.reshape(channels, h, height // h, w, width // w)
    return np.ascontiguousarray(cells.transpose(1, 3, 0, 2, 4)).reshape(
        w * h, channels, height // h, width // w
    )


def page_shaped_grids(most: int, page_format: PageFormat) -> list[tuple[int, int]]:
    """For 2 .. `most` tiles the grid nearest to a square: upright, no strip, and roomier than the
    global view, which a text is drawn on alone if it fits."""
    best = {}
    for w, h in grids(most):
        if w <= h <= 2 * w and w * h * page_format.tile**2 > page_format.gundam**2:
            best[w * h] = min(best.get(w * h, (w, h)), (w, h), key=lambda grid: grid[1] / grid[0])
    return [best[tiles] for tiles in sorted(best)]


def shrink_into_square(canvases: np.ndarray, side: int) -> np.ndarray:
    """uint8 [n, H, W] -> [n, 1, side, side]: fitted, antialiased, padded as images are."""
    height, width = canvases.shape[1:]
    scale = side / max(height, width)
    size = (round(height * scale), round(width * scale))
    large = torch.from_numpy(canvases)[:, None].float()
    small = F.interpolate(large, size, mode="bicubic", antialias=True, align_corners=False)
    small = small.round().clamp(0, 255).to(torch.uint8)
    top, left = (side - size[0]) // 2, (side - size[1]) // 2
    square = torch.full((len(canvases), 1, side, side), PADDING[0], dtype=torch.uint8)
    square[:, :, top : top + size[0], left : left + size[1]] = small
    return square.numpy()
