"""Which scripts of some texts cannot be drawn as they should, and the command that mends it.

In: texts and a `PageStyle`. Out: lines for people, one per script and fault, the most characters
first; none if all is well. The one idea: what a character needs does not depend on where it stands,
so only the different characters of the texts are looked at, and nothing is drawn; what is found is
what the renderer would report.
"""

import re
import unicodedata
from collections.abc import Iterable

from .._raster import FLAGS
from ..errors import number_of
from . import characters
from .fonts.font import nothing_to_kern
from .fonts.font_file import has_installed
from .glyphs import GlyphStore
from .style import PageStyle

_SHOWN = 8  # characters of a script in its line
_NOT_SCRIPTS = {
    "Cc": "control characters",
    "Cs": "halves of characters",
    "Co": "private use",
    "Cn": "unassigned",
}
_CJK = {"Han", "Hiragana", "Katakana", "Hangul", "Bopomofo", "full width", "CJK signs"}
_IN_SCRIPTS = set(  # that the extra [scripts] has fonts of
    "Arabic Armenian Bengali Devanagari Ethiopic Georgian Gujarati Gurmukhi Hebrew Kannada Khmer "
    "Lao Malayalam Myanmar Oriya Sinhala Tamil Telugu Thai".split()
)
_PICTOGRAPHS = ((0x1F300, 0x1F64F), (0x1F680, 0x1F6FF), (0x1F900, 0x1F9FF), (0x1FA70, 0x1FAFF))
# Where the name of a script ends in the name of a character.
_AFTER_SCRIPT = re.compile(
    r"[ -](LETTER|SYLLABLE|SYLLABICS|VOWEL|CONSONANT|CAPITAL|SMALL|SIGN|DIGIT|NUMBER|NUMERAL|MARK|"
    r"IDEOGRAPH|UNIFIED|COMPATIBILITY|HIEROGLYPH|RADICAL|JONGSEONG|CHOSEONG|JUNGSEONG|STROKE|"
    r"LIGATURE|SUBJOINED|TONE|ITERATION|PROLONGED|VOICED|BOLD|ITALIC|SCRIPT|FRAKTUR|DOUBLE)\b.*"
)


def script_of(char: str) -> str:
    """The script of a character by its Unicode name; of signs of no script, what they are.

    >>> script_of("ক"), script_of("本"), script_of("💡"), script_of("。")
    ('Bengali', 'Han', 'emoji', 'CJK signs')
    """
    category, name, point = unicodedata.category(char), unicodedata.name(char, ""), ord(char)
    if category in _NOT_SCRIPTS:
        return _NOT_SCRIPTS[category]
    first = name.partition(" ")[0].title()
    if first in _IN_SCRIPTS:  # its punctuation and signs too
        return first
    if first == "Fullwidth":
        return "full width"
    wide = characters.is_wide(point)
    if category[0] == "S":
        pictograph = any(low <= point <= high for low, high in _PICTOGRAPHS)
        if pictograph or first == "Regional" or wide and not 0x2E80 <= point < 0x1F000:
            return "emoji"
        return "CJK signs" if wide else "symbols"
    if category[0] not in "LMN":
        return "CJK signs" if wide else "punctuation and spaces"
    name = name.removeprefix("HALFWIDTH ")
    if category[0] == "M":
        name = name.split()[0]  # the vowel signs and marks of a script
    script = _AFTER_SCRIPT.sub("", name).split("-")[0].title()
    return "Han" if script == "Cjk" else script or "unnamed"


def shown_character(char: str) -> str:
    """The character itself, or its number if that would not be seen."""
    return char if char.isprintable() and not char.isspace() else f"U+{ord(char):04X}"


def mends_missing(script: str, style: PageStyle) -> str:
    """What gives characters of a script (script_of) a font, for people who use this style."""
    if script in ("control characters", "halves of characters", "unassigned"):
        return "take them out of the texts: no font has them"
    if script == "private use":
        return "--font FILE: the font that the text was made with"
    extra, part = "", script
    if script in _CJK:
        extra = part = "cjk"
    elif script == "emoji":
        extra = part = "emoji"
    elif script in _IN_SCRIPTS:
        extra = "scripts"
    if not extra:
        return "--font FILE, such as one of the Noto fonts"
    if not has_installed(part):
        return f"pip install 'deepsynth-min[{extra}]' or --font FILE"
    return "--font FILE" if style.extra_fonts else "--extra-fonts or --font FILE"


def mends_unshaped(style: PageStyle) -> str:
    """What makes a script be drawn with the shaping that it needs."""
    if style.shaping == "off":
        return "--shaping auto"
    if style.shaper():
        return "nothing: the libraries for shaping do not know them"
    return "pip install 'deepsynth-min[shaping]'"


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
        shown = " ".join(map(shown_character, chars[:_SHOWN]))
        shown += " ..." if len(chars) > _SHOWN else ""
        some = number_of(len(chars), "character")
        if fault == "missing":
            what, mend = "no font has", mends_missing(script, style)
        else:
            what, mend = "drawn without shaping", mends_unshaped(style)
        lines.append(f"{script}: {some} {what} ({shown}): {mend}")
    return lines


def kerning_complaint(style: PageStyle) -> str:
    """A line if --kerning is asked for and the first font has none; else an empty string."""
    source = style.sources()[0]
    if not style.kerning or not nothing_to_kern(source):
        return ""
    return f"--kerning: {source} has neither a kern table nor GPOS kerning; nothing is kerned"
