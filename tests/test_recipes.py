"""Recipes: each is found, understood and runs; the command line wins over it."""

import json
import re

import pytest
from commands import python, words
from run_files import lines

from deepsynth_min import command_line, recipes, settings as S, train
from deepsynth_min.errors import UserError

NAMES = (
    *("arms-study", "glyph-style", "needle-in-pages", "ocr-lora-24gb", "ocr-qlora-12gb"),
    *("summaries-decoder-24gb", "summaries-decoder-8xh100", "unlimited-from-deepseek-ocr"),
)
# What makes ten steps of a recipe a matter of seconds, on a CPU with the tokenizer that is here.
SMALL = words(
    "--mode auto --max-steps 10 --batch-size 2 --global-batch 2 --limit 24 --val-samples 4 "
    "--answer-samples 2 --ablation-samples 2 --max-new-tokens 4 --repeat-allow a --eval-every 0 "
    "--device cpu --threads 1"
)
MINIATURES = {"unlimited-from-deepseek-ocr": "tiny-unlimited", "needle-in-pages": "tiny-reader"}


def text(name: str) -> str:
    return recipes.find(name).read_text("utf-8")


def test_these_recipes_are_there():
    assert recipes.names() == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_setting_of_a_recipe_exists_and_is_taken(name):
    settings, plain = command_line.parse(["--recipe", name]), S.Settings()
    values = re.findall(r"^(\w+) = ", text(name), re.M)
    concerns = {n: v for part in vars(settings).values() for n, v in vars(part).items()}
    assert set(values) <= set(concerns) and settings != plain


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_says_what_it_is_for_what_it_needs_and_what_to_expect_on_whose_word(name):
    comments = text(name).partition("\n\n[")[0]
    assert all(line.startswith("#") for line in comments.splitlines())
    assert f"--recipe {name}" in comments and "# Needs: " in comments
    assert re.search(r"# (Expect, on paper|Published|Measured)", comments)


def test_list_names_every_recipe_with_its_purpose(capsys):
    with pytest.raises(SystemExit) as ended:
        train.main(["--recipe", "list"])
    blocks = capsys.readouterr().out.strip().split("\n\n")
    assert ended.value.code == 0
    assert [block.split("\n")[0] for block in blocks] == sorted(NAMES)
    assert all(block.split("\n")[1].endswith(".") for block in blocks)


def test_a_misspelt_name_is_one_line_that_says_which_is_meant(capsys):
    assert train.main(["--recipe", "ocr-lora-24"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "--recipe ocr-lora-24: no such recipe; did you mean ocr-lora-24gb?" in error
    with pytest.raises(UserError, match="--recipe ../x: no such recipe"):
        command_line.parse(["--recipe", "../x"])


def test_the_command_line_wins_over_config_and_that_over_the_recipe(tmp_path):
    file = tmp_path / "c.toml"
    file.write_text("[optim]\nbatch_size = 3\nglobal_batch = 6\n")
    given = ["--recipe", "ocr-lora-24gb", "--config", str(file), "--global-batch", "9"]
    settings = command_line.parse(given)
    optim = settings.optim
    assert (optim.precision, optim.batch_size, optim.global_batch) == ("bf16", 3, 9)
    assert settings.model.tune == "lora" and settings.run.keep == S.RunSettings().keep


def test_a_run_goes_on_without_its_recipe_since_it_has_written_it_down(tmp_path):
    given = ["--recipe", "needle-in-pages", *SMALL, "--max-steps", "1", "--lr", "0.001"]
    assert train.main([*given, "--out", str(tmp_path / "r")]) == 0
    settings = command_line.parse(["--out", str(tmp_path / "r"), "--resume", "auto"])
    assert settings.data.data == ("embedded:needles",)
    assert (settings.optim.lr, settings.evaluation.best) == (0.001, "exact_match")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_runs_ten_steps_on_a_miniature(tmp_path, name):
    given = ["--recipe", name, "--model", MINIATURES.get(name, "tiny"), *SMALL]
    done = python("-m", "deepsynth_min.train", *given, "--out", tmp_path / "r")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "r/status.json").read_text())["status"] == "done"
    assert lines(tmp_path / "r", "train")[-1]["step"] == 10
