"""A disk that takes no more, whatever is written: one line that names it, and nothing half."""

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from commands import words
from full_disk import full_disk

from deepsynth_min import evaluate, generate, train
from deepsynth_min.errors import exit_code
from deepsynth_min.files.disk import append_whole, check_file, write_text, writing
from deepsynth_min.files.index import Fault
from deepsynth_min.runs.left_out import LeftOut
from deepsynth_min.settings import DataSettings
from deepsynth_min.training.distributed import World

COMMANDS = [
    ("corpus.__main__", "--split val --out {}/rows.jsonl"),
    ("render", "{}/in.txt --out {}/pages"),
    ("render", "--data {}/in.jsonl --to {}/pages.parquet"),
    ("check", "--data {}/in.jsonl --workers 1 --html {}/check.html"),
    ("report", "{}/run --out {}/report.html"),
    ("tokenizer", "--out {}/tokenizer"),
]


@pytest.mark.parametrize("name, given", COMMANDS)
def test_every_command_names_what_it_could_not_write(tmp_path, capsys, name, given):
    row = {"text": "Some words on a page.", "summary": "Some words."}
    (tmp_path / "in.txt").write_text("Some words on a page. " * 500)
    (tmp_path / "in.jsonl").write_text((json.dumps(row) + "\n") * 200)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text("")
    given = words(given.replace("{}", str(tmp_path)))
    with full_disk(2000):
        code = import_module(f"deepsynth_min.{name}").main(given)
    error = capsys.readouterr().err.splitlines()[-1]
    assert code == 2 and error.startswith("error: ") and error.endswith("File too large")
    assert given[-1] in error
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    inputs = {"in.txt", "in.jsonl", "metrics.jsonl"}
    parts = {"plan.json", "part-0000000.partial"}  # of a table, with which it goes on
    assert {path.name for path in files} <= inputs | parts


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("run") / "r"
    options = "--model tiny --max-steps 1 --batch-size 2 --val-samples 1 --lr 1e-6 --out {}"
    assert train.main([*words(options, out), "--answer-samples", "0"]) == 0
    return out


def test_answers_that_were_written_are_whole_and_the_next_run_goes_on(trained, tmp_path, capsys):
    out, given = tmp_path / "out.jsonl", words("--run {} --max-new-tokens 3", trained)
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text("Some words.")
    given += [*words("--batch-size 1 --out {}", out), *map(str, sorted(tmp_path.glob("*.txt")))]
    with full_disk(350):
        assert generate.main(given) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error == f"error: --out {out}: File too large"
    before = out.read_text("utf-8")
    assert before.endswith("\n") and 1 <= before.count("\n") < 3
    assert generate.main([*given, "--resume"]) == 0
    lines = out.read_text("utf-8").splitlines()
    assert [Path(json.loads(line)["input"]).stem for line in lines] == ["a", "b", "c"]
    assert out.read_text("utf-8").startswith(before)


def test_figures_are_printed_even_if_the_answers_cannot_be_written(trained, tmp_path, capsys):
    out = tmp_path / "answers.jsonl"
    given = words("--run {} --max-new-tokens 3 --ablation-samples 0 --out {}", trained, out)
    with full_disk(50):
        assert evaluate.main(given) == 2
    printed, errors = capsys.readouterr()
    assert "loss" in json.loads(printed) and not out.exists()
    assert errors.splitlines()[-1] == f"error: --out {out}: File too large"


@pytest.mark.parametrize("where", ["none/a.jsonl", "", "a\0b"])
def test_a_place_where_nothing_can_be_written_is_refused_before_the_work(trained, where, capsys):
    for command, more in ((evaluate, []), (generate, ["none.txt"])):
        given = words("--run {} --out {}", trained, f"{trained}/{where}")
        assert command.main([*given, *more]) == 2
        printed, errors = capsys.readouterr()
        assert errors.startswith("error: --out") and errors.count("\n") == 1 and not printed


def test_a_line_is_appended_whole_or_not_at_all(tmp_path):
    with open(tmp_path / "lines", "ab", buffering=0) as file:
        append_whole(file, "one\n")
        with full_disk(100), pytest.raises(OSError, match="too large"):
            append_whole(file, "x" * 200 + "\n")
        append_whole(file, json.dumps("not UTF-8: \udcff", ensure_ascii=False) + "\n")
    one, two = (tmp_path / "lines").read_text("utf-8").splitlines()
    assert one == "one" and json.loads(two) == "not UTF-8: \udcff"


def test_a_text_is_replaced_whole_or_not_at_all(tmp_path):
    write_text(tmp_path / "a", "before")
    with full_disk(100), pytest.raises(OSError, match="too large"):
        write_text(tmp_path / "a", "x" * 200)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "before"


def test_rows_left_out_that_cannot_be_listed_cost_the_list_and_not_the_run(tmp_path, capsys):
    faults = [Fault(f"rows.jsonl:{n}", "not JSON", "not JSON") for n in range(20)]
    world, settings = World(0, 1, None), DataSettings(on_bad_row="skip")
    with full_disk(100):
        LeftOut(tmp_path, faults, 10_000, settings, world)
    assert "skipped.jsonl: rows that are left out could not be listed" in capsys.readouterr().err


def test_standard_output_on_a_full_disk_is_one_line(tmp_path):
    (tmp_path / "in.txt").write_text("Some words.")
    command = [sys.executable, "-m", "deepsynth_min.render", tmp_path / "in.txt", "--out", tmp_path]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert done.stderr == "error: could not be written: No space left on device\n"


def test_any_other_error_of_the_system_keeps_its_traceback(tmp_path):
    with pytest.raises(FileNotFoundError):
        exit_code(lambda _: open(tmp_path / "none"), [])


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(ValueError, match="--out .*: is a folder"):
        check_file("--out", tmp_path)
    with pytest.raises(ValueError, match="--out .*: Is a directory"), writing("--out", tmp_path):
        open(tmp_path, "w")
