"""What a character is to the layout: a kind and flags, from its Unicode properties.

In: one code point. Out: `(kind, flags)`, numbers that csrc/atlas.h declares and `_raster` exports.
The one idea: layout needs no Unicode tables; a character's kind and flags are stored with its glyph
when that is added.
"""

import unicodedata

from .._raster import FLAGS, KINDS

_LINE_ENDS = {
    0x0A: "newline",
    0x0B: "newline",
    0x85: "newline",
    0x2028: "newline",
    0x2029: "newline",
    0x0D: "return",
    0x0C: "form_feed",
}
_NO_BREAK_SPACES = {0x00A0, 0x2007, 0x202F}
_GLUE = {0x034F, 0x200D, 0x2060, 0xFEFF} | _NO_BREAK_SPACES

# Default_Ignorable_Code_Point: no ink and no width by definition (soft hyphen and ZWSP apart).
_INVISIBLE = (
    (0x034F, 0x034F),
    (0x061C, 0x061C),
    (0x115F, 0x1160),
    (0x17B4, 0x17B5),
    (0x180B, 0x180F),
    (0x200C, 0x200F),
    (0x202A, 0x202E),
    (0x2060, 0x206F),
    (0x3164, 0x3164),
    (0xFE00, 0xFE0F),
    (0xFEFF, 0xFEFF),
    (0xFFA0, 0xFFA0),
    (0xFFF0, 0xFFF8),
    (0x1BCA0, 0x1BCA3),
    (0x1D173, 0x1D17A),
    (0xE0000, 0xE0FFF),
)

# Blocks whose scripts reorder or join; punctuation and digits of a block count with it.
_SHAPED = (
    (0x0590, 0x05FF, "Hebrew"),
    (0x0600, 0x06FF, "Arabic"),
    (0x0700, 0x074F, "Syriac"),
    (0x0750, 0x077F, "Arabic"),
    (0x0780, 0x07BF, "Thaana"),
    (0x07C0, 0x07FF, "N'Ko"),
    (0x0800, 0x085F, "Samaritan or Mandaic"),
    (0x0860, 0x08FF, "Arabic"),
    (0x0900, 0x0DFF, "Indic"),
    (0x0E00, 0x0E3E, "Thai"),
    (0x0E40, 0x0E7F, "Thai"),
    (0x0E80, 0x0EFF, "Lao"),
    (0x0F00, 0x0FFF, "Tibetan"),
    (0x1000, 0x109F, "Myanmar"),
    (0x1700, 0x177F, "Philippine"),
    (0x1780, 0x17FF, "Khmer"),
    (0x1800, 0x18AF, "Mongolian"),
    (0x1900, 0x194F, "Limbu"),
    (0x1A00, 0x1AAF, "Tai Tham or Buginese"),
    (0x1B00, 0x1C4F, "Indonesian or Lepcha"),
    (0x1CD0, 0x1CFF, "Vedic"),
    (0x202A, 0x202E, "bidi control"),
    (0x2066, 0x2069, "bidi control"),
    (0xA800, 0xA82F, "Syloti Nagri"),
    (0xA840, 0xA8FF, "Phags-pa or Devanagari"),
    (0xA930, 0xA95F, "Rejang"),
    (0xA980, 0xAAFF, "Javanese, Cham or Myanmar"),
    (0xABC0, 0xABFF, "Meetei Mayek"),
    (0xFB1D, 0xFB4F, "Hebrew"),
    (0xFB50, 0xFDFF, "Arabic"),
    (0xFE70, 0xFEFE, "Arabic"),
    (0x10800, 0x10FFF, "right-to-left"),
    (0x11000, 0x11FFF, "Brahmic"),
    (0x1E800, 0x1EFFF, "right-to-left"),
)

# Japanese and Chinese line-break rules (kinsoku) beyond the bracket categories. The straight quotes
# are both: they open and close.
_NO_START = frozenset(
    ",.:;!?%/-\"'、。，．・：；？！゛゜ヽヾゝゞ々〻ー…‥〜～％‰℃°′″｡､･ﾞﾟｰ‐–"
    "ぁぃぅぇぉっゃゅょゎゕゖァィゥェォッャュョヮヵヶㇰㇱㇲㇳㇴㇵㇶㇷㇸㇹㇺㇻㇼㇽㇾㇿｧｨｩｪｫｬｭｮｯ"
)
_NO_END = frozenset("\"'$£¥€＄￥￡")

# Widths in em of spaces that a font may lack: they are never a missing glyph.
SPACE_WIDTHS = {
    0x20: 0.26,
    0xA0: 0.26,
    0x1680: 0.3,
    0x2000: 0.5,
    0x2001: 1,
    0x2002: 0.5,
    0x2003: 1,
    0x2004: 1 / 3,
    0x2005: 0.25,
    0x2006: 1 / 6,
    0x2007: 0.55,
    0x2008: 0.26,
    0x2009: 0.2,
    0x200A: 0.1,
    0x202F: 0.2,
    0x205F: 4 / 18,
    0x3000: 1,
}


def script_to_shape(point: int) -> str:
    """Name of the script if it needs shaping, else an empty string."""
    if point < 0x0590:
        return ""
    return next((name for low, high, name in _SHAPED if low <= point <= high), "")


def is_isolate(point: int) -> bool:
    """A directional isolate or its end."""
    return 0x2066 <= point <= 0x2069


def is_mark(point: int) -> bool:
    """Combining: belongs over, under or into what comes before (conjoining Hangul included)."""
    if point < 0x0300:
        return False
    if 0x1161 <= point <= 0x11FF or 0xD7B0 <= point <= 0xD7FB:
        return True
    return unicodedata.category(chr(point)) in ("Mn", "Me") and not is_invisible(point)


def is_invisible(point: int) -> bool:
    """Draws nothing and has no width, by definition."""
    return point >= 0x034F and any(low <= point <= high for low, high in _INVISIBLE)


def is_undrawable(point: int) -> bool:
    """Controls and lone surrogates: no font draws them, whatever its character map claims."""
    return unicodedata.category(chr(point)) in ("Cc", "Cs")


def is_wide(point: int) -> bool:
    """Takes an em and breaks on both sides, as CJK and emoji do."""
    return unicodedata.east_asian_width(chr(point)) in "WFH"


def classify(point: int) -> tuple[int, int]:
    """`(kind, flags)` of a code point; missing, unshaped and prepare are for the caller to add."""
    char, category = chr(point), unicodedata.category(chr(point))
    if point in _LINE_ENDS:
        return KINDS[_LINE_ENDS[point]], 0
    if point == 0x09:
        return KINDS["tab"], 0
    if point == 0x200B:
        return KINDS["may_break"], FLAGS["invisible"]
    if point == 0xAD:
        return KINDS["soft_hyphen"], FLAGS["invisible"]
    if category == "Zs" and point not in _NO_BREAK_SPACES:
        return KINDS["space"], 0
    flags = FLAGS["glue"] if point in _GLUE else 0
    if is_invisible(point):
        return KINDS["noted"], flags | FLAGS["invisible"] | FLAGS["join"]
    if category in ("Pe", "Pf") or char in _NO_START:
        flags |= FLAGS["no_start"]
    if category in ("Ps", "Pi") or char in _NO_END:
        flags |= FLAGS["no_end"]
    if 0x1F3FB <= point <= 0x1F3FF:  # skin tones stay with their emoji
        flags |= FLAGS["no_start"]
    return KINDS["wide" if is_wide(point) else "plain"], flags
