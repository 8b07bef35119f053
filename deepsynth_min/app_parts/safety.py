"""What the page may ask for: names of files below one folder, and settings that name no others.

In: what came from a browser. Out: paths, settings and command lines; or a UserError in one line.

The one idea: whatever a setting names is either part of the package (a preset, embedded documents)
or a path that, with every link followed, lies below the folder. So a hub id or an address is
refused as a file that is not there.
"""

import shlex
from dataclasses import fields
from pathlib import Path
from typing import get_origin

from .. import command_line, options
from ..errors import UserError
from ..files.disk import check_name
from ..files.unpack import PACKED
from ..options import option_of
from ..runs.storage.named_files import named_files
from ..settings import CONCERNS, Settings

# What a setting may be in place of a name:
WORDS = {"out": ("",), "resume": ("none", "auto"), "feature_cache": ("off", "memory")}
MOST_SETTING = 30_000  # characters of a setting; the system takes 128 KiB in one word
# What would leave the folder or the machine, and what it must be:
REFUSED = {"push_to_hub": "", "mirror": "", "wandb": "", "images_anywhere": False}
PARSER = command_line.make_parser("python -m deepsynth_min.train", "")
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
    written = {"out": settings.run.out, "feature_cache": settings.data.feature_cache}
    read = [*named_files(settings), ("resume", settings.run.resume)]
    for setting, name in (*read, *written.items()):
        if name not in WORDS.get(setting, ()):
            inside(root, name, option_of(setting), there=setting not in written)
    for name, must_be in REFUSED.items():
        if options.change(settings, **{name: must_be}) != settings:
            raise UserError(f"{option_of(name)}: not from this page; use the command line")


def arguments(values: dict[str, str | None]) -> list[str]:
    """{setting: text of its control} -> a command line; empty controls are left out. A value cannot
    become another option: both are one word. Raises UserError."""
    words = []
    for name, text in values.items():
        option, kind = option_of(name), FIELDS[name].type if name in FIELDS else str
        if text and len(text) > MOST_SETTING:
            raise UserError(f"{option}: {len(text):,} characters, where {MOST_SETTING:,} are taken")
        if kind is bool and text:
            words.append(option if text == "yes" else f"--no-{option[2:]}")
        elif text:
            several = text.split() if get_origin(kind) is tuple else [text]
            words += [f"{option}={word}" for word in several]
    return words


def settings_of(root: Path, values: dict[str, str]) -> tuple[list[str], dict[str, object]]:
    """{setting: text of its control} -> a command line, and the settings given, checked. Raises
    UserError."""
    words = arguments(values)
    given = vars(PARSER.parse_args(words))
    check_settings(root, command_line.complete(given))
    return words, options.checked(given, CONCERNS.values())
