"""A run is started with names relative to a directory, and used from another, or after a move."""

import json
import os
import shutil
import tomllib
from pathlib import Path

import pytest
from adapter_runs import QUICK, write_base, write_rows
from commands import words
from run_files import lines, losses
from small_model import SMALL

from deepsynth_min import command_line, evaluate, export, generate, render, train
from deepsynth_min.pages.fonts.font_file import font_bytes

OPTIONS = words(
    "--model base --data rows.jsonl:1.5 more/rows.jsonl --val-data val.jsonl --tune lora "
    "--main-font font.ttf --font font.ttf@x=1 --adapter first/checkpoints/step-000001 "
    "--feature-cache cache --out runs/a --max-steps 1"
)
VARIED = words(
    "--model tiny --data rows.jsonl --out runs/varied --max-steps 1 "
    "--vary font=font.ttf|figo,invert=0.1 --unseen-style font=other,name.ttf|more/../font.ttf@x=1"
)


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    """A folder `tree` with data, base and a run in it, all named relative to it."""
    tree = tmp_path_factory.mktemp("moved") / "tree"
    (tree / "more").mkdir(parents=True)
    write_base(tree / "base", SMALL)
    write_rows(tree / "rows.jsonl")
    whole = (tree / "rows.jsonl").read_text("utf-8").splitlines(keepends=True)
    (tree / "more" / "rows.jsonl").write_text("".join(whole[:5]), "utf-8")
    (tree / "val.jsonl").write_text("".join(whole[5:9]), "utf-8")
    (tree / "font.ttf").write_bytes(font_bytes("figo"))
    (tree / "font.ttf@x=1").write_bytes(font_bytes("figo"))
    (tree / "other,name.ttf").write_bytes(font_bytes("math"))
    (tree / "text.txt").write_text("A text.", "utf-8")
    before = os.getcwd()
    os.chdir(tree)
    try:
        first = words("--model base --data rows.jsonl --tune lora --out first --max-steps 1")
        assert train.main([*QUICK, *first]) == 0
        assert train.main([*QUICK, *OPTIONS]) == 0
        assert train.main([*QUICK, *VARIED]) == 0
    finally:
        os.chdir(before)
    return tree


def use(run: Path, to: Path, capsys) -> dict:
    """Evaluates, generates, exports, draws and goes on; returns the figures of `evaluate`."""
    capsys.readouterr()
    assert evaluate.main(["--run", str(run)]) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    text = str(run.parents[1] / "text.txt")
    assert generate.main(["--run", str(run), text, "--max-new-tokens", "2"]) == 0
    for name, more in (("adapter", []), ("merged", ["--merge"])):
        assert export.main(["--run", str(run), "--to", str(to / name), *more]) == 0
    rows = ["--data", str(run.parents[1] / "rows.jsonl"), "--to", str(to / "pages.parquet")]
    assert render.main(["--run", str(run), *rows]) == 0
    assert train.main(["--out", str(run), "--resume", "auto", "--max-steps", "2"]) == 0
    assert [line["step"] for line in lines(run, "train")] == [1, 2]
    return figures


def test_a_run_is_used_from_another_directory(started, tmp_path, monkeypatch, capsys):
    tree = shutil.copytree(started, tmp_path / "tree")
    config = tree / "runs" / "a" / "config.toml"  # as if it had been started here
    config.write_text(config.read_text("utf-8").replace(str(started), str(tree)), "utf-8")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    figures = use(tree / "runs" / "a", tmp_path, capsys)
    assert figures["loss"] == pytest.approx(losses(started / "runs" / "a")[-1], abs=1e-6)
    assert list((tree / "cache").iterdir()) and not list(Path().iterdir())


def test_a_run_and_its_data_are_moved_together(started, tmp_path, monkeypatch, capsys):
    tree = shutil.copytree(started, tmp_path / "tree")
    config = tree / "runs" / "a" / "config.toml"
    gone = str(tmp_path / "gone")
    config.write_text(config.read_text("utf-8").replace(str(started), gone), "utf-8")
    monkeypatch.chdir(tmp_path)
    figures = use(Path("tree/runs/a"), tmp_path, capsys)
    assert figures["loss"] == pytest.approx(losses(started / "runs" / "a")[-1], abs=1e-6)
    assert not Path(gone).exists()


def test_a_run_finds_the_fonts_that_its_styles_are_drawn_from(started, tmp_path, monkeypatch):
    tree = shutil.copytree(started, tmp_path / "tree")
    run = tree / "runs" / "varied"
    config = (run / "config.toml").read_text("utf-8").replace(str(started), str(tmp_path / "gone"))
    (run / "config.toml").write_text(config, "utf-8")
    monkeypatch.chdir(tmp_path)
    settings = command_line.load_of_run(run)
    assert settings.augment.vary == (f"font={tree}/font.ttf|figo,invert=0.1",)
    fonts = f"{tree}/other,name.ttf|{tree}/font.ttf@x=1"
    assert settings.evaluation.unseen_style == (f"font={fonts}",)
    assert evaluate.main(["--run", str(run)]) == 0
    assert train.main(["--out", str(run), "--resume", "auto", "--max-steps", "2"]) == 0


