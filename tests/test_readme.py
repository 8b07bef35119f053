"""What the README says is so."""

import re
from dataclasses import fields
from pathlib import Path

import torch

from deepsynth_min import settings as S
from deepsynth_min.model.batch import visual_tokens
from deepsynth_min.model.deepseek_ocr import DeepseekOCR, parameter_summary
from deepsynth_min.model.presets import PRESETS
from deepsynth_min.pages.modes import MODES

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
MAP = (ROOT / "deepsynth_min" / "README.md").read_text(encoding="utf-8")


def test_the_two_commands_are_on_the_first_screen():
    first_screen = README.splitlines()[:32]
    assert (
        "pip install -c constraints.txt -e . && torchrun --standalone -m deepsynth_min.train"
        in (first_screen)
    )
    assert 'pip install -c constraints.txt -e ".[test]" && pytest -q' in first_screen


def test_every_path_named_exists():
    for text in (README, MAP):
        for path in re.findall(r"`((?:tests|bench|csrc)/[\w./]*)`", text):
            assert (ROOT / path).exists(), path
    for path in re.findall(r"`([a-z_]+/[\w./]*\.py)`", MAP):
        bases = (ROOT, ROOT / "deepsynth_min")
        assert any((base / path).exists() for base in bases), path
    for link in re.findall(r"\]\(([^):]+)\)", README):
        assert (ROOT / link).exists(), link


def test_the_map_names_every_module_and_folder():
    package = ROOT / "deepsynth_min"
    for path in package.rglob("*.py"):
        if path.name not in ("__init__.py", "__main__.py"):
            assert re.search(rf"\b{path.stem}\b", MAP), path
        if path.parent != package:
            assert f"{path.parent.name}/" in MAP, path.parent


def test_the_readme_is_short():
    assert len(README.splitlines()) < 200


def test_every_option_named_exists():
    launcher = {
        "--standalone",
        "--nproc-per-node",
        "--nnodes",
        "--help",
        "--config",
        "--rdzv-backend",
        "--rdzv-endpoint",
        "--rdzv-id",
        "--max-restarts",
        "--nodes",
        "--ntasks-per-node",
        "--gpus-per-node",
        "--cpus-per-task",
        "--signal",
        "--requeue",
    }
    others = {
        "--run",
        "--run-dir",
        "--checkpoint",
        "--out",
        "--to",
        "--merge",
        "--push-to-hub",
        "--preset",
        "--count",
    }
    concerns = [type(concern) for concern in vars(S.Settings()).values()]
    declared = {f.name.replace("_", "-"): f.type for c in concerns for f in fields(c)}
    known = {f"--{name}" for name in declared}
    known |= {f"--no-{name}" for name, kind in declared.items() if kind is bool}
    assert set(re.findall(r"(?<![\w-])--[a-z][\w-]+", README)) <= known | launcher | others


def test_the_parameter_table_is_what_the_summary_gives():
    with torch.device("meta"):
        rows = parameter_summary(DeepseekOCR(PRESETS["deepseek-ocr"]))
    for part, total, _, active in rows:
        line = next(line for line in MAP.splitlines() if line.startswith(f"| {part}"))
        numbers = [int(n.replace(",", "")) for n in re.findall(r"\d[\d,]+", line)]
        assert numbers == [total] + ([active] if active else [])


def test_the_mode_table_is_what_the_batch_counts():
    assert "| 512 / 640 / 1024 / 1280 | 73 / 111 / 273 / 421 |" in README
    for mode, tokens in (("tiny", 73), ("small", 111), ("base", 273), ("large", 421)):
        assert visual_tokens(MODES[mode], MODES[mode]) == tokens
