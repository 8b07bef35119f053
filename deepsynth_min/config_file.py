"""A run's config.toml: what was asked for, what it became, and where the files that it names lay.

In: a TOML file with a table for each concern, as users write it for --config or as a run wrote it.
Out: {setting: value}; and the text of such a file. What a run writes has two tables more:

    [resolved]   the settings that became something else (epochs = 1.0 -> max_steps = 300)
    [started]    where the run directory was; [started.files]: a name as given = where it lay

The one idea: --config takes over what was asked for, so that `--config RUN/config.toml --epochs 2`
means two epochs; whatever goes on with a run, reads or exports it takes over what it became. Names
of files are found from any directory, and after run and data were moved together.
"""

import os
import re
import tomllib
from collections.abc import Iterator
from dataclasses import fields
from functools import reduce
from pathlib import Path
from typing import Any

from . import options, recipes
from .errors import UserError
from .options import as_toml, option_of

# The settings whose values may be names of files or folders.
FILES = ("model", "data", "val_data", "feature_cache", "main_font", "font", "adapter")
# Among whose values fonts may be, divided as pages/vary.py does: font=a.ttf|b.ttf,invert=0.1
_VARIED, _VALUE = ("vary", "unseen_style"), re.compile(r"(?<=[=|])[^|]+?(?=$|\||,[a-z_-]+=)")
_ENDS = (
    ":",
    "@",
    "#",
)  # what may follow a name: a weight, axes of a font, a number in a collection
_ABOUT_RESOLVED = "# What some of these became in this run; --config passes it over."
_ABOUT_STARTED = "# Where this directory was when the run started, and the files that it names."


# -- reading --------------------------------------------------------------------------------------


def read(path: Path, concerns: dict[str, type], is_resolved: bool = False) -> dict[str, object]:
    """{setting: value} of a TOML file: what was asked for, or (is_resolved) what it became.

    Names of files that a run wrote are those by which they are found from here. Raises UserError.
    """
    tables = options.tables_of(str(path))
    became = _resolved(tables.pop("resolved", {}), path, concerns)
    places = _places(tables.pop("started", {}), path)
    values = options.values_of(tables, str(path), concerns)
    values |= became if is_resolved else {}
    return {name: _found(name, value, places) for name, value in values.items()}


def layered(given: dict[str, object], concerns: dict[str, type]) -> dict[str, object]:
    """{setting: value} of all that speaks: the command line, else the file of its --config, else
    its --recipe, else, with --resume auto, the run in --out. Raises UserError."""
    line = options.checked(given, concerns.values())
    files = [recipes.find(given["recipe"])] if "recipe" in given else []
    files += [Path(given["config"])] if "config" in given else []
    named = reduce(_over, (read(file, concerns) for file in files), {})
    values = _over(named, line)
    run = Path(values.get("out", ""))
    if values.get("resume") != "auto" or not is_run(run):
        return values
    own = read(run / "config.toml", concerns)
    here = {name: values[name] for name in ("out", "resume")}
    return _over(_over(own, named), line) | here


def is_run(directory: Path) -> bool:
    """Whether a run has begun in it."""
    config, checkpoints = directory / "config.toml", directory / "checkpoints"
    return os.path.isfile(config) and os.path.isdir(checkpoints)


def _over(lower: dict[str, object], upper: dict[str, object]) -> dict[str, object]:
    """The upper values, and the lower ones where there are none. --max-steps, which wins over
    --epochs where both are given, does not win over --epochs that are given above it."""
    if "epochs" in upper and "max_steps" not in upper:
        lower = {name: value for name, value in lower.items() if name != "max_steps"}
    return lower | upper


def _resolved(table: Any, path: Path, concerns: dict[str, type]) -> dict[str, object]:
    """The values of [resolved]. Raises UserError."""
    known = {f.name: f for concern in concerns.values() for f in fields(concern)}
    if not isinstance(table, dict) or not table.keys() <= known.keys():
        raise UserError(f"{path}: [resolved] is not as a run writes it")
    return {name: options.check(known[name], value, f"{path}: ") for name, value in table.items()}


# -- where files are ------------------------------------------------------------------------------


