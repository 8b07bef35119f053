"""From dataclasses to options: a command line, a TOML file and the checks of both.

In: frozen dataclasses, one per concern, whose fields are settings. Out: an argparse parser, and
values in the fields' types.

The one idea: a field says everything once. Its name gives the option (`batch_size` ->
`--batch-size`) and the TOML key, its annotation the type and the choices, `setting(...)` the
default, the help text and the limits. A name that is none is looked up among those of other
trainers (other_names.py) before one that is spelt like it is suggested.
"""

import argparse
import difflib
import json
import math
import re
import tomllib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import Field, field, fields, replace
from functools import partial
from typing import Any, Literal, NoReturn, TypeVar, get_args, get_origin

from .errors import UserError, read_text
from .other_names import OTHER_NAMES

Group = TypeVar("Group")  # a dataclass whose fields are dataclasses of settings


def setting(
    default: Any,
    help: str,
    low: float = -math.inf,
    high: float = math.inf,
    is_fixed: bool | None = None,
    auto: bool = False,
) -> Any:
    """A field of a dataclass of settings: its default, what --help says, the limits of a number.

    is_fixed: whether a run must keep it when it is resumed; None: it is no setting of a run. auto:
    a whole number for whose 0 the word auto may be given.
    """
    about = {"help": help, "limits": (low, high), "is_fixed": is_fixed, "auto": auto}
    return field(default=default, metadata=about)


fixed = partial(setting, is_fixed=True)
free = partial(setting, is_fixed=False)


def choices_of(annotation: Any) -> tuple[str, ...] | None:
    """The values that a Literal allows; None for any other type."""
    return get_args(annotation) if get_origin(annotation) is Literal else None


def option_of(name: str) -> str:
    """The option of a setting: batch_size -> --batch-size."""
    return "--" + name.replace("_", "-")


def check(f: Field, value: object, where: str) -> object:
    """The value in the field's type. Raises UserError naming setting, value and place.

    where: what the message begins with, e.g. the TOML file.
    """
    option = option_of(f.name)
    try:
        return _converted(f, value, f"{where}{option}")
    except UserError:
        raise
    except (ValueError, OverflowError) as error:  # a number of thousands of digits
        raise UserError(f"{where}{option}: {error}") from None


def _converted(f: Field, value: Any, option: str) -> object:
    annotation = f.type
    if value == "auto" and f.metadata["auto"]:
        value = 0
    is_list = get_origin(annotation) is tuple
    mismatch = UserError(f"{option}: {value!r} is not {_describe(annotation)}")
    if choices := choices_of(annotation):
        if value not in choices:
            raise mismatch
    elif is_list:
        if isinstance(value, str) and value:  # one alone, as files of before have it
            value = (value,)
        if value == "":
            value = ()
        if not isinstance(value, list | tuple) or not all(isinstance(v, str) for v in value):
            raise mismatch
        value = tuple(value)
    elif annotation is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    elif type(value) is not annotation:
        raise mismatch
    if annotation is float and not math.isfinite(value):
        raise mismatch
    if annotation is str or is_list:
        text = "".join(value) if is_list else value
        if "\0" in text or any("\ud800" <= c <= "\udfff" for c in text):
            raise UserError(f"{option}: {value!r} is not valid text (a NUL, or half a character)")
    if annotation in (int, float):
        low, high = f.metadata["limits"]
        high = min(high, 2**62) if annotation is int else high
        if not value >= low:
            raise UserError(f"{option}: {value} is below {low}")
        if not value <= high:
            raise UserError(f"{option}: {value} is above {high}")
    return value


def _describe(annotation: Any) -> str:
    if choices := choices_of(annotation):
        return "one of " + ", ".join(choices)
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a string"}
    return names.get(annotation, "a list of strings")


class OneLineParser(argparse.ArgumentParser):
    """Argparse whose errors are a UserError: one line and exit code 2, in one place (errors.py)."""

    def error(self, message: str) -> NoReturn:
        unknown = re.search(r"unrecognized arguments: (\S+)", message)
        if unknown:
            name = unknown[1].split("=")[0]
            options = [o for action in self._actions for o in action.option_strings]
            message = f"unknown setting {name}{suggestion(name, options)}"
        message = re.sub(
            r"invalid (?:int|_number_or_auto) value: (.*)", r"\1 is not a whole number", message
        )
        message = re.sub(r"invalid float value: (.*)", r"\1 is not a number", message)
        raise UserError(message)


def suggestion(name: str, options: Collection[str]) -> str:
    """ "; ..." about an unknown setting: which option has another trainer's name for it here, or
    which is spelt like it; "" if none is."""
    plain = name.lstrip("-").lower().replace("_", "-")
    here = OTHER_NAMES.get(plain, "")
    meant = re.findall(r"--[a-z0-9-]+", here)
    if meant and meant[0] in options:
        return f"; here it is {here}" if here.startswith("--") else f"; {here}"
    close = difflib.get_close_matches(f"--{plain}", options, 1)
    return f"; did you mean {close[0]}?" if close else ""


_LISTED = {"font": "FILE", "vary": "SETTING=VALUES", "unseen_style": "SETTING=VALUES"}
_METAVARS = {int: "N", float: "X", str: "TEXT"}


