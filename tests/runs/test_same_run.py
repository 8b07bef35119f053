"""A resumed run is the same run: every setting may change then, or is refused in one sentence."""

import json
import re
import shutil
from dataclasses import fields

import pytest
from adapter_runs import run, write_base, write_rows
from commands import words
from run_files import lines, losses, newest
from small_model import SMALL

from deepsynth_min import command_line, options, settings as S, train
from deepsynth_min.options import choices_of, option_of
from deepsynth_min.pages.fonts.font_file import font_bytes
from deepsynth_min.training.checkpoint import write_manifest

FIELDS = [f for concern in S.CONCERNS.values() for f in fields(concern)]
FREE = [f.name for f in FIELDS if not f.metadata["is_fixed"]]
FIXED = [f.name for f in FIELDS if f.metadata["is_fixed"]]
# Other values than those of the run, where the type alone does not give one; FOLDER is the test's.
OTHERS = {
    "model": "tiny-reader",
    "mode": "192",
    "data": "FOLDER/other.jsonl",
    "val_data": "FOLDER/other.jsonl",
    "main_font": "FOLDER/font.ttf",
    "font": "FOLDER/font.ttf",
    "paper": "200",
    "vary": "font_size=9:12",
    "unseen_style": "font_size=30",
    "adapter": "FOLDER/first/checkpoints/step-000002",
    "lora_targets": "attention",
    "weights": "bf16",
    "val_fraction": "0.3",
    "balance": "0.5",
    "feature_cache": "memory",
    "best": "reads/blank --ablation-samples 2",
    "repeat_allow": "a",
    "data_split": "train",
    "text_field": "text",
    "summary_field": "summary",
    "max_steps": "4",
    "device": "cpu",
    "mirror": "file://FOLDER/mirror",
    "lora_plus_ratio": "2",
    "images_anywhere": "",
    "epochs": "0.5",  # of 11 rows: 3 steps
}
# In a test of its own; uploads; extras; takes minutes to compile; say which run it is.
ELSEWHERE = (
    "batch_size",
    "accumulate",
    "global_batch",
    "push_to_hub",
    "private",
    "tensorboard",
    "wandb",
)
ELSEWHERE += ("compile", "out", "resume")
ELSEWHERE += ("lr_projector", "lr_encoder")  # of what that run does not train


