"""Page style as a distribution: a style for every sample, drawn from ranges and choices.

In: the words of --vary (`font_size=9:16,font=a.ttf|b.ttf,invert=0.1`), then a seed and the number
of a sample in the run. Out: its page settings, {name: value}, in place of those of the base style.

The one idea: a hash of (stream, seed, number) has eight bytes for each setting, so a style is a
pure function of where a sample stands: it is the same for any number of processes, after a resume,
and whatever else varies. Fractions lie on a grid of 0.01, which keeps the different letters few
enough to be drawn once. What can be drawn is checked before the run, at the ends of every range.
"""

import difflib
import hashlib
import math
import re
import struct
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields, replace

from ..errors import UserError
from ..options import choices_of
from .fonts.font import FontChain
from .fonts.font_file import font_digest
from .style import PageStyle

OTHER_NAMES = {"font": "main_font"}
LOOKS = (  # new ones at the end: what is drawn depends on the order
    *("font_size", "line_height", "margin", "margin_left", "margin_right", "margin_top"),
    *("margin_bottom", "main_font", "hinting", "horizontal_scale", "kerning", "letter_spacing"),
    *("align", "first_indent", "hanging_indent", "columns", "column_gap", "spaces"),
    *("newline_mark", "ink", "paper", "invert"),
)
Look = dict[str, object]  # {setting: value} in place of those of a style
BASE: Look = {}  # the style as it is
_PLACES = {name: place for place, name in enumerate(LOOKS)}
_FIELDS = {f.name: f for f in fields(PageStyle) if f.name in LOOKS}
_WIDTHS = ("margin", "indent", "columns", "column_gap")  # parts of names: together they fill a page
_WHOLE, _NUMBER = r"-?\d{1,9}", r"-?\d{1,9}(?:\.\d{1,9})?"


@dataclass(frozen=True)
class Varied:
    """A setting and its values, each as likely; with `share`, (False, True) and how often True."""

    name: str
    values: Sequence
    share: float | None = None

    @property
    def place(self) -> int:
        """Of its eight bytes in the hash."""
        return _PLACES[self.name]

    def at(self, u: float) -> object:
        """The value for a number from 0 to below 1."""
        return self.values[int(u * len(self.values)) if self.share is None else u < self.share]

    def ends(self) -> tuple:
        """Values that suffice to check all of them."""
        if isinstance(self.values, range):
            return self.values[0], self.values[-1]
        if isinstance(self.values[0], int | float):
            return min(self.values), max(self.values)
        return tuple(self.values)


def parse(words: Sequence[str], option: str) -> tuple[Varied, ...]:
    """What the words of an option mean. Raises UserError."""
    found: dict[str, Varied] = {}
    for word in filter(None, (w for words_ in words for w in _divided(words_))):
        given, equals, text = word.partition("=")
        name = OTHER_NAMES.get(given, given).replace("-", "_")
        if name not in _FIELDS or not equals:
            close = difflib.get_close_matches(name, [*LOOKS, *OTHER_NAMES], 1)
            hint = f"; did you mean {close[0]}=...?" if close and equals else ""
            raise UserError(
                f"{option} {word}: not SETTING=VALUES of a page{hint or '; settings: '}"
                + ("" if hint else ", ".join([*OTHER_NAMES, *LOOKS]))
            )
        if name in found:
            raise UserError(f"{option} {word}: {given} is given twice")
        found[name] = _varied(name, text, f"{option} {word}")
    return tuple(found.values())


def _divided(words: str) -> list[str]:
    """At commas that a setting follows: a file's name may hold others."""
    return re.split(r",(?=[a-z_-]+=)", words)


