"""Page sizes by name: `--mode` -> the side of a page in px.

In: a mode as the user wrote it. Out: px.
Source: Wei et al. 2025 (DeepSeek-OCR), its resolution modes; gundam is a global view and tiles.
"""

import re

from ..errors import UserError

MODES = {"tiny": 512, "small": 640, "base": 1024, "large": 1280, "gundam": 1024}
TILE = 640  # px, side of a gundam tile


def page_side(mode: str, native: int) -> int:
    """Side in px of a page (gundam: of the global view). Raises UserError for an unknown mode."""
    if mode == "auto":
        return native
    if mode in MODES:
        return MODES[mode]
    if re.fullmatch("[0-9]{1,4}", mode) and 0 < int(mode) <= 8192 and int(mode) % 64 == 0:
        return int(mode)
    raise UserError(
        f"--mode: {mode!r} is neither {', '.join(MODES)}, auto nor a multiple of 64 (up to 8192)"
    )
