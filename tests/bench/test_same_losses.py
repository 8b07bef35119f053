"""bench/same_losses.py on a copy of this checkout: alike, apart by a planted change, and said."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PARTS = "setup.py pyproject.toml csrc deepsynth_min bench".split()
SUM = "            total += loss\n"


@pytest.fixture
def checkout(tmp_path):
    """The files as they lie here, as the one commit of a repository."""
    for part in PARTS:
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
        copy(ROOT / part, tmp_path / part)
    (tmp_path / ".gitignore").write_text("*.so\n__pycache__/\n")
    name = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    for words in (["init", "-q"], ["add", "-A"], [*name, "commit", "-q", "-m", "all"]):
        subprocess.run(["git", "-C", tmp_path, *words], check=True)
    return tmp_path


def same_losses(checkout: Path) -> tuple[int, dict, str]:
    command = [sys.executable, "bench/same_losses.py", "HEAD", "--only", "tiny/decoder"]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout.splitlines()[-1])["tiny decoder"], done.stdout


@pytest.mark.slow
def test_a_planted_change_of_a_millionth_is_found_unless_a_file_says_why(checkout):
    code, found, _ = same_losses(checkout)
    assert (code, found) == (0, {"loss": 0.0, "weights": 0.0, "fails": False})
    loss = checkout / "deepsynth_min" / "model" / "loss.py"
    text = loss.read_text("utf-8")
    assert SUM in text
    loss.write_text(text.replace(SUM, SUM.replace("loss", "loss * (1 + 1e-6)")), "utf-8")
    code, found, printed = same_losses(checkout)
    assert (
        code == 1 and 1e-7 < found["loss"] < 1e-4 and found["weights"] == 0
    )  # gradients as before
    assert "say why in bench/NUMBERS_CHANGED.md" in printed
    with (checkout / "bench" / "NUMBERS_CHANGED.md").open("a") as file:
        file.write("- the loss, by a millionth: to see whether it is found\n")
    assert same_losses(checkout)[0] == 0