def other(f, folder) -> list[str]:
    """The option and a value that the run does not have."""
    if f.name in OTHERS:
        return [option_of(f.name), *OTHERS[f.name].replace("FOLDER", str(folder)).split()]
    if f.type is bool:
        return [option_of(f"no_{f.name}" if f.default else f.name)]
    if choices := choices_of(f.type):
        return [option_of(f.name), next(choice for choice in choices if choice != f.default)]
    values = {int: f.default + 2, float: f.default + 0.25} if f.type in (int, float) else {}
    value = values.get(f.type, "other")
    low, high = f.metadata["limits"]
    return [option_of(f.name), str(value if value == "other" else min(max(value, low), high))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of two steps, `first`, over `base`; other rows, a font."""
    folder = tmp_path_factory.mktemp("same")
    write_base(folder / "base", SMALL)
    rows = write_rows(folder / "rows.jsonl").read_text("utf-8").splitlines(keepends=True)
    (folder / "other.jsonl").write_text("".join(rows[:7]), "utf-8")
    (folder / "font.ttf").write_bytes(font_bytes("figo"))
    run(folder, "--tune", "lora", "--max-steps", "2", out="first")
    return folder


@pytest.fixture
def stopped(folder, tmp_path):
    """A copy of it, which a test may go on with."""
    return shutil.copytree(folder / "first", tmp_path / "run")


def go_on(out, *arguments) -> int:
    return train.main(["--out", str(out), "--resume", "auto", *map(str, arguments)])


def refusal(capsys, out, *arguments) -> str:
    """Goes on with a run, which must be refused in one line and leave it as it is."""
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert go_on(out, *arguments) == 2
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1, error
    assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    return error[0]


def test_every_setting_says_whether_a_resumed_run_must_keep_it():
    assert [f.name for f in FIELDS if f.metadata["is_fixed"] is None] == []


@pytest.mark.parametrize("name", [name for name in FREE if name not in ELSEWHERE])
def test_a_free_setting_changes_and_the_run_goes_on(folder, stopped, name):
    given = other(next(f for f in FIELDS if f.name == name), folder)
    steps = [] if name in ("max_steps", "epochs") else ["--max-steps", "3"]
    assert go_on(stopped, *given, *steps) == 0
    assert "step-000003" in newest(stopped).name or name == "max_steps"
    asked = command_line.load(stopped / "config.toml", is_resolved=False)
    values = {n: v for part in vars(asked).values() for n, v in vars(part).items()}
    shown = {option_of(name), option_of(f"no_{name}"), *map(str, [values[name]])}
    assert set(given) & shown


@pytest.mark.parametrize("name", FIXED)
def test_a_fixed_setting_is_refused_in_one_sentence(folder, stopped, capsys, name):
    given = other(next(f for f in FIELDS if f.name == name), folder)
    if name == "revision":  # of a directory there is none: its weights are the same
        assert go_on(stopped, *given, "--max-steps", "3") == 0
        return
    error = refusal(capsys, stopped, *given, "--max-steps", "3")
    assert option_of(name) in error or option_of(f"no_{name}") in error
    if name not in ("data_revision", "val_revision", "image_field", "instruction_field"):
        assert f"--out {stopped}: was trained with " in error and ", now " in error
        assert error.endswith("another --out without --resume to start a new run")


def test_all_differences_stand_in_one_sentence(stopped, capsys):
    given = words("--instruction {} --lora-rank 4 --kerning --batch-size 4", "Free OCR.")
    assert refusal(capsys, stopped, *given) == (
        f"error: --out {stopped}: was trained with --instruction 'Summarize the document in one "
        "sentence.', now 'Free OCR.'; --no-kerning, now --kerning; --lora-rank 16, now 4; "
        "--lora-alpha 32.0, now 8.0; a global batch (--batch-size x --accumulate x processes) of "
        "2, now 4; give the old values, or another --out without --resume to start a new run"
    )


def test_the_global_batch_may_be_divided_otherwise(folder, stopped, capsys):
    assert go_on(stopped, *words("--batch-size 1 --accumulate 2 --max-steps 3")) == 0
    assert "a global batch" in refusal(capsys, stopped, "--accumulate", "1")


def test_a_base_that_has_moved_is_the_same_base_and_one_that_changed_is_not(
    folder, stopped, tmp_path, capsys
):
    moved = shutil.copytree(folder / "base", tmp_path / "moved")
    assert go_on(stopped, "--model", moved, "--max-steps", 3) == 0
    error = refusal(capsys, stopped, "--model", write_base(tmp_path / "new", SMALL, seed=5))
    assert f"--model '{moved}', now '{tmp_path / 'new'}'" in error
    (moved / "tokenizer.json").write_text((moved / "tokenizer.json").read_text("utf-8") + " ")
    changed = "--model .*moved', of which the tokenizer or configuration have changed; give"
    assert re.search(changed, refusal(capsys, stopped))
    shutil.copyfile(folder / "base" / "tokenizer.json", moved / "tokenizer.json")
    shutil.copyfile(tmp_path / "new" / "model.safetensors", moved / "model.safetensors")
    assert re.search("--model .*moved', of which the weights", refusal(capsys, stopped))


def test_rows_that_have_moved_are_the_same_and_changed_ones_are_not(
    folder, stopped, tmp_path, capsys
):
    moved = shutil.copyfile(folder / "rows.jsonl", tmp_path / "moved.jsonl")
    assert go_on(stopped, "--data", moved, "--max-steps", 3) == 0
    moved.write_text(moved.read_text("utf-8").replace(" the ", " The ", 1), "utf-8")
    assert f"--data {moved}, of which the rows have changed" in refusal(capsys, stopped)


def test_a_checkpoint_of_another_directory_is_compared_too(folder, tmp_path, capsys):
    checkpoint = newest(folder / "first")
    alone = shutil.copytree(checkpoint, tmp_path / "alone")  # without the run around it
    given = [folder / "base", folder / "rows.jsonl", alone]
    given = words("--model {} --data {} --tune lora --batch-size 2 --resume {}", *given)
    given += words("--val-samples 2 --answer-samples 0 --ablation-samples 0 --max-steps 3")
    assert train.main([*given, "--lora-rank", "4", "--out", str(tmp_path / "new")]) == 2
    error = capsys.readouterr().err
    assert f"--resume {alone}: was trained with --lora-rank 16, now 4" in error
    assert not (tmp_path / "new").exists()
    assert train.main([*given, "--out", str(tmp_path / "new")]) == 0
    assert [line["step"] for line in lines(tmp_path / "new", "train")] == [3]


def as_before(run) -> None:
    """Makes a run what one of before is: settings resolved in config.toml, less in checkpoints."""
    config = run / "config.toml"
    config.write_text(options.to_toml(command_line.load(config)), "utf-8")
    for checkpoint in (run / "checkpoints").iterdir():
        facts = json.loads((checkpoint / "training.json").read_text())
        del facts["settings"], facts["contents"]
        (checkpoint / "training.json").write_text(json.dumps(facts))
        (checkpoint / "manifest.json").unlink()
        write_manifest(checkpoint)


def test_a_run_of_before_is_compared_as_far_as_it_is_known(folder, stopped, tmp_path, capsys):
    as_before(stopped)
    moved = shutil.copytree(folder / "base", tmp_path / "moved")
    new = write_base(tmp_path / "new", SMALL, seed=5)
    for given in (
        ["--model", new],
        ["--model", "tiny"],
        ["--lora-rank", 4],
        ["--precision", "bf16"],
    ):
        assert f"was trained with {given[0]} " in refusal(capsys, stopped, *given)
    assert go_on(stopped, "--model", moved, "--max-steps", 3) == 0
    assert losses(stopped, "train")[:2] == losses(folder / "first", "train")


def test_a_checkpoint_of_before_without_its_run_knows_its_base(folder, stopped, tmp_path, capsys):
    as_before(stopped)
    alone = shutil.copytree(newest(stopped), tmp_path / "alone")
    given = words("--data {} --tune lora --batch-size 2 --resume {}", folder / "rows.jsonl", alone)
    given += ["--out", str(tmp_path / "new"), "--model"]
    assert train.main([*given, str(write_base(tmp_path / "new-base", SMALL, seed=5))]) == 2
    assert "--model" in capsys.readouterr().err
    assert train.main([*given, str(folder / "base"), "--max-steps", "3"]) == 0


def test_a_run_without_a_step_left_keeps_its_config_file(stopped):
    before = (stopped / "config.toml").read_bytes()
    assert go_on(stopped, "--log-every", "7") == 0
    assert (stopped / "config.toml").read_bytes() == before


def test_what_is_not_given_is_as_in_the_run(folder, stopped, tmp_path):
    """The same steps as of a run that was never stopped."""
    whole = run(folder, "--tune", "lora", "--max-steps", "4", out="whole")
    again = shutil.copytree(whole, tmp_path / "again")
    shutil.rmtree(newest(again))
    assert go_on(again) == 0 and losses(again, "train") == losses(whole, "train")
    asked = command_line.load(again / "config.toml", is_resolved=False)
    assert (asked.optim.max_steps, asked.model.tune) == (4, "lora")


def test_the_best_checkpoint_is_of_one_figure(stopped):
    given = words("--best reads/blank --ablation-samples 2 --max-steps 3")
    facts = json.loads((newest(stopped) / "training.json").read_text())
    assert facts["best_metric"] == "loss" and facts["score"] is not None
    assert go_on(stopped, *given) == 0 and go_on(stopped) == 0
    assert (stopped / "best").read_text() == "step-000003\n"