def make_parser(
    concerns: dict[str, type],
    program: str,
    description: str,
    without: Collection[str] = (),
    of_run: bool = False,
    other_help: Mapping[str, str] | None = None,
) -> OneLineParser:
    """A parser with one option per field, grouped by concern; absent options stay absent.

    without: fields that get none; of_run: whether a run's own settings are the defaults;
    other_help: {field: help} where it means something else to this command.
    """
    usage = f"{program} [--config FILE] [--setting value ...]"
    parser = OneLineParser(
        program, usage, description, allow_abbrev=False, argument_default=argparse.SUPPRESS
    )
    for title, concern in concerns.items():
        group = parser.add_argument_group(title)
        for f in (f for f in fields(concern) if f.name not in without):
            text = f.metadata["help"].replace("%", "%%")
            shown = " ".join(f.default) if isinstance(f.default, tuple) else repr(f.default)
            shown = f"the run's, else {shown or 'none'}" if of_run else shown
            text += f" (default: {shown})" if shown else ""
            text = (other_help or {}).get(f.name, text)
            if f.type is bool:
                syntax = {"action": argparse.BooleanOptionalAction}
            elif get_origin(f.type) is tuple:
                metavar = _LISTED.get(f.name, "NAME")
                syntax = {"nargs": "+", "action": "extend", "metavar": metavar}
            elif choices := choices_of(f.type):
                syntax = {"choices": choices}
            else:
                syntax = {"type": f.type, "metavar": _METAVARS[f.type]}
                if f.metadata["auto"]:
                    syntax = {"type": _number_or_auto, "metavar": "N|auto"}
            group.add_argument(option_of(f.name), help=text, **syntax)
    return parser


def _number_or_auto(text: str) -> int:
    return 0 if text == "auto" else int(text)


def about_fixed(concerns: dict[str, type]) -> str:
    """For --help: which settings a resumed run must keep."""
    every = [f for concern in concerns.values() for f in fields(concern)]
    kept = ", ".join(option_of(f.name) for f in every if f.metadata["is_fixed"])
    return (
        "What decides a run's samples, loss and optimizer state stays when it is resumed; another "
        "value is refused of: "
        f"{kept}; and with another global batch (--batch-size x --accumulate x processes). Files "
        "and models may move, but not change: models, adapters and fonts are compared by all they "
        "hold, data by the number of rows, each file's size and its first and last 64 KiB. "
        "All else may change."
    )


def tables_of(path: str, where: str = "--config ") -> dict[str, Any]:
    """The tables of a TOML file. where: what a message begins with. Raises UserError."""
    try:
        return tomllib.loads(read_text(path, where))
    except UserError:
        raise
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}{path}: not TOML ({error})") from None


def values_of(
    tables: dict[str, Any], path: str, concerns: dict[str, type], only: Collection[str] = ()
) -> dict[str, object]:
    """{setting: value} of a TOML file's tables, one per concern. Raises UserError: unknown keys and
    values out of their limits are mistakes.

    path: the file, for messages; only: the settings that it may have, if not all.
    """
    values = {}
    for title, table in tables.items():
        if title not in concerns or not isinstance(table, dict):
            raise UserError(
                f"{path}: unknown table or key {title!r}; tables: {', '.join(concerns)}"
            )
        known = {f.name: f for f in fields(concerns[title]) if not only or f.name in only}
        for name, value in table.items():
            if name not in known:
                in_place = any(name == f.name for f in fields(concerns[title]))
                hint = "; not in this file" if in_place else _suggestion_in_file(name, concerns)
                raise UserError(f"{path}: unknown setting [{title}] {name}{hint}")
            values[name] = check(known[name], value, f"{path}: ")
    return values


def _suggestion_in_file(name: str, concerns: dict[str, type]) -> str:
    """The same about a key: with the table that the setting stands in, and its name there."""
    tables = {option_of(f.name): (t, f.name) for t, c in concerns.items() for f in fields(c)}
    if option_of(name) in tables:
        return f"; it stands in [{tables[option_of(name)][0]}]"
    text = suggestion(name, tables)
    found = re.search(r"--[a-z0-9-]+", text)
    return text + (" ([{}] {})".format(*tables[found[0]]) if found else "")


def checked(given: dict[str, object], concerns: Iterable[type]) -> dict[str, object]:
    """Those values of a command line that are fields of some concerns. Raises UserError."""
    return {
        f.name: check(f, given[f.name], "")
        for concern in concerns
        for f in fields(concern)
        if f.name in given
    }


def build(group: type[Group], values: dict[str, object]) -> Group:
    """A dataclass of concerns with these values, the others as by default. Raises UserError."""
    parts = {}
    for f in fields(group):
        names = {g.name for g in fields(f.type)} & values.keys()
        parts[f.name] = f.type(**{name: values[name] for name in names})
    return group(**parts)


def change(settings: Group, **values: object) -> Group:
    """A copy of a dataclass of concerns with some settings changed, whatever concern has them."""
    parts = {}
    for f in fields(settings):
        part = getattr(settings, f.name)
        changed = {g.name: values.pop(g.name) for g in fields(part) if g.name in values}
        parts[f.name] = replace(part, **changed)
    assert not values, f"unknown settings {list(values)}"
    return type(settings)(**parts)


def to_toml(settings: object, only: Collection[str] = ()) -> str:
    """A dataclass of concerns as TOML, one table per concern, each setting with its help.

    only: the settings to write, if not all.
    """
    lines = []
    for f in fields(settings):
        part = getattr(settings, f.name)
        written = [g for g in fields(part) if not only or g.name in only]
        if not written:
            continue
        lines.append(f"[{f.name}]")
        for g in written:
            lines.append(f"{g.name} = {as_toml(getattr(part, g.name))}  # {g.metadata['help']}")
        lines.append("")
    return "\n".join(lines)


def as_toml(value: object) -> str:
    """A setting's value, or a key in quotes: JSON's strings, numbers, booleans and lists of strings
    are TOML's."""
    text = json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)
    return text.replace("\x7f", "\\u007f")  # the one that TOML wants escaped and JSON does not
