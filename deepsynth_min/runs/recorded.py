"""deepsynth_min.toml: what a model's answers depend on beside its weights, in a file next to them.

In: the settings of a run. Out: the file's text, for checkpoints and exports; and back: a directory
with a model or an adapter -> the settings that its file holds.

The one idea: the same weights asked in another way are another model. So mode, instruction, page
style, generation and the types of the weights travel with them, and whoever reads with the model
takes them from there, unless the command line says otherwise.

The file may come from anywhere. It can set these values and nothing else: no key that names data,
no path; of a font file it holds name and digest, and the reader must bring the file itself.
"""

import os
import re
from collections.abc import Collection
from dataclasses import fields
from pathlib import Path

from ..errors import UserError, find_file
from ..options import change, option_of, tables_of, to_toml, values_of
from ..pages.fonts.font_file import EMBEDDED, font_digest
from ..settings import CONCERNS, GenerationSettings, PageSettings, Settings
from ..training.build import usual_beams

FILE = "deepsynth_min.toml"
HEAD = "# How this model was trained to be asked; generate and evaluate read it.\n"
# How the weights are held and multiplied; of a model with an adapter, the adapter's file says it.
TYPES = ("tune", "quant", "double_quant", "precision", "weights", "attention_window", "context")
FONTS = ("main_font", "font")
NAMES = (
    *("mode", "instruction", "seed", *TYPES),
    *(f.name for concern in (PageSettings, GenerationSettings) for f in fields(concern)),
)
MOST_BYTES, MOST_BEAMS = 2**20, 64  # more than any use needs; a file must not exhaust memory
_FONT = re.compile(r"([^/\\]{1,255}) sha256:([0-9a-f]{64})")


def as_toml(settings: Settings) -> str:
    """The file's text. Font files are in it by name and digest. Raises ValueError if one cannot be
    read."""
    return HEAD + to_toml(_with_noted_fonts(settings), only=NAMES)


def values(settings: Settings) -> dict[str, object]:
    """{setting: value} of those that the file has. Raises ValueError as above."""
    parts = vars(_with_noted_fonts(settings)).values()
    return {name: value for part in parts for name, value in vars(part).items() if name in NAMES}


def _with_noted_fonts(settings: Settings) -> Settings:
    page = settings.page
    noted = {"main_font": _noted(page.main_font), "font": tuple(map(_noted, page.font))}
    return change(settings, beams=usual_beams(settings), **noted)


def _noted(font: str) -> str:
    if not font or font in EMBEDDED:
        return font
    return f"{Path(font).name} sha256:{font_digest(font)}"


def read(directory: Path) -> dict[str, object]:
    """{setting: value} of a directory's file; empty if it has none. Raises UserError naming what
    cannot stand in such a file."""
    path = directory / FILE
    if not os.path.lexists(path):
        return {}
    if find_file(path).stat().st_size > MOST_BYTES:
        raise UserError(f"{path}: more than {MOST_BYTES} bytes")
    values = values_of(tables_of(str(path), where=""), str(path), CONCERNS, only=NAMES)
    if values.get("beams", 0) > MOST_BEAMS:
        raise UserError(f"{path}: --beams: {values['beams']} is above {MOST_BEAMS}")
    for option, font in ((name, font) for name in FONTS for font in listed(values.get(name, ()))):
        if font not in EMBEDDED and not _FONT.fullmatch(font):
            raise UserError(
                f"{path}: {option_of(option)}: {font!r:.100} is neither an embedded font nor a "
                "file's name and sha256"
            )
    try:
        change(Settings(), **values)
    except UserError as error:  # values that contradict each other
        raise UserError(f"{path}: {error}") from None
    return values


def listed(fonts: object) -> tuple[str, ...]:
    """One font or several, none of them empty."""
    return tuple(filter(None, (fonts,) if isinstance(fonts, str) else fonts))


def check_fonts(recorded: dict[str, object], given: dict[str, object], where: str) -> list[str]:
    """Warnings about font files that are others than those in `recorded`. Raises UserError for an
    option for font files that is missing among those `given`.

    where: what the message begins with.
    """
    warnings = []
    for name in FONTS:
        noted = [_FONT.fullmatch(font) for font in listed(recorded.get(name, ()))]
        wanted = {match[2]: match[1] for match in noted if match}
        if not wanted:
            continue
        named = ", ".join(f"{font} (sha256 {digest[:12]}...)" for digest, font in wanted.items())
        if name not in given:
            raise UserError(
                f"{where}: its pages are drawn with the font file {named}, which is not among its "
                f"files; give {option_of(name)} FILE"
            )
        if missing := wanted.keys() - _digests(listed(given[name])):
            lacking = ", ".join(wanted[digest] for digest in sorted(missing))
            warnings.append(f"{option_of(name)}: not the font of {where}'s training: {lacking}")
    return warnings


def _digests(fonts: Collection[str]) -> set[str]:
    try:
        return {font_digest(font) for font in fonts}
    except ValueError as error:
        raise UserError(f"page settings: {error}") from None
