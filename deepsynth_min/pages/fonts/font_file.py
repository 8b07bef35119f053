"""Names of fonts -> their bytes, and which fonts there are.

In: a name: an embedded font, or a file, of a collection `FILE.ttc#2`, of a variable font
`FILE.ttf@wght=700,wdth=75`, or both `FILE.ttc#0@wght=400`. Out: bytes, their digest, and an opened
FreeType face.

The one idea: a name says all that decides a glyph, so names are what font chains are made of; the
digest counts the bytes and what stands behind the file's name, never where the file lies.

The fonts of installed extras are files of Python packages (all OFL): `scripts` and `emoji` bring
Noto Sans for scripts that the embedded fonts lack, and Noto Emoji, drawn as outlines in one colour;
`cjk` brings Noto Sans CJK, in the forms of Japan (#1 Korea, #2 mainland China, #3 Taiwan, #4 Hong
Kong, with --font).
"""

import hashlib
import io
import os
import re
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import freetype
import pymupdf_fonts

EMBEDDED = ("notos", "symbol2", "symbol1", "math", "figo", "music")

_SCRIPTS = (
    *("Arabic", "Armenian", "Bengali", "Devanagari", "Ethiopic", "Georgian", "Gujarati"),
    *("Gurmukhi", "Hebrew", "Kannada", "Khmer", "Lao", "Malayalam", "Myanmar", "Oriya"),
    *("Sinhala", "Symbols", "Tamil", "Telugu", "Thai"),
)
_PACKAGES = {  # package -> its fonts, as they are named here
    "manimgx_fonts": (
        *(f"NotoSans{script}[wght].ttf@wght=400" for script in _SCRIPTS),
        "NotoEmoji[wght].ttf@wght=400",
    ),
    "manimgx_fonts_cjk": ("NotoSansCJK-VF.otf.ttc#0@wght=400",),
}


@dataclass(frozen=True)
class FontName:
    """A font's name, taken apart."""

    file: str
    number: int = 0  # in a collection
    axes: tuple[tuple[str, float], ...] = ()


def parse(source: str) -> FontName:
    """A file that is there is itself, whatever its name. Raises ValueError."""
    if source in EMBEDDED or os.path.lexists(source):
        return FontName(source)
    file, at, axes = source.rpartition("@")
    if not at or "=" not in axes:
        file, axes = source, ""
    match = re.fullmatch(r"(.+)#(\d{1,4})", file)
    file, number = (match[1], int(match[2])) if match else (file, 0)
    return FontName(file, number, tuple(_axis(text, source) for text in axes.split(",") if text))


def _axis(text: str, source: str) -> tuple[str, float]:
    match = re.fullmatch(r"([ -~]{4})=(-?\d+(?:\.\d+)?)", text)
    if not match:
        raise ValueError(f"font: {source!r}: {text!r} is not an axis and a number, as wght=400")
    return match[1], float(match[2])


@lru_cache(maxsize=32)
def _bytes_of(file: str) -> bytes:
    if file in EMBEDDED:
        return pymupdf_fonts.myfont(file)
    try:
        if os.path.exists(file) and not os.path.isfile(file):  # a pipe might never end
            raise ValueError(f"font: {file!r} is not a regular file")
        with open(file, "rb") as content:
            return content.read()
    except OSError as error:
        raise ValueError(f"font: cannot read {file!r}: {error.strerror}") from None


def font_bytes(source: str) -> bytes:
    """Content of an embedded font or of a font file, the whole of a collection. Raises
    ValueError."""
    return _bytes_of(parse(source).file)


@lru_cache(maxsize=128)
def font_digest(source: str) -> str:
    """SHA-256 of a font's bytes and of its number and axes, in hex. Raises ValueError if they
    cannot be read."""
    name = parse(source)
    digest = hashlib.sha256(_bytes_of(name.file))
    if name.number or name.axes:
        digest.update(repr((name.number, sorted(name.axes))).encode())
    return digest.hexdigest()


def freetype_version() -> str:
    """Of the FreeType library in use, e.g. 2.13.2."""
    return ".".join(map(str, freetype.version()))


def open_face(source: str) -> freetype.Face:
    """A font by its name, its axes set. Raises ValueError in one line."""
    name, data = parse(source), font_bytes(source)
    try:
        face = freetype.Face(io.BytesIO(data))
        if name.number >= face.num_faces:
            held = f"{face.num_faces} fonts, #0 to #{face.num_faces - 1}"
            held = held if face.num_faces > 1 else "one font"
            raise ValueError(f"font: {source!r}: the file holds {held}")
        face = freetype.Face(io.BytesIO(data), name.number) if name.number else face
    except freetype.FT_Exception as error:
        raise ValueError(f"font: {source!r} is not a font file ({error})") from None
    if not face.is_scalable:
        raise ValueError(f"font: {source!r} has bitmaps of fixed size, no outlines")
    if name.axes:
        _set_axes(face, name, source)
    return face


def _set_axes(face: freetype.Face, name: FontName, source: str) -> None:
    try:
        axes = face.get_variation_info().axes
    except freetype.FT_Exception:
        raise ValueError(f"font: {source!r}: not a variable font, it has no axes") from None
    limits = {axis.tag: (axis.minimum, axis.maximum) for axis in axes}
    for tag, value in name.axes:
        if tag not in limits:
            held = ", ".join(f"{t} {low:g} to {high:g}" for t, (low, high) in limits.items())
            raise ValueError(f"font: {source!r}: no axis {tag!r}; there is {held}")
        low, high = limits[tag]
        if not low <= value <= high:
            raise ValueError(f"font: {source!r}: {tag} is from {low:g} to {high:g}")
    wanted = dict(name.axes)
    face.set_var_design_coords([wanted.get(axis.tag, axis.default) for axis in axes])


@lru_cache(maxsize=1)
def installed_fonts() -> tuple[str, ...]:
    """Names of the fonts of installed extras, in order of preference."""
    found = []
    for package, names in _PACKAGES.items():
        spec = find_spec(package)
        for folder in (spec and spec.submodule_search_locations) or ():
            there = set(os.listdir(folder))
            found += [str(Path(folder, n)) for n in names if parse(n).file in there]
    return tuple(found)


def has_installed(script: str) -> bool:
    """Whether a font of this name's script, of `emoji` or of `cjk` is among them."""
    part = {"cjk": "CJK", "emoji": "Emoji"}.get(script, script)
    return any(f"Noto{part}" in name or f"NotoSans{part}" in name for name in installed_fonts())
