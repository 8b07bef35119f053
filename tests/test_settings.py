"""Settings: one declaration for command line, file and help; every mistake is one line."""

import re
import tomllib
from dataclasses import fields

import pytest

from deepsynth_min import command_line, export, settings as S
from deepsynth_min.errors import UserError
from deepsynth_min.model.shape.presets import PRESETS
from deepsynth_min.options import option_of, to_toml
from deepsynth_min.other_names import OTHER_NAMES
from deepsynth_min.pages.modes import PageFormat, page_side


def test_what_a_run_writes_is_what_it_reads(tmp_path):
    given = command_line.parse(
        [
            "--lr",
            "0.125",
            "--font",
            'a "quoted".ttf',
            "ü.otf",
            "--images-anywhere",
            "--tune",
            "all",
            "--instruction",
            "Was steht da?\nKurz.\x7f",
        ]
    )
    path = tmp_path / "config.toml"
    path.write_text(to_toml(given), encoding="utf-8")
    assert command_line.load(path) == given
    assert tomllib.loads(path.read_text("utf-8"))["optim"]["lr"] == 0.125


def test_the_command_line_wins_over_the_file_and_the_file_over_the_default(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text("[optim]\nlr = 0.5\nbatch_size = 3\n")
    settings = command_line.parse(["--config", str(path), "--batch-size", "7"])
    assert (settings.optim.lr, settings.optim.batch_size, settings.optim.seed) == (0.5, 7, 0)


def test_every_setting_has_an_option_and_a_help_text(capsys):
    with pytest.raises(SystemExit) as ended:
        command_line.parse(["--help"])
    shown = capsys.readouterr().out
    assert ended.value.code == 0
    for concern in vars(S.Settings()).values():
        for f in fields(concern):
            assert "--" + f.name.replace("_", "-") in shown
            assert len(f.metadata["help"]) > 10


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--bach-size", "3"], "unknown setting --bach-size; did you mean --batch-size?"),
        (["--batch-size", "x"], "--batch-size: 'x' is not a whole number"),
        (["--lr", "fast"], "--lr: 'fast' is not a number"),
        (["--accumulate", "0"], "--accumulate: 0 is below 1"),
        (["--lr", "nan"], "--lr: nan is not a number"),
        (["--lr", "inf"], "--lr: inf is not a number"),
        (["--tune", "most"], "invalid choice: 'most'"),
        (["--val-fraction", "1.5"], "--val-fraction: 1.5 is above 0.9"),
        (["--lr", "9" * 400], "--lr: inf is not a number"),
        (["--max-steps", "9" * 30], "--max-steps: 9999"),
        (["--max-steps", "9" * 5000], "9' is not a whole number"),
        (["--prefetch", "1025"], "--prefetch: 1025 is above 1024"),
        (["--accumulate", "65537"], "--accumulate: 65537 is above 65536"),
        (["--batch-size", "65537"], "--batch-size: 65537 is above 65536"),
        (["--threads", "1025"], "--threads: 1025 is above 1024"),
        (["--workers", "257"], "--workers: 257 is above 256"),
        (["--timeout", "9" * 20], "--timeout: 99999"),
        (["--instruction", "\ud800"], "--instruction: '\\ud800' is not valid text"),
        (["--font", "a.ttf", "b\0.ttf"], "is not valid text"),
        (["--out", "a\0b"], "--out: 'a\\x00b' is not valid text"),
        (["--config", "a\0b"], "not a possible file name"),
        (["--config", "/dev/zero"], "--config /dev/zero: not a regular file"),
        (["--config", "x" * 5000], "File name too long"),
        (["--config", "/no/such.toml"], "/no/such.toml: no such file"),
    ],
)
def test_a_wrong_argument_is_one_line_that_names_it(arguments, message):
    with pytest.raises(UserError) as raised:
        command_line.parse(arguments)
    assert message in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "text, message",
    [
        (
            "[optim]\nlearning_rate = 1.0\n",
            "c.toml: unknown setting [optim] learning_rate; here it is --lr ([optim] lr)",
        ),
        ("[optim]\noutput_dir = 'x'\n", "output_dir; here it is --out ([run] out)"),
        ("[optim]\nbach_size = 1\n", "did you mean --batch-size? ([optim] batch_size)"),
        ("[optim]\nkeep = 1\n", "unknown setting [optim] keep; it stands in [run]"),
        ("[optim]\nzzz = 1\n", "unknown setting [optim] zzz"),
        ("[optimiser]\nlr = 1.0\n", "unknown table or key 'optimiser'"),
        ("lr = 1.0\n", "unknown table or key 'lr'"),
        ("[optim]\nlr = 'big'\n", "--lr: 'big' is not a number"),
        ("[optim]\nbatch_size = 2.5\n", "--batch-size: 2.5 is not a whole number"),
        ("[optim]\nbatch_size = true\n", "--batch-size: True is not a whole number"),
        ("[page]\nfont = ['one.ttf', 3]\n", "--font: ['one.ttf', 3] is not a list of strings"),
        ("[optim\n", "c.toml"),
        ("[optim]\nlr = 1" + "0" * 400 + "\n", "--lr: int too large"),
        ("[optim]\nlr = 1" + "0" * 5000 + "\n", "c.toml: not TOML"),
        ("[optim]\nlr = 0x1" + "0" * 5000 + "\n", "--lr: "),
        ("[page]\nfont = [0x1" + "0" * 5000 + "]\n", "--font: "),
        ("[optim]\nlr = " + "[" * 50_000 + "\n", "c.toml: not TOML"),
        ("[optim]\nlr = 2020-01-01\n", "is not a number"),
        ("[data]\ninstruction = 'a\0b'\n", "c.toml"),
    ],
)
def test_a_wrong_file_is_one_line_that_names_it(tmp_path, text, message):
    path = tmp_path / "c.toml"
    path.write_text(text)
    with pytest.raises(UserError) as raised:
        command_line.parse(["--config", str(path)])
    assert message in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("mode, side", [("tiny", 512), ("base", 1024), ("256", 256), ("auto", 320)])
