"""Page sizes by name, and how a model reads a page: `--mode` -> the side of a page in px.

In: a mode as the user wrote it, and the model's `PageFormat`, which follows from its configuration.
Out: px.
Sources: Wei et al. 2025 (DeepSeek-OCR), its resolution modes (gundam: a global view and tiles);
Wei et al. 2026 (DeepSeek-OCR-2), which reads pages of two sizes.
"""

import re
from dataclasses import dataclass

from ..errors import UserError

MODES = {"tiny": 512, "small": 640, "base": 1024, "large": 1280, "gundam": 1024}


@dataclass(frozen=True)
class PageFormat:
    """How a model reads a page; the defaults are DeepSeek-OCR's. Lengths in px."""

    native: int = 1024  # side of a page in --mode auto
    sides: tuple[int, ...] = ()  # sides that a page may have; empty: any multiple of 64
    tile: int = 640  # side of a gundam tile
    gundam: int = MODES["gundam"]  # side of the global view beside tiles
    served_tiles: int = 6  # of a page at most, as servers have it
    most_tiles: int = 9  # that a page may have
    newlines: bool = True  # a token ends each row, and tiles are read as one large grid
    stretched_up_to: int = 640  # images are stretched to a square as small, padded to a larger one


def page_side(mode: str, page_format: PageFormat) -> int:
    """Side in px of a page (gundam: of the global view). Raises UserError for an unknown mode, or
    one whose pages the model does not read."""
    if mode == "auto":
        return page_format.native
    if mode == "gundam":
        return page_format.gundam
    if mode in MODES:
        side = MODES[mode]
    elif re.fullmatch("[0-9]{1,4}", mode) and 0 < int(mode) <= 8192 and int(mode) % 64 == 0:
        side = int(mode)
    else:
        names = ", ".join(MODES)
        raise UserError(
            f"--mode: {mode!r} is neither {names}, auto nor a multiple of 64 (up to 8192)"
        )
    if page_format.sides and side not in page_format.sides:
        read = " and ".join(map(str, page_format.sides))
        raise UserError(
            f"--mode {mode}: pages of {side} px; this model reads pages of {read} px, and gundam "
            f"(a page of {page_format.gundam} px with tiles of {page_format.tile})"
        )
    return side
