"""config.toml: what was asked for, what it became, and which of both who takes over."""

import tomllib

import pytest
from adapter_runs import run, write_rows
from commands import words
from run_files import lines

from deepsynth_min import command_line, settings as S, train
from deepsynth_min.errors import UserError
from deepsynth_min.options import to_toml


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """`run`: an epoch of 11 rows over `tiny` with an adapter: 6 steps; nothing else is given."""
    folder = tmp_path_factory.mktemp("config")
    write_rows(folder / "rows.jsonl")
    run(folder, "--model", "tiny", "--tune", "lora", "--lr", "0")
    return folder


def test_a_run_writes_what_was_asked_for_and_what_it_became(folder):
    path = folder / "run" / "config.toml"
    tables = tomllib.loads(path.read_text("utf-8"))
    optim, resolved = tables["optim"], tables["resolved"]
    assert (optim["max_steps"], optim["epochs"], optim["lr"]) == (0, 1.0, 0.0)
    assert resolved == {
        "lora_rank": 16,
        "lora_alpha": 32.0,
        "lora_targets": ["attention+mlp"],
        "max_steps": 6,
        "lr": 0.003125,
        "beams": 1,
    }
    became, asked = command_line.load(path), command_line.load(path, is_resolved=False)
    assert asked == command_line.parse(["--config", str(path)]) != became
    assert (became.optim.max_steps, became.optim.lr, became.generation.beams) == (6, 0.003125, 1)
    path.with_name("again.toml").write_text(to_toml(asked), "utf-8")
    assert command_line.load(path.with_name("again.toml")) == asked


def go(folder, out: str, *arguments) -> S.Settings:
    """Trains with the settings of `run` and others; what they became."""
    config, out = folder / "run" / "config.toml", folder / out
    assert train.main(["--config", str(config), "--out", str(out), *arguments]) == 0
    return command_line.load(out / "config.toml")


def test_half_the_epochs_are_half_the_steps(folder):
    assert go(folder, "half", "--epochs", "0.5").optim.max_steps == 3
    assert lines(folder / "half", "train")[-1]["step"] == 3


def test_what_depends_on_other_settings_is_made_anew(folder):
    settings = go(
        folder, "other", *words("--model tiny-reader --mode 256 --lora-rank 4 --epochs 0.1")
    )
    assert (settings.optim.lr, settings.generation.beams) == (1.5e-3, 1)
    assert (settings.adapter.lora_rank, settings.adapter.lora_alpha) == (4, 8.0)


def test_a_resumed_run_goes_on_with_what_the_settings_became(folder):
    """The file says so; to be seen, it says what no default is."""
    out = folder / "resumed"
    go(folder, "resumed", "--epochs", "0.5")
    config = out / "config.toml"
    text = config.read_text("utf-8").replace("max_steps = 3\n", "max_steps = 4\n")
    config.write_text(text.replace("lr = 0.003125\n", "lr = 0.002\n"), "utf-8")
    assert train.main(["--out", str(out), "--resume", "auto"]) == 0
    assert lines(out, "train")[-1]["step"] == 4
    settings = command_line.load(config)
    assert (settings.optim.max_steps, settings.optim.lr, settings.optim.epochs) == (4, 0.002, 0.5)
    assert train.main(["--out", str(out), "--resume", "auto", "--epochs", "1"]) == 0
    assert lines(out, "train")[-1]["step"] == 6
    assert train.main(words("--out {} --resume auto --epochs 1.2 --temperature 0.5", out)) == 0
    assert command_line.load(config).generation.temperature == 0.5


def test_the_file_of_a_run_of_before_still_works(folder, tmp_path):
    """All in it is resolved: --epochs on the command line wins over its max_steps all the same."""
    before = tmp_path / "before.toml"
    settings = command_line.load(folder / "run" / "config.toml")
    before.write_text(to_toml(settings), "utf-8")
    assert command_line.parse(["--config", str(before)]) == command_line.load(before) == settings
    parsed = command_line.parse(["--config", str(before), "--epochs", "0.5"])
    assert (parsed.optim.max_steps, parsed.optim.epochs) == (0, 0.5)
    both = command_line.parse(["--config", str(before), *words("--epochs 0.5 --max-steps 9")])
    assert both.optim.max_steps == 9


def test_max_steps_and_epochs_together_are_told_which_wins(folder, capsys):
    run(folder, *words("--model tiny --max-steps 1 --epochs 3"), out="both")
    assert "--max-steps 1 wins over --epochs 3\n" in capsys.readouterr().out
    run(folder, *words("--model tiny --max-steps 1"), out="one")
    assert "wins over" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "text",
    [
        "resolved = 1\n",
        "[resolved]\nno_such = 1\n",
        "[resolved]\nlr = 'high'\n",
        "started = 1\n",
        "[started]\nrun = 1\n",
        "[started]\nfiles = 1\n",
        "[started.files]\na = 1\n",
        '[started.files]\n"a\\u0000" = "b"\n',
    ],
)
def test_tables_that_no_run_writes_are_one_line(tmp_path, text):
    path = tmp_path / "config.toml"
    path.write_text(text)
    with pytest.raises(UserError, match="config.toml: ") as raised:
        command_line.load(path)
    assert "\n" not in str(raised.value)
