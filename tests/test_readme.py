"""What the README and those of the package say is so."""

import json
import re
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from commands import python, words

from deepsynth_min import settings as S
from deepsynth_min.model.batch import visual_tokens
from deepsynth_min.model.deepseek_ocr import DeepseekOCR, parameter_summary
from deepsynth_min.model.shape.presets import PRESETS, SHIPPED
from deepsynth_min.pages.modes import MODES

ROOT = Path(__file__).parent.parent
PATHS = ("README.md", "deepsynth_min/README.md", "deepsynth_min/training/README.md")
PATHS += ("deepsynth_min/data/README.md",)
README, CODE, CLUSTERS, DATA = ((ROOT / path).read_text(encoding="utf-8") for path in PATHS)
# Options that are not settings: torchrun's and sbatch's, and those of the other commands.
OTHERS = """
--standalone --nproc-per-node --nnodes --rdzv-backend --rdzv-endpoint --rdzv-id --max-restarts
--shutdown-timeout --signals-to-handle
--help --config --run --run-dir --checkpoint --to --merge --dtype --preset --count --split
--style-json --recipe --dry-run --gpu --gpus --gpu-price --probes --steps --seeds
""".split()


def test_the_two_commands_are_on_the_first_screen():
    first_screen = README.splitlines()[:30]
    train = "pip install -c constraints.txt -e . && torchrun --standalone -m deepsynth_min.train"
    assert train in first_screen
    assert 'pip install -c constraints.txt -e ".[test]" && pytest -q' in first_screen


def test_every_file_named_exists():
    for text, folder in (
        (README, ROOT),
        (CODE, ROOT / "deepsynth_min"),
        (CLUSTERS, ROOT),
        (DATA, ROOT),
    ):
        for path in re.findall(r"`((?:\w+/)+[\w.]*)`|\]\(([\w./]+)\)", text):
            name = path[0] or path[1]
            if name.endswith((".py", ".md", ".png")) or (folder / name.split("/")[0]).is_dir():
                assert (folder / name).exists() or (ROOT / name).exists(), name


def test_every_module_of_the_package_is_named_in_its_readme():
    for path in (ROOT / "deepsynth_min").rglob("*.py"):
        if not path.stem.startswith("__"):
            assert re.search(rf"\b{path.stem}\b", CODE), path


def test_the_numbers_of_lines_are_those_of_the_files():
    def lines(paths):
        return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in paths)

    listed = CODE.partition("## Read these first")[2].partition("Letters in")[0]
    names = set(re.findall(r"`([\w/]+\.(?:py|h))`", listed))
    core = lines(ROOT / ("" if name.endswith(".h") else "deepsynth_min") / name for name in names)
    total = lines((ROOT / "deepsynth_min").rglob("*.py")) + lines((ROOT / "csrc").iterdir())
    for text in (README, CODE):
        found = re.search(r"([\d,]+) lines (?:out )?of ([\d,]+\d)", text).groups()
        told = [int(number.replace(",", "")) for number in found]
        assert abs(told[0] - core) < 300 and abs(told[1] - total) < 1000, (core, total)


def test_every_option_named_exists():
    concerns = [type(concern) for concern in vars(S.Settings()).values()]
    declared = {f.name.replace("_", "-"): f.type for c in concerns for f in fields(c)}
    known = {f"--{name}" for name in declared} | set(OTHERS)
    known |= {f"--no-{name}" for name, kind in declared.items() if kind is bool}
    assert set(re.findall(r"(?<![\w-])--[a-z][\w-]+", README + CODE + CLUSTERS + DATA)) <= known


def test_the_parameter_table_is_what_the_summary_gives():
    with torch.device("meta"):
        rows = parameter_summary(DeepseekOCR(PRESETS["deepseek-ocr"]))
    for part, total, _, active in rows:
        line = next(line for line in CODE.splitlines() if line.startswith(f"| {part}"))
        numbers = [int(n.replace(",", "")) for n in re.findall(r"\d[\d,]+", line)]
        assert numbers == [total] + ([active] if active else [])


def test_how_well_the_embedded_model_reads_is_what_its_recipe_has_measured():
    found = json.loads((SHIPPED / "provenance.json").read_text())
    misread, summaries = (list(found[name].values()) for name in ("misread", "summaries"))
    told = " ".join(README.split())
    assert f"misreads {100 * misread[0]:.1f} % of the characters" in told
    assert f"and {100 * misread[1]:.1f} % of texts of 150 to 330" in told
    assert f"name {100 * summaries[0]:.0f} % of the persons and towns" in told
    assert f"and {100 * summaries[1]:.0f} % of what they state" in told


@pytest.mark.slow
def test_the_memory_table_is_what_the_bench_counts():
    done = python(ROOT / "bench" / "memory.py", *words("--preset deepseek-ocr --count"), check=True)
    for tune, row in json.loads(done.stdout.splitlines()[-1])["rows"].items():
        parts = [row[name] for name in ("weights", "gradients", "optimizer")]
        sizes = [f"{size / 1e6:,.1f}" for size in (*parts, sum(parts), row["file"])]
        assert f"| {tune} | {row['trainable']:,} | {' | '.join(sizes)} |" in CLUSTERS.splitlines()


def test_the_mode_table_is_what_the_batch_counts():
    assert "| 512 / 640 / 1024 / 1280 | 73 / 111 / 273 / 421 |" in README
    for mode, tokens in (("tiny", 73), ("small", 111), ("base", 273), ("large", 421)):
        assert visual_tokens(MODES[mode], MODES[mode]) == tokens
    row = "| DeepSeek-OCR-2: 768 / base / gundam | 768 / 1024 / 1024 and 2 to 6 tiles of 768 |"
    assert f"{row} 145 / 257 / 257 + 144 a tile |" in README
    two = PRESETS["deepseek-ocr-2"].page_format
    assert (two.sides, two.tile, two.gundam, two.most_tiles) == ((768, 1024), 768, 1024, 6)
    found = [visual_tokens(side, side, newlines=two.newlines) for side in two.sides]
    assert [*found, visual_tokens(1024, 1024, (1, 2), two.tile, two.newlines)] == [145, 257, 545]