def test_in_the_directory_where_it_was_started_names_stay_as_given(started, monkeypatch):
    monkeypatch.chdir(started)
    settings = command_line.load_of_run(Path("runs/a"))
    assert (settings.model.model, settings.data.val_data) == ("base", "val.jsonl")
    assert settings.data.data == ("rows.jsonl:1.5", "more/rows.jsonl")
    monkeypatch.chdir(started.parent)
    settings = command_line.load_of_run(started / "runs" / "a")
    assert settings.data.data == (f"{started}/rows.jsonl:1.5", f"{started}/more/rows.jsonl")
    assert settings.page.font == (f"{started}/font.ttf@x=1",)
    assert settings.adapter.adapter == f"{started}/first/checkpoints/step-000001"


def test_a_hub_id_and_a_preset_are_no_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = write_rows(Path("rows.jsonl")) and "r"
    given = words("--model tiny --data rows.jsonl --tune lora --max-steps 1 --out {}", out)
    assert train.main([*QUICK, *given]) == 0
    started = tomllib.loads(Path(out, "config.toml").read_text("utf-8"))["started"]
    assert started["files"] == {"rows.jsonl": str(tmp_path / "rows.jsonl")}
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    assert evaluate.main(["--run", "../r"]) == 0


@pytest.mark.parametrize(
    ("gone", "command", "option"),
    [
        ("val.jsonl", ["evaluate"], "--val-data"),
        ("base", ["evaluate"], "--model"),
        ("font.ttf", ["evaluate"], "--main-font"),
        ("rows.jsonl", ["train", "--resume", "auto"], "--data"),
        ("base", ["train", "--resume", "auto"], "--model"),
        ("first/checkpoints/step-000001", ["train", "--resume", "auto"], "--adapter"),
    ],
)
def test_what_is_nowhere_is_named_with_where_it_was_looked_for(
    started, tmp_path, monkeypatch, capsys, gone, command, option
):
    tree = shutil.copytree(started, tmp_path / "tree")
    config = tree / "runs" / "a" / "config.toml"
    old = tmp_path / "gone"
    config.write_text(config.read_text("utf-8").replace(str(started), str(old)), "utf-8")
    shutil.rmtree(tree / gone) if (tree / gone).is_dir() else (tree / gone).unlink()
    monkeypatch.chdir(tmp_path)
    commands = {"evaluate": (evaluate, "--run"), "train": (train, "--out")}
    module, run = commands[command[0]]
    assert module.main([run, "tree/runs/a", *command[1:]]) == 2
    said = capsys.readouterr().err.splitlines()
    assert said == [
        f"error: {option} {gone}: not found; looked for at {old / gone} (when the run was started)"
        f" and at {tree / gone} (moved with the run)"
    ]


def test_what_is_given_again_wins(started, tmp_path, capsys):
    tree = shutil.copytree(started, tmp_path / "tree")
    config = tree / "runs" / "a" / "config.toml"
    gone = str(tmp_path / "gone")
    config.write_text(config.read_text("utf-8").replace(str(started), gone), "utf-8")
    for name in ("val.jsonl", "base"):
        (tree / name).rename(tmp_path / name)
    run, data, base = str(tree / "runs" / "a"), str(tmp_path / "val.jsonl"), str(tmp_path / "base")
    assert (
        train.main(
            words("--out {} --resume auto --max-steps 2 --val-data {} --model {}", run, data, base)
        )
        == 0
    )
    assert evaluate.main(["--run", run]) == 0


def test_a_report_names_no_folder_of_the_machine(started):
    report = (started / "runs" / "a" / "report.html").read_text("utf-8")
    assert str(started) not in report and "[started]" not in report
    assert "rows.jsonl" in report and "[resolved]" in report


def test_absolute_names_are_found_after_a_move_and_not_shown(tmp_path, capsys):
    tree = tmp_path / "tree"
    tree.mkdir()
    rows = write_rows(tree / "rows.jsonl")
    given = words("--model tiny --data {} --max-steps 1 --out {}", rows, tree / "r")
    assert train.main([*QUICK, *given]) == 0
    assert str(tmp_path) not in (tree / "r" / "report.html").read_text("utf-8")
    tree.rename(tmp_path / "other")
    assert evaluate.main(["--run", str(tmp_path / "other" / "r")]) == 0
