"""From dataclasses to options: a command line, a TOML file and the checks of both.

In: frozen dataclasses ("concerns"), whose fields are settings. Out: an argparse parser, and values
in the fields' types.

The one idea: a field says everything once. Its name gives the option (`batch_size` ->
`--batch-size`) and the TOML key, its annotation the type and the choices, `setting(...)` the
default, the help text and the limits.
"""

import argparse
import difflib
import json
import math
import re
import tomllib
from dataclasses import Field, field, fields, replace
from typing import Literal, get_args, get_origin

from .errors import UserError, read_text


def setting(default, help: str, least: float = -math.inf, most: float = math.inf):
    """A field of a dataclass of settings: its default, what --help says, the limits of a number."""
    return field(default=default, metadata={"help": help, "limits": (least, most)})


def _choices(kind) -> tuple | None:
    return get_args(kind) if get_origin(kind) is Literal else None


def option_of(name: str) -> str:
    return "--" + name.replace("_", "-")


def check(f: Field, value, where: str):
    """The value in the field's type. Raises UserError naming setting, value and place."""
    option = option_of(f.name)
    try:
        return _fitting(f, value, f"{where}{option}")
    except UserError:
        raise
    except (ValueError, OverflowError) as error:  # a number of thousands of digits
        raise UserError(f"{where}{option}: {error}") from None


def _fitting(f: Field, value, option: str):
    kind = f.type
    wrong = UserError(f"{option}: {value!r} is not {_describe(kind)}")
    if choices := _choices(kind):
        if value not in choices:
            raise wrong
    elif get_origin(kind) is tuple:
        if not isinstance(value, list | tuple) or not all(isinstance(v, str) for v in value):
            raise wrong
        value = tuple(value)
    elif kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    elif type(value) is not kind:
        raise wrong
    if kind is float and not math.isfinite(value):
        raise wrong
    if kind is str or get_origin(kind) is tuple:
        text = value if kind is str else "".join(value)
        if "\0" in text or any("\ud800" <= c <= "\udfff" for c in text):
            raise UserError(f"{option}: {value!r} is not valid text (a NUL, or half a character)")
    least, most = f.metadata["limits"]
    most = min(most, 2**62) if kind is int else most
    if kind in (int, float) and not value >= least:
        raise UserError(f"{option}: {value} is below {least}")
    if kind in (int, float) and not value <= most:
        raise UserError(f"{option}: {value} is above {most}")
    return value


def _describe(kind) -> str:
    if choices := _choices(kind):
        return "one of " + ", ".join(choices)
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a string"}
    return names.get(kind, "a list of strings")


class OneLineParser(argparse.ArgumentParser):
    """Argparse whose errors are one line and end with exit code 2 in one place."""

    def error(self, message: str):
        unknown = re.search(r"unrecognized arguments: (\S+)", message)
        if unknown:
            name = unknown[1].split("=")[0]
            options = [o for action in self._actions for o in action.option_strings]
            close = difflib.get_close_matches(name, options, 1)
            message = f"unknown setting {name}" + (f"; did you mean {close[0]}?" if close else "")
        raise UserError(message)


_METAVARS = {int: "N", float: "X", str: "TEXT"}


def make_parser(concerns: dict[str, type], program: str, description: str) -> OneLineParser:
    """A parser with one option per field, grouped by concern; absent options stay absent."""
    usage = f"{program} [--config FILE] [--setting value ...]"
    parser = OneLineParser(
        program, usage, description, allow_abbrev=False, argument_default=argparse.SUPPRESS
    )
    for title, concern in concerns.items():
        group = parser.add_argument_group(title)
        for f in fields(concern):
            text = f.metadata["help"].replace("%", "%%")
            text += f" (default: {f.default!r})" if f.default != () else ""
            if f.type is bool:
                how = {"action": argparse.BooleanOptionalAction}
            elif get_origin(f.type) is tuple:
                how = {"nargs": "+", "metavar": "NAME" if f.name == "lora_targets" else "FILE"}
            elif choices := _choices(f.type):
                how = {"choices": choices}
            else:
                how = {"type": f.type, "metavar": _METAVARS[f.type]}
            group.add_argument(option_of(f.name), help=text, **how)
    return parser


def read_toml(path: str, concerns: dict[str, type]) -> dict[str, object]:
    """{setting: value} of a TOML file with one table per concern. Unknown keys are errors."""
    try:
        tables = tomllib.loads(read_text(path, "--config "))
    except UserError:
        raise
    except (ValueError, RecursionError) as error:
        raise UserError(f"--config {path}: not TOML ({error})") from None
    values = {}
    for title, table in tables.items():
        if title not in concerns or not isinstance(table, dict):
            raise UserError(
                f"{path}: unknown table or key {title!r}; tables: {', '.join(concerns)}"
            )
        known = {f.name: f for f in fields(concerns[title])}
        for name, value in table.items():
            if name not in known:
                close = difflib.get_close_matches(name, known, 1)
                hint = f"; did you mean {close[0]}?" if close else ""
                raise UserError(f"{path}: unknown setting [{title}] {name}{hint}")
            values[name] = check(known[name], value, f"{path}: ")
    return values


def checked(given: dict, concerns) -> dict[str, object]:
    """What `given` says about the fields of some concerns. Raises UserError."""
    return {
        f.name: check(f, given[f.name], "")
        for concern in concerns
        for f in fields(concern)
        if f.name in given
    }


def change(settings, **values):
    """A copy of a dataclass of concerns with some settings changed, whatever concern has them."""
    parts = {}
    for f in fields(settings):
        part = getattr(settings, f.name)
        own = {g.name: values.pop(g.name) for g in fields(part) if g.name in values}
        parts[f.name] = replace(part, **own)
    assert not values, f"unknown settings {list(values)}"
    return type(settings)(**parts)


def to_toml(settings) -> str:
    """A dataclass of concerns as TOML, one table per concern, each setting with its help."""
    lines = []
    for f in fields(settings):
        part = getattr(settings, f.name)
        lines.append(f"[{f.name}]")
        for g in fields(part):
            value = getattr(part, g.name)
            # JSON strings, numbers, booleans and lists of strings are valid TOML.
            text = json.dumps(
                list(value) if isinstance(value, tuple) else value, ensure_ascii=False
            ).replace("\x7f", "\\u007f")  # the one that TOML wants escaped and JSON does not
            lines.append(f"{g.name} = {text}  # {g.metadata['help']}")
        lines.append("")
    return "\n".join(lines)
