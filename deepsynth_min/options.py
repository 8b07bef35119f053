"""From dataclasses to options: a command line, a TOML file and the checks of both.

In: frozen dataclasses ("concerns"), whose fields are settings. Out: an argparse parser, and values
in the fields' types.

The one idea: a field says everything once. Its name gives the option (`batch_size` ->
`--batch-size`) and the TOML key, its annotation the type and the choices, its comment in the source
the help text; what is out of range is a table beside the dataclasses.
"""

import argparse
import difflib
import inspect
import math
import re
import tomllib
from dataclasses import fields
from functools import lru_cache
from typing import Literal, get_args, get_origin

from .config import UserError, read_text

Limits = dict[str, tuple[float, float]]  # setting -> the least and the most it may be


@lru_cache
def comments(concern: type) -> dict[str, str]:
    """Field name -> its comment in the source, which is its help text."""
    lines = inspect.getsource(concern).splitlines()
    found = (re.match(r"    (\w+): .*?  # (.*)$", line) for line in lines)
    return {match[1]: match[2] for match in found if match}


def _choices(kind) -> tuple | None:
    return get_args(kind) if get_origin(kind) is Literal else None


def check(name: str, kind, value, where: str, limits: Limits):
    """The value in the field's type. Raises UserError naming setting, value and place."""
    option = "--" + name.replace("_", "-")
    try:
        return _fitting(name, kind, value, f"{where}{option}", limits)
    except UserError:
        raise
    except (ValueError, OverflowError) as error:  # a number of thousands of digits
        raise UserError(f"{where}{option}: {error}") from None


def _fitting(name: str, kind, value, option: str, limits: Limits):
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
    least, most = limits.get(name, (-math.inf, math.inf))
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
    parser = OneLineParser(program, usage, description, allow_abbrev=False,
                           argument_default=argparse.SUPPRESS)  # fmt: skip
    for title, concern in concerns.items():
        group, texts = parser.add_argument_group(title), comments(concern)
        for f in fields(concern):
            option, text = "--" + f.name.replace("_", "-"), texts[f.name].replace("%", "%%")
            text += f" (default: {f.default!r})" if f.default != () else ""
            if f.type is bool:
                how = {"action": argparse.BooleanOptionalAction}
            elif get_origin(f.type) is tuple:
                how = {"nargs": "+", "metavar": "NAME" if f.name == "lora_targets" else "FILE"}
            elif choices := _choices(f.type):
                how = {"choices": choices}
            else:
                how = {"type": f.type, "metavar": _METAVARS[f.type]}
            group.add_argument(option, help=text, **how)
    return parser


def read_toml(path: str, concerns: dict[str, type], limits: Limits) -> dict[str, object]:
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
            raise UserError(f"{path}: unknown table or key {title!r}; tables: {', '.join(concerns)}")
        known = {f.name: f for f in fields(concerns[title])}
        for name, value in table.items():
            if name not in known:
                close = difflib.get_close_matches(name, known, 1)
                hint = f"; did you mean {close[0]}?" if close else ""
                raise UserError(f"{path}: unknown setting [{title}] {name}{hint}")
            values[name] = check(name, known[name].type, value, f"{path}: ", limits)
    return values