def _places(started: Any, path: Path) -> dict[str, tuple[str, str]]:
    """Name as given -> (where the file lay when the run started, where it lies if it was moved with
    the run). Raises UserError."""
    files = started.get("files", {}) if isinstance(started, dict) else None
    run = started.get("run", "") if isinstance(started, dict) else None
    texts = [run, *files, *files.values()] if isinstance(files, dict) else [None]
    if not all(isinstance(text, str) and "\0" not in text for text in texts):
        raise UserError(f"{path}: [started] is not as a run writes it")
    now, places = os.path.dirname(os.path.abspath(path)), {}
    for name, place in files.items():
        from_run = os.path.relpath(place, run) if run else place
        places[name] = place, os.path.normpath(os.path.join(now, from_run))
    return places


def _found(name: str, value: object, places: dict[str, tuple[str, str]]) -> object:
    """A setting's value with the names of files by which they are found from here."""
    if name not in FILES + _VARIED or not places:
        return value
    if isinstance(value, tuple):
        return tuple(_found(name, text, places) for text in value)
    if name in _VARIED:
        return _VALUE.sub(lambda found: _found("font", found[0], places), value)
    key = max((key for key in places if _names(value, key)), key=len, default=None)
    if key is None:
        return value
    then, moved = places[key]
    nowhere = moved if name == "feature_cache" else then  # a cache need not be there
    place = next((place for place in (then, moved) if os.path.lexists(place)), nowhere)
    return value if os.path.abspath(key) == place else place + value[len(key) :]


def _names(text: str, file: str) -> bool:
    """Whether a setting's text is the name of this file, perhaps with what may follow it."""
    return text == file or (text.startswith(file) and text[len(file)] in _ENDS)


def check_found(config: Path, settings: object, *names: str) -> None:
    """Raises UserError for a file that a run's settings of these names speak of and that is not
    there, naming where it was looked for. config: the run's config.toml; before there is one, all
    is as the user says."""
    if not os.path.isfile(config):
        return
    places = _places(options.tables_of(str(config)).get("started", {}), config)
    for name, text in _texts(settings, names):
        for key, (then, moved) in places.items():
            if _names(text, then) and not any(map(os.path.lexists, (text, then, moved))):
                also = f" and at {moved} (moved with the run)" if moved != then else ""
                raise UserError(
                    f"{option_of(name)} {key}: not found; looked for at {then} (when the run was "
                    f"started){also}"
                )


def _texts(settings: object, names: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """(setting, text) of settings with one text or several."""
    for concern in (getattr(settings, f.name) for f in fields(settings)):
        for name in (f.name for f in fields(concern) if f.name in names):
            value = getattr(concern, name)
            yield from ((name, text) for text in ((value,) if isinstance(value, str) else value))


# -- writing --------------------------------------------------------------------------------------


def changed(asked: object, resolved: object) -> dict[str, object]:
    """{setting: value} of those that became something else. Both: dataclasses of concerns."""
    found = {}
    for f in fields(asked):
        before, after = getattr(asked, f.name), getattr(resolved, f.name)
        values = {g.name: getattr(after, g.name) for g in fields(after)}
        found |= {name: v for name, v in values.items() if v != getattr(before, name)}
    return found


def to_text(asked: object, resolved: object, run: Path, files: dict[str, str]) -> str:
    """config.toml of a run in `run`. files: name as given -> absolute path."""
    became = changed(asked, resolved)
    lines = [options.to_toml(asked), _ABOUT_RESOLVED, "[resolved]"]
    lines += [f"{name} = {as_toml(value)}" for name, value in became.items()]
    lines += ["", _ABOUT_STARTED, "[started]", f"run = {as_toml(os.path.abspath(run))}"]
    lines += ["[started.files]", *(f"{as_toml(k)} = {as_toml(v)}" for k, v in files.items()), ""]
    return "\n".join(lines)


def to_show(text: str) -> str:
    """The text of a config.toml without where things lie on this machine: of files the names."""
    try:
        started = tomllib.loads(text).get("started", {})
    except ValueError:  # not ours
        return text
    shown = text.partition(f"{_ABOUT_STARTED}\n")[0]
    places = [started.get("run", ""), *started.get("files", {}).values()]
    for place in sorted(filter(None, places), key=len, reverse=True):
        text, name = as_toml(place)[:-1], as_toml(os.path.basename(place))[:-1]
        shown = shown.replace(text, name)  # both begin with the quote that begins the value
    return shown
