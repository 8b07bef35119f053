"""Recipes: settings that serve one purpose on one kind of machine, by name (--recipe NAME).

In: a name. Out: the TOML file NAME.toml beside this one, which config_file.py reads like that of
--config; or, for `--recipe list`, each name with what it is for.

The one idea: a recipe is a file to be read. It opens with what it is for, what it needs and what to
expect on whose word, and sets nothing but what it means to set; where it stands among all that
speaks is said in command_line.py.
"""

import difflib
from itertools import takewhile
from pathlib import Path

from ..errors import UserError

FOLDER = Path(__file__).parent


def names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def find(name: str) -> Path:
    """Where a recipe's file is. Raises UserError for a name that none has."""
    if name in names():
        return FOLDER / f"{name}.toml"
    close = difflib.get_close_matches(name, names(), 1, cutoff=0.4)
    hint = f"; did you mean {close[0]}?" if close else ""
    raise UserError(f"--recipe {name}: no such recipe{hint} (--recipe list names all)")


def purpose(name: str) -> str:
    """The first paragraph of the recipe's comments, on one line."""
    lines = find(name).read_text(encoding="utf-8").splitlines()
    return " ".join(line[2:] for line in takewhile(lambda line: line.startswith("# "), lines))


def listing() -> str:
    """What --recipe list prints: each name, and below it what it is for."""
    return "\n\n".join(f"{name}\n  {purpose(name)}\n  {find(name)}" for name in names())
