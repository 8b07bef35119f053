"""Nothing in the package unpickles, and what is wrong for all processes is said once."""

from pathlib import Path

import pytest
from commands import TRAIN, torchrun, words

import deepsynth_min


@pytest.mark.slow
def test_what_is_wrong_for_all_processes_is_said_once(tmp_path):
    options = words("--data none.jsonl --out {}", tmp_path / "r")
    done = torchrun(3, *TRAIN, *options)
    assert done.stderr.count("error: none.jsonl: no such file") == 1
    assert done.returncode == 1


def test_nothing_in_the_package_unpickles(tmp_path):
    package = Path(deepsynth_min.__file__).parent
    for path in package.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        for word in (
            "torch.load",
            "import pickle",
            "allow_pickle=True",
            "yaml.load",
            "eval(",
            "exec(",
        ):
            assert f" {word}" not in text and f"({word}" not in text, (path.name, word)
