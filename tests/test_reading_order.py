"""Imports point upstream: the package's docstring lists the modules in the order of reading."""

import re
from pathlib import Path

import deepsynth_min

PACKAGE = Path(deepsynth_min.__file__).parent
TABLE = deepsynth_min.__doc__.split("\n\n", 2)[2]
ORDER = re.findall(r"\w+", re.sub(r"(?m)^\S.*?  +", "", TABLE))


def imported(module: str) -> set[str]:
    """Modules of the package that a module imports, wherever in it, but for its command line."""
    text = (PACKAGE / f"{module}.py").read_text(encoding="utf-8").split("if __name__ ==")[0]
    names = set(re.findall(r"(?m)^\s*from \.(\w+) import", text))
    for line in re.findall(r"(?m)^\s*from \. import (.*)$", text):
        names |= {name.split(" as ")[0].strip() for name in line.split(",")}
    return names & set(ORDER)


def test_every_module_is_in_the_list_once():
    modules = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    assert set(ORDER) == modules and len(ORDER) == len(modules)


def test_no_module_imports_one_that_stands_below_it():
    places = {module: place for place, module in enumerate(ORDER)}
    wrong = [f"{module} imports {other}" for module in ORDER for other in imported(module)
             if places[other] > places[module]]  # fmt: skip
    assert wrong == []