def test_a_mode_is_a_name_or_a_multiple_of_64(mode, side):
    assert page_side(mode, PageFormat(320)) == side


@pytest.mark.parametrize(
    "mode, side", [("auto", 1024), ("base", 1024), ("gundam", 1024), ("768", 768), ("1024", 1024)]
)
def test_modes_of_a_model_with_learned_queries_are_the_sizes_that_it_has_them_for(mode, side):
    assert page_side(mode, PRESETS["deepseek-ocr-2"].page_format) == side


@pytest.mark.parametrize("mode, px", [("tiny", 512), ("large", 1280), ("832", 832)])
def test_other_modes_of_such_a_model_are_refused_with_those_that_it_reads(mode, px):
    known = (
        f"--mode {mode}: pages of {px} px; this model reads pages of 768 and 1024 px, and gundam"
    )
    with pytest.raises(UserError, match=known):
        page_side(mode, PRESETS["deepseek-ocr-2"].page_format)


@pytest.mark.parametrize(
    "mode", ["100", "0", "-64", "huge", "64.0", "8256", "", "٦٤", "²", "9" * 5000]
)
def test_any_other_mode_is_an_error(mode):
    with pytest.raises(UserError, match="--mode"):
        page_side(mode, PageFormat(256))


NAMES_ELSEWHERE = {
    "--learning-rate": "--lr",
    "--num-train-epochs": "--epochs",
    "--num_epochs": "--epochs",
    "--gradient-accumulation-steps": "--accumulate",
    "--output_dir": "--out",
    "--bf16": "--precision bf16",
    "--fp16": "--precision fp16",
    "--lora-r": "--lora-rank",
    "--per_device_train_batch_size": "--batch-size (per process",
    "--max-length": "--max-pages N, with --on-too-long",
    "--max_seq_length": "--max-pages N, with --on-too-long",
    "--warmup-steps": "--warmup-ratio",
    "--save-steps": "--save-every",
    "--eval-steps": "--eval-every",
    "--logging-steps": "--log-every",
    "--save-total-limit": "--keep",
    "--dataloader-num-workers": "--workers",
    "--gradient-checkpointing": "--checkpoint-layers N",
    "--load-in-4bit": "--tune qlora",
    "--report-to": "--tensorboard or --wandb PROJECT",
    "--resume-from-checkpoint": "--resume",
    "--max-grad-norm": "--clip",
    "--model_name_or_path": "--model",
    "--dataset": "--data",
    "--train-file": "--data",
    "--deepspeed": "--shard",
    "--fsdp": "--shard",
}


@pytest.mark.parametrize("name, here", NAMES_ELSEWHERE.items())
def test_names_of_other_trainers_are_known(name, here):
    with pytest.raises(UserError) as raised:
        command_line.parse([name, "1"])
    assert str(raised.value).startswith(f"unknown setting {name}; here it is {here}")


def test_a_schedule_that_cannot_be_chosen_is_explained():
    with pytest.raises(UserError, match="--lr-scheduler-type; the rate always falls as a cosine: "):
        command_line.parse(["--lr-scheduler-type", "linear"])


def test_a_command_suggests_only_options_that_it_has(capsys):
    assert export.main(["--run", "a", "--to", "b", "--learning-rate", "1"]) == 2
    assert capsys.readouterr().err == "error: unknown setting --learning-rate\n"


def test_whatever_other_names_mean_is_a_setting_and_none_of_them_is():
    known = {option_of(f.name) for concern in vars(S.Settings()).values() for f in fields(concern)}
    for name, here in OTHER_NAMES.items():
        meant = re.findall(r"--[a-z0-9-]+", here)
        assert meant and known.issuperset(meant), name
        assert f"--{name}" not in known
