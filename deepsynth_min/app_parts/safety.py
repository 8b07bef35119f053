"""What the page may ask for: names of files below one folder, and settings that name no others.

In: what came from a browser. Out: paths, settings and command lines; or a UserError in one line.

The one idea: whatever a setting names is either known by name (a preset, embedded documents) or a
path that, with every link followed, lies below the folder. So a hub id or an address is refused as
a file that is not there.
"""

import shlex
from dataclasses import fields
from pathlib import Path
from typing import get_origin

from .. import command_line, options, recipes
from ..data.sources import weighted
from ..errors import UserError
from ..files.disk import check_name
from ..files.unpack import PACKED
from ..model.shape.presets import PRESETS, TINY_READER
from ..options import option_of
from ..pages import vary
from ..pages.fonts.font_file import parse
from ..settings import CONCERNS, Settings

KNOWN = {"", "off", "memory", "none", "auto", TINY_READER, *PRESETS}
# and what they must be:
REFUSED = {"push_to_hub": "", "mirror": "", "wandb": "", "images_anywhere": False}
FIELDS = {f.name: f for concern in CONCERNS.values() for f in fields(concern)}


def inside(root: Path, name: str, option: str, there: bool = True) -> Path:
    """The path below the folder. there: whether it must exist. Raises UserError."""
    check_name(option, name)
    try:
        path = (root / name).resolve()
        found = path.exists()
    except (OSError, RuntimeError):  # a name that is too long, links in a circle
        raise UserError(f"{option} {name}: not a possible file name") from None
    if not path.is_relative_to(root):
        raise UserError(f"{option} {name}: is not below {root} (--root)")
    if there and not found:
        raise UserError(f"{option} {name}: nothing of that name below {root}")
    return path


def sent(file: str) -> str:
    """The name of a file that a browser sent. Raises UserError for a compressed one."""
    name = Path(file).name
    if name.lower().endswith(PACKED):
        raise UserError(f"{name}: compressed files are not taken; unpack it first")
    return name


def fenced(words: list[str]) -> str:
    """A command as Markdown, which Gradio shows with a button to copy it."""
    return f"### As a command\n```\n{shlex.join(words)}\n```"


def check_settings(root: Path, settings: Settings) -> None:
    """Raises UserError for a setting that leaves the folder or this machine."""
    model, data, page, run = settings.model, settings.data, settings.page, settings.run
    named = [page.main_font, *page.font]
    for words in (settings.augment.vary, settings.evaluation.unseen_style):
        drawn = [one.values for one in vary.parse(words, "--vary") if one.name == "main_font"]
        named += [font for fonts in drawn for font in fonts]
    try:
        fonts = [parse(font).file for font in named]
    except ValueError as error:
        raise UserError(f"--font: {error}") from None
    named = [("--model", model.model), ("--adapter", settings.adapter.adapter)]
    named += [("--data", weighted(name)[0]) for name in data.data]
    named += [("--val-data", data.val_data), ("--resume", run.resume)]
    named += [("--font", font) for font in fonts]
    for option, name in named:
        if name not in KNOWN and not name.startswith("embedded:"):
            inside(root, name, option)
    for option, name in (("--out", run.out), ("--feature-cache", data.feature_cache)):
        if name not in KNOWN:
            inside(root, name, option, there=False)
    values = {name: value for part in vars(settings).values() for name, value in vars(part).items()}
    for name, must_be in REFUSED.items():
        if values[name] != must_be:
            raise UserError(f"{option_of(name)}: not from this page; use the command line")


def arguments(values: dict[str, str]) -> list[str]:
    """{setting: text of its control} -> a command line; empty controls are left out. A value cannot
    become another option: both are one word. Raises UserError."""
    words = []
    for name, text in values.items():
        if name not in FIELDS and name != "recipe":
            raise UserError(f"{name}: not a setting of this page")
        option, kind = option_of(name), str if name == "recipe" else FIELDS[name].type
        if not text:
            continue
        if kind is bool:
            words.append(option if text == "yes" else f"--no-{option[2:]}")
        else:
            several = text.split() if get_origin(kind) is tuple else [text]
            words += [f"{option}={word}" for word in several]
    return words


def settings_of(
    root: Path, values: dict[str, str], parser: options.OneLineParser
) -> tuple[list[str], dict[str, object]]:
    """{setting: text of its control} -> a command line, and the settings given, checked. Raises
    UserError."""
    words = arguments(values)
    given = vars(parser.parse_args(words))
    own = {name: value for name, value in given.items() if name in FIELDS}
    layers = own | ({"recipe": recipes.find(given["recipe"]).stem} if "recipe" in given else {})
    check_settings(root, command_line.complete(layers))
    return words, options.checked(own, CONCERNS.values())
