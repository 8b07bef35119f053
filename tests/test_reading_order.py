"""Imports point one way: from a folder to those above it in the order of reading, in no circle."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import deepsynth_min

PACKAGE = Path(deepsynth_min.__file__).parent
# The way of the data through the package; a folder knows those above it.
ORDER = (
    "errors other_names options recipes config_file data_settings settings style_json command_line "
    "files corpus pages model tuning data evaluation reports inspection training runs planning "
    "publish tiny_reader app_parts"
).split()
COMMANDS = "commands"  # the files at the top that are run; they know everybody, nobody knows them


def modules(package: Path) -> dict[str, str]:
    """Dotted name -> source text, of every file of a package."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)
        found[name] = path.read_text(encoding="utf-8")
    return found


def imported(name: str, text: str, is_package: bool, known: set[str]) -> set[str]:
    """The modules of the package that a module imports, at its top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        base = name.split(".")
        base = base[: len(base) - node.level + (1 if is_package else 0)]
        base += node.module.split(".") if node.module else []
        for alias in node.names:
            inner = ".".join([*base, alias.name])
            found.add(inner if inner in known else ".".join(base))
    return found & known


def graph(package: Path) -> dict[str, set[str]]:
    texts = modules(package)
    return {
        name: imported(name, text, (package / name.replace(".", "/")).is_dir(), set(texts))
        for name, text in texts.items()
    }


def place(name: str) -> int:
    top = name.split(".")[0]
    return ORDER.index(top) if top in ORDER else len(ORDER)


def upward(imports: dict[str, set[str]]) -> list[str]:
    """The imports that break the order, each in words."""
    wrong = []
    for name, others in imports.items():
        for other in sorted(others):
            if place(other) > place(name):
                wrong.append(f"{name} imports {other}, which stands below it")
            elif place(other) == len(ORDER) and other != name:
                wrong.append(f"{name} imports the command {other}")
    return wrong


def assert_no_circle(imports: dict[str, set[str]]) -> None:
    TopologicalSorter({n: o - {n} for n, o in imports.items()}).prepare()


def test_every_folder_has_its_place_in_the_order():
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert folders <= set(ORDER)


def test_no_module_imports_one_that_stands_below_it():
    assert upward(graph(PACKAGE)) == []


def test_no_modules_import_each_other():
    assert_no_circle(graph(PACKAGE))


@pytest.mark.parametrize(
    ("file", "line", "complaint"),
    [
        ("model/norm.py", "from ..training.optim import x", "model.norm imports training.optim"),
        ("errors.py", "from .settings import Settings", "errors imports settings"),
        ("data/row.py", "from .. import train", "data.row imports train"),
        ("evaluate.py", "from .generate import Reader", "evaluate imports the command generate"),
    ],
)
def test_a_planted_import_against_the_order_is_found(tmp_path, file, line, complaint):
    for path in PACKAGE.rglob("*.py"):
        copy = tmp_path / path.relative_to(PACKAGE)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    with open(tmp_path / file, "a", encoding="utf-8") as planted:
        planted.write(f"\n\ndef _late():\n    {line}\n")
    assert [found for found in upward(graph(tmp_path)) if found.startswith(complaint)]


def test_a_planted_circle_within_a_folder_is_found(tmp_path):
    (tmp_path / "pages").mkdir()
    (tmp_path / "pages" / "a.py").write_text("from .b import x\n", encoding="utf-8")
    (tmp_path / "pages" / "b.py").write_text("from .a import y\n", encoding="utf-8")
    with pytest.raises(CycleError):
        assert_no_circle(graph(tmp_path))


def test_no_file_is_longer_than_a_reader_bears():
    long = {
        path.name: lines
        for path in PACKAGE.rglob("*.py")
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > 320
    }
    assert not long
