"""How a page looks: every setting of the renderer, checked.

In: settings (a TOML table, command line flags, keyword arguments). Out: a frozen `PageStyle`, and
`fingerprint()`, which identifies the pages that a text gives under it.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version

from .font import EMBEDDED, HINTINGS, font_digest, freetype_version

LAYOUT_VERSION = 1  # raise it with any change that moves a pixel


@dataclass(frozen=True)
class PageStyle:
    """Sizes are pixels unless said otherwise. Raises ValueError naming the field and its value."""

    width: int = 1024  # of a page
    height: int = 1024  # of a page
    margin: int = 16  # paper left free at each edge
    margin_left: int = -1  # instead of margin, if not negative
    margin_right: int = -1  # instead of margin, if not negative
    margin_top: int = -1  # instead of margin, if not negative
    margin_bottom: int = -1  # instead of margin, if not negative
    font_size: int = 16  # height of the em
    line_height: float = 1.25  # distance of the baselines, in font sizes
    main_font: str = ""  # font file to use before the embedded default
    fonts: tuple[str, ...] = ()  # font files for characters that the embedded default lacks
    hinting: str = "none"  # none | normal | light | auto; only none is the same in every FreeType
    kerning: bool = False  # use the fonts' kern tables
    fractional: bool = False  # advances in 1/64 pixel instead of whole pixels
    align: str = "left"  # left | justify
    columns: int = 1  # of text on a page
    column_gap: int = 24  # paper between columns
    tab: int = 8  # distance of the tab stops, in spaces
    spaces: str = "keep"  # keep | collapse: runs of spaces, and indentation
    newline_mark: str = ""  # draw this for a line end and go on in the same line
    invert: bool = False  # white on black
    crop_last: bool = False  # Pages.images() cuts the last page below its text
    max_pages: int = 0  # per text; 0: as many as it needs
    overflow: str = "error"  # error | truncate | shrink: what to do when max_pages is too few
    min_font_size: int = 6  # how far shrink may go
    on_missing: str = "box"  # box | error: characters that no font has
    shaping: str = "auto"  # auto | off | require: Arabic, Hebrew, Indic ... (extra `shaping`)

    def __post_init__(self):
        for name, low, high in _RANGES:
            self._check(name, low <= getattr(self, name) <= high, f"must be in {low}..{high}")
        for name, choices in _CHOICES.items():
            self._check(
                name, getattr(self, name) in choices, f"must be one of {', '.join(choices)}"
            )
        self._check("fonts", not isinstance(self.fonts, str), "must be a list of files")
        object.__setattr__(self, "fonts", tuple(self.fonts))
        self._check("fonts", len(self.fonts) <= 64, "at most 64 files")
        self._check(
            "newline_mark",
            not set(self.newline_mark) & set("\r\n\t\f\v\x85\u2028\u2029"),
            "must not contain line ends or tabs",
        )
        self._check(
            "newline_mark",
            not any("\ud800" <= c <= "\udfff" for c in self.newline_mark),
            "holds half of a character",
        )
        left, top, right, bottom = self.margins()
        for name, room in (
            ("width", self.width - left - right),
            ("height", self.height - top - bottom),
        ):
            if room < 1:
                raise ValueError(
                    f"margin: {self.margin} leaves no room on a page of {name} "
                    f"{getattr(self, name)}"
                )
        self._check("columns", self.column_width() >= 1, "leave no room for text")

    def _check(self, name: str, holds: bool, why: str) -> None:
        if not holds:
            raise ValueError(f"{name}: {getattr(self, name)!r} {why}")

    def margins(self) -> tuple[int, int, int, int]:
        """(left, top, right, bottom)"""
        own = (self.margin_left, self.margin_top, self.margin_right, self.margin_bottom)
        return tuple(self.margin if side < 0 else side for side in own)

    def column_width(self) -> int:
        left, _, right, _ = self.margins()
        gaps = self.column_gap * (self.columns - 1)
        return (self.width - left - right - gaps) // self.columns

    def sources(self) -> tuple[str, ...]:
        """The fallback chain: main font, embedded default, further files."""
        return ((self.main_font,) if self.main_font else ()) + EMBEDDED + self.fonts

    def shaper(self) -> str:
        """Versions of the shaping libraries in use, empty without."""
        if self.shaping == "off":
            return ""
        try:
            return f"uharfbuzz {version('uharfbuzz')} python-bidi {version('python-bidi')}"
        except PackageNotFoundError:
            return ""

    def fingerprint(self) -> str:
        """Hex digest that identifies the pages: settings, font bytes, layout version, and the
        libraries that take part in the bytes. Font files count by content, not by name."""
        parts = asdict(self) | {"main_font": "", "fonts": ""}
        parts |= {
            "sources": [font_digest(source) for source in self.sources()],
            "layout": LAYOUT_VERSION,
            "shaper": self.shaper(),
            "freetype": freetype_version() if self.hinting != "none" else "",
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def at_size(self, font_size: int) -> "PageStyle":
        return replace(self, font_size=font_size)


_RANGES = (
    ("width", 1, 16384),
    ("height", 1, 16384),
    ("margin", 0, 16384),
    ("margin_left", -1, 16384),
    ("margin_right", -1, 16384),
    ("margin_top", -1, 16384),
    ("margin_bottom", -1, 16384),
    ("font_size", 1, 1024),
    ("line_height", 0.1, 20),
    ("columns", 1, 64),
    ("column_gap", 0, 16384),
    ("tab", 1, 64),
    ("max_pages", 0, 1 << 40),
    ("min_font_size", 1, 1024),
)
_CHOICES = {
    "hinting": HINTINGS,
    "align": ("left", "justify"),
    "spaces": ("keep", "collapse"),
    "overflow": ("error", "truncate", "shrink"),
    "on_missing": ("box", "error"),
    "shaping": ("auto", "off", "require"),
}
