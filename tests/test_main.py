"""`python -m deepsynth_min` lists the commands."""

import subprocess
import sys
from pathlib import Path

import deepsynth_min

START = [sys.executable, "-m", "deepsynth_min"]


def test_every_command_is_listed_with_what_it_does():
    done = subprocess.run([*START, "--help"], capture_output=True, text=True)
    listed = [line for line in done.stdout.splitlines() if line.startswith("python -m")]
    folder = Path(deepsynth_min.__file__).parent
    ends = "sys.exit(main())\n"
    run = {path.stem for path in folder.glob("*.py") if path.read_text("utf-8").endswith(ends)}
    assert {line.split()[2].split(".")[1] for line in listed} == run and "train" in run
    assert all(len(line.split()) > 5 for line in listed) and done.returncode == 0


def test_a_command_given_as_a_word_is_told_how_it_is_said():
    done = subprocess.run([*START, "train"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: train: say python -m deepsynth_min.NAME, NAME one of ")
