"""How a page looks: every setting of the renderer, checked.

In: settings (a TOML table, command line flags, keyword arguments). Out: a frozen `PageStyle`, and
`fingerprint()`, which identifies the pages that a text gives under it.

The idea: a field says all there is to say about a setting (default, help, limits, choices); the
checks here and the options of `python -m deepsynth_min.render` are made from it.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, fields, replace
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

from ..options import choices_of, setting
from .fonts.font_file import EMBEDDED, font_digest, freetype_version, installed_fonts

LAYOUT_VERSION = 3  # raise it with any change that moves a pixel


@dataclass(frozen=True)
class PageStyle:
    """Sizes are pixels unless said otherwise. Raises ValueError naming the field and its value."""

    width: int = setting(1024, "of a page", 1, 16384)
    height: int = setting(1024, "of a page", 1, 16384)
    margin: int = setting(16, "paper left free at each edge", 0, 16384)
    margin_left: int = setting(-1, "instead of margin, if not negative", -1, 16384)
    margin_right: int = setting(-1, "instead of margin, if not negative", -1, 16384)
    margin_top: int = setting(-1, "instead of margin, if not negative", -1, 16384)
    margin_bottom: int = setting(-1, "instead of margin, if not negative", -1, 16384)
    font_size: int = setting(16, "height of the em", 1, 1024)
    line_height: float = setting(1.25, "distance of the baselines, in font sizes", 0.1, 20)
    main_font: str = setting("", "font file to use before the embedded default")
    fonts: tuple[str, ...] = setting(
        (), "font files for characters that those before lack: FILE, FILE@wght=700, FILE.ttc#2"
    )
    extra_fonts: bool = setting(True, "use the fonts of installed extras (scripts, emoji, cjk)")
    hinting: Literal["none", "normal", "light", "auto"] = setting(
        "none", "FreeType's fitting of glyphs to pixels; only none is the same in every version"
    )
    horizontal_scale: float = setting(1.0, "letters so many times as wide as they are", 0.1, 10)
    kerning: bool = setting(False, "use the fonts' kern tables, or else GPOS")
    letter_spacing: float = setting(0.0, "added between characters; may be negative", -1024, 1024)
    fractional: bool = setting(False, "advances in 1/64 pixel instead of whole pixels")
    align: Literal["left", "right", "center", "justify"] = setting(
        "left", "the side at which lines begin or end, the middle, or both sides"
    )
    first_indent: int = setting(0, "of the first line of each paragraph", 0, 16384)
    hanging_indent: int = setting(0, "of the other lines of each paragraph", 0, 16384)
    columns: int = setting(1, "of text on a page", 1, 64)
    column_gap: int = setting(24, "paper between columns", 0, 16384)
    tab: int = setting(8, "distance of the tab stops, in spaces", 1, 64)
    spaces: Literal["keep", "collapse"] = setting(
        "keep", "collapse: runs of spaces and tabs become one space, none at the start of a line"
    )
    newline_mark: str = setting("", "draw this for a line end and go on in the same line")
    ink: int = setting(0, "grey of the text, 0 black to 255 white", 0, 255)
    paper: int = setting(255, "grey of the page", 0, 255)
    invert: bool = setting(False, "every grey g becomes 255 - g: white text on black")
    crop_last: bool = setting(False, "cut the last page below its text (Pages.images())")
    max_pages: int = setting(0, "per text; 0: as many as it needs", 0, 1 << 40)
    overflow: Literal["error", "truncate", "shrink"] = setting(
        "error", "what to do when max_pages is too few"
    )
    min_font_size: int = setting(6, "how far shrink may go", 1, 1024)
    on_missing: Literal["box", "error"] = setting("box", "for characters that no font has")
    shaping: Literal["auto", "off", "require"] = setting(
        "auto", "of Arabic, Hebrew, Indic and other scripts (extra `shaping`)"
    )

    def __post_init__(self) -> None:
        for name, low, high in _LIMITS:
            if not low <= getattr(self, name) <= high:
                self._check(name, False, f"must be in {low}..{high}")
        for name, choices in _CHOICES:
            if getattr(self, name) not in choices:
                self._check(name, False, f"must be one of {', '.join(choices)}")
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
        inside = {"width": self.width - left - right, "height": self.height - top - bottom}
        for name, pixels in inside.items():
            if pixels < 1:
                raise ValueError(
                    f"margin: {self.margin} leaves no space on a page of {name} "
                    f"{getattr(self, name)}"
                )
        self._check("columns", self.column_width() >= 1, "leave no space for text")
        for name in ("first_indent", "hanging_indent"):
            fits = getattr(self, name) < self.column_width()
            self._check(name, fits, f"leaves no space in a column of {self.column_width()}")
        self._check("ink", self.ink != self.paper, "is the grey of the paper too")

    def _check(self, name: str, holds: bool, why: str) -> None:
        if not holds:
            raise ValueError(f"{name}: {getattr(self, name)!r} {why}")

    def margins(self) -> tuple[int, int, int, int]:
        """(left, top, right, bottom), px."""
        sides = self.margin_left, self.margin_top, self.margin_right, self.margin_bottom
        return tuple([self.margin if side < 0 else side for side in sides])

    def greys(self) -> tuple[int, int]:
        """(ink, paper) as the page shows them."""
        return (255 - self.ink, 255 - self.paper) if self.invert else (self.ink, self.paper)

    def column_width(self) -> int:
        """Px that a line of text may take."""
        left, _, right, _ = self.margins()
        gaps = self.column_gap * (self.columns - 1)
        return (self.width - left - right - gaps) // self.columns

    def sources(self) -> tuple[str, ...]:
        """The fallback chain: main font, embedded default, further files, installed extras."""
        first = (self.main_font,) if self.main_font else ()
        return first + EMBEDDED + self.fonts + (installed_fonts() if self.extra_fonts else ())

    def shaper(self) -> str:
        """Versions of the shaping libraries in use, empty without."""
        return "" if self.shaping == "off" else _shaper()

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

    def with_look(self, look: dict[str, object]) -> "PageStyle":
        """The same style with values that were checked before (vary.check): checking them again
        takes longer than drawing a line of text."""
        changed = object.__new__(PageStyle)
        changed.__dict__.update(self.__dict__ | look)
        return changed

    def at_size(self, font_size: int) -> "PageStyle":
        """The same style with another font size."""
        return replace(self, font_size=font_size)


# What each new style is checked by, looked up once.
_LIMITS = [(f.name, *f.metadata["limits"]) for f in fields(PageStyle) if f.type in (int, float)]
_CHOICES = [(f.name, choices_of(f.type)) for f in fields(PageStyle) if choices_of(f.type)]


@lru_cache(maxsize=1)
def _shaper() -> str:
    try:
        return f"uharfbuzz {version('uharfbuzz')} python-bidi {version('python-bidi')}"
    except PackageNotFoundError:
        return ""