def _varied(name: str, text: str, where: str) -> Varied:
    annotation = _FIELDS[name].type
    if annotation is bool:
        if not re.fullmatch(_NUMBER, text) or not 0 <= float(text) <= 1:
            raise UserError(f"{where}: {text!r} is not a share of the samples, 0 to 1, as 0.1")
        return Varied(name, (False, True), float(text))
    if annotation not in (int, float):
        values = tuple(text.split("|"))
        if (allowed := choices_of(annotation)) and not set(values) <= set(allowed):
            raise UserError(f"{where}: {text!r} is not A|B|... of {', '.join(allowed)}")
        return Varied(name, values)
    number = _NUMBER if annotation is float else _WHOLE
    example = f"{name}=9:16 or {name}=9|12|16" if annotation is int else f"{name}=1.0:1.6"
    if bounds := re.fullmatch(f"({number}):({number})", text):
        low, high = map(annotation, bounds.groups())
        values = range(low, high + 1) if annotation is int else _grid(low, high)
        if not values:
            raise UserError(f"{where}: nothing lies from {low} to {high}; write LOW:HIGH")
        return Varied(name, values)
    if re.fullmatch(rf"{number}(\|{number})*", text):
        return Varied(name, tuple(map(annotation, text.split("|"))))
    kind = "whole numbers" if annotation is int else "numbers"
    raise UserError(f"{where}: {text!r} is not {kind} LOW:HIGH or A|B|..., as {example}")


def _grid(low: float, high: float) -> tuple[float, ...]:
    """The multiples of 0.01 from low to high."""
    ends = math.ceil(round(low * 100, 6)), math.floor(round(high * 100, 6))
    return tuple(n / 100 for n in range(ends[0], min(ends[1], ends[0] + 10**6) + 1))


def draw(varied: Sequence[Varied], seed: int, number: int, stream: str = "train") -> Look:
    """{setting: value} of sample `number`, the same whenever it is asked."""
    if not varied:
        return BASE
    digest = hashlib.shake_128(f"{stream} {seed} {number}".encode()).digest(8 * len(LOOKS))
    chances = struct.unpack(f">{len(LOOKS)}Q", digest)
    return {one.name: one.at((chances[one.place] >> 11) / 2**53) for one in varied}


def check(varied: Sequence[Varied], style: PageStyle, option: str) -> None:
    """Raises UserError unless every style that can be drawn over this one is a page's."""
    if not varied:
        return
    first = {one.name: one.values[0] for one in varied}
    widest = {
        one.name: max(one.ends()) for one in varied if any(part in one.name for part in _WIDTHS)
    }
    looks = [first | {one.name: value} for one in varied for value in one.ends()]
    for look in (*looks, first | widest):
        try:
            FontChain((drawn := replace(style, **look)).sources(), drawn.font_size)
        except (ValueError, OSError) as error:
            raise UserError(f"{option}: {error}") from None
    values = {name: {getattr(style, name)} for name in ("ink", "paper")}
    values |= {one.name: set(one.values) for one in varied if one.name in values}
    if both := values["ink"] & values["paper"]:
        raise UserError(f"{option}: ink and paper may both become {min(both)}; keep them apart")


def check_unseen(unseen: Sequence[Varied], varied: Sequence[Varied], style: PageStyle) -> None:
    """Raises UserError unless no style drawn from `unseen` is one that training draws: then some
    setting has no value in common."""
    trained = {one.name: one for one in varied}
    for one in unseen:
        known = trained[one.name].values if one.name in trained else (getattr(style, one.name),)
        if not set(map(_alike, one.values)) & set(map(_alike, known)):
            return
    if unseen:
        given = ", ".join(one.name for one in unseen)
        raise UserError(
            f"--unseen-style: of {given} none has only values that training never draws (--vary, "
            "else the page settings), so that some styles would be seen ones"
        )


def _alike(value: object) -> object:
    return round(value, 6) if isinstance(value, float) else value


def digest(varied: Sequence[Varied]) -> str | None:
    """Identifies the distribution: fonts by content, not by name; None without one. Raises
    ValueError for a font that cannot be read."""
    if not varied:
        return None
    parts = [
        (one.name, one.share, [f and font_digest(f) for f in one.values])
        if one.name == "main_font"
        else (one.name, one.share, _shown(one.values))
        for one in varied
    ]
    return hashlib.sha256(repr(sorted(parts, key=lambda part: part[0])).encode()).hexdigest()


def _shown(values: Collection) -> str:
    return repr(values if isinstance(values, range) else tuple(values))
