"""Which scripts of some texts cannot be drawn as they should, and the command that mends it.

In: texts and a `PageStyle`. Out: lines for people, one per script and fault, the most characters
first; none if all is well. The one idea: what a character needs does not depend on where it stands,
so only the different characters of the texts are looked at, and nothing is drawn; what is found is
what the renderer would report.
"""

import unicodedata
from collections.abc import Iterable

from .._raster import FLAGS
from ..errors import number_of
from . import characters
from .font import nothing_to_kern
from .font_file import has_installed
from .glyphs import GlyphStore
from .style import PageStyle

_SHOWN = 8  # characters of a script in its line

# How the first words of a character's name say its script; what is not here is the first word.
_SCRIPT = {
    **dict.fromkeys(("CJK", "KANGXI", "IDEOGRAPHIC"), "Han"),
    **dict.fromkeys(("HIRAGANA", "KATAKANA", "HALFWIDTH", "FULLWIDTH"), "Kana and full width"),
}
_CJK = {"Han", "Kana and full width", "Hangul", "Bopomofo"}
_IN_SCRIPTS = {  # script -> the part of its font's name
    **{name: name for name in "Arabic Armenian Bengali Devanagari Ethiopic Georgian".split()},
    **{name: name for name in "Gujarati Gurmukhi Hebrew Kannada Khmer Lao Malayalam".split()},
    **{name: name for name in "Myanmar Oriya Sinhala Tamil Telugu Thai".split()},
}


def script_of(char: str) -> str:
    """Name of a character's script for people: Han, Hangul, Arabic, Emoji, Control, ..."""
    point, category = ord(char), unicodedata.category(char)
    if category in ("Cc", "Cs"):
        return "Control"
    if 0x1F000 <= point <= 0x1FAFF or 0x2600 <= point <= 0x27BF:
        return "Emoji"
    word = unicodedata.name(char, "UNKNOWN").split()[0].split("-")[0]
    return _SCRIPT.get(word, word.capitalize())


def complaints(texts: Iterable[str], style: PageStyle) -> list[str]:
    """A line for each script that no font has, or that is drawn without the shaping it needs.

    Raises ValueError for a font that cannot be used.
    """
    store = GlyphStore(style, ink=False)
    found: dict[tuple[str, str], list[str]] = {}
    for char in sorted(set().union(*map(set, texts))):
        flags = store.describe(ord(char))[1]
        if flags & FLAGS["missing"]:
            found.setdefault(("missing", script_of(char)), []).append(char)
        if flags & FLAGS["unshaped"] and not characters.is_invisible(ord(char)):
            found.setdefault(("unshaped", script_of(char)), []).append(char)
    lines = []
    for (fault, script), chars in sorted(found.items(), key=lambda item: -len(item[1])):
        shown = " ".join(chars[:_SHOWN]) if script != "Control" else ascii("".join(chars[:_SHOWN]))
        shown += " ..." if len(chars) > _SHOWN else ""
        some = number_of(len(chars), "character")
        if fault == "missing":
            lines.append(f"{script}: {some} no font has ({shown}): {_font_for(script, style)}")
        else:
            lines.append(f"{script}: {some} drawn without shaping ({shown}): {_shaping_for(style)}")
    return lines


def _font_for(script: str, style: PageStyle) -> str:
    """What gives a script its font."""
    if script == "Control":
        return "no font ever has; remove them from the text"
    extra, part = "", script
    if script in _CJK:
        extra = part = "cjk"
    elif script == "Emoji":
        extra = part = "emoji"
    elif script in _IN_SCRIPTS:
        extra, part = "scripts", _IN_SCRIPTS[script]
    if extra and not has_installed(part):
        return f"pip install 'deepsynth-min[{extra}]' or --font FILE"
    if extra and not style.extra_fonts:
        return "--extra-fonts or --font FILE"
    return "--font FILE"


def _shaping_for(style: PageStyle) -> str:
    if style.shaping == "off":
        return "--shaping auto"
    return "pip install 'deepsynth-min[shaping]'"


def kerning_complaint(style: PageStyle) -> str:
    """A line if --kerning is asked for and the first font has none; else an empty string."""
    source = style.sources()[0]
    if not style.kerning or not nothing_to_kern(source):
        return ""
    return f"--kerning: {source} has neither a kern table nor GPOS kerning; nothing is kerned"
