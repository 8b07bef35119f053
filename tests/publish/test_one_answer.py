"""One model, one answer: as a run, a checkpoint, an export, a merged export, an adapter on its
base, and by the command in its model card."""

import json
import os
import re
import shlex
import shutil
from functools import cache

import pytest
import torch
from adapter_runs import run, write_base, write_rows
from commands import python, words
from PIL import Image
from small_model import SMALL

from deepsynth_min import evaluate, export, generate
from deepsynth_min.corpus import documents as corpus
from deepsynth_min.data.row import Row
from deepsynth_min.data.samples import collate
from deepsynth_min.pages.fonts.font_file import font_bytes, font_digest
from deepsynth_min.runs import recorded
from deepsynth_min.runs.open_model import open_model

INSTRUCTION = "  In `short`:\n\n"
# Everything that an answer depends on is not what it is by default.
ASKED = [
    *("--instruction", INSTRUCTION, "--mode", "192", "--font-size", "11", "--margin", "3"),
    *("--fit", "pad", "--beams", "3", "--no-repeat-ngram", "4", "--length-penalty", "0.7"),
    *("--max-new-tokens", "12", "--max-steps", "2"),
]
SHORT = ["--max-new-tokens", "12", "--threads", "1"]
LORA = ["--tune", "lora", "--lora-targets", "all"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """base/, rows.jsonl, docs (30 texts and two images), and runs by --tune and --precision."""
    folder = tmp_path_factory.mktemp("one")
    write_base(folder / "base", SMALL)
    write_rows(folder / "rows.jsonl")
    texts = [json.dumps({"text": d.text[:150]}) for d in corpus.documents("val")[:30]]
    (folder / "docs.jsonl").write_text("\n".join(texts), "utf-8")
    for name, size in (("wide.png", (300, 40)), ("high.png", (20, 90))):
        Image.effect_noise(size, 90).save(folder / name)
    for precision in ("fp32", "bf16"):
        given = [*ASKED, "--precision", precision]
        run(folder, *given, "--tune", "decoder", out=f"full-{precision}")
        run(folder, *given, *LORA, out=f"lora-{precision}")
    run(folder, *given, "--tune", "projector+qlora", "--quant", "int8", out="qlora-bf16")
    return folder


def documents(folder) -> list[str]:
    return [str(folder / name) for name in ("docs.jsonl", "wide.png", "high.png")]


def answers(folder, tmp_path, *model) -> list[str]:
    out = tmp_path / "answers.jsonl"
    given = [*map(str, model), *SHORT, "--out", str(out)]
    assert generate.main([*given, *documents(folder)]) == 0
    found = [json.loads(line)["answer"] for line in out.read_text("utf-8").splitlines()]
    out.unlink()
    assert len(found) == 32 and len(set(found)) > 10
    return found


@pytest.fixture(scope="module")
def of_run(folder):
    """Name of a run -> its answers, made once."""
    return cache(lambda name: answers(folder, folder, "--run", folder / name))


def exported(folder, to, which, *options):
    given = words("--run {} --to {}", folder / which, to)
    assert export.main([*given, *map(str, options)]) == 0
    return to


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_whole_model_answers_as_its_run_wherever_it_lies(folder, of_run, tmp_path, precision):
    whole = folder / f"full-{precision}"
    expected = of_run(whole.name)
    to = exported(folder, tmp_path / "e", whole.name, "--dtype", "float32")
    assert answers(folder, tmp_path, "--model", to) == expected
    checkpoint = whole / "checkpoints" / "step-000002"
    assert answers(folder, tmp_path, "--model", checkpoint) == expected
    (to / recorded.FILE).unlink()  # it is this file that makes the difference
    assert answers(folder, tmp_path, "--model", to) != expected


@pytest.mark.parametrize("which", ["lora-fp32", "lora-bf16", "qlora-bf16"])
def test_an_adapter_on_its_base_answers_as_its_run(folder, of_run, tmp_path, which):
    """A base in 4 bits is packed again as it was in training."""
    adapted = folder / which
    to = exported(folder, tmp_path / "e", adapted.name)
    for adapter in (to, adapted / "checkpoints" / "step-000002"):
        given = ["--model", folder / "base", "--adapter", adapter]
        assert answers(folder, tmp_path, *given) == of_run(adapted.name)


def opened(*model):
    return open_model(generate.parser().parse_args([*map(str, model), "x"]), {"threads": 1})


@torch.no_grad()
def logits(found) -> torch.Tensor:
    rows = [Row("", d.summary, d.text[:150]) for d in corpus.documents("val")[:4]]
    with found.precision():
        return found.model(collate([found.builder(row) for row in rows], found.builder.special))


def test_a_model_merged_in_float32_answers_as_its_run_though_not_to_the_bit(
    folder, of_run, tmp_path
):
    """W + BA is rounded once; base and adapter are rounded apart."""
    adapted = folder / "lora-fp32"
    to = exported(folder, tmp_path / "e", adapted.name, "--merge", "--dtype", "float32")
    assert answers(folder, tmp_path, "--model", to) == of_run(adapted.name)
    ours, theirs = logits(opened("--model", to)), logits(opened("--run", adapted))
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-4) and not torch.equal(ours, theirs)


@pytest.mark.parametrize("which", ["full", "lora"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_weights_stored_in_bf16_are_held_and_multiplied_as_in_training(
    folder, tmp_path, which, precision, capsys
):
    name = f"{which}-{precision}"
    to = exported(folder, tmp_path / "e", name, *(["--merge"] if which == "lora" else []))
    assert "rounded to bf16 (--dtype float32: they are not)" in capsys.readouterr().out
    theirs, ours = opened("--run", folder / name), opened("--model", to)
    held = {n.replace(".base.", "."): p.dtype for n, p in theirs.model.named_parameters()}
    assert {n: p.dtype for n, p in ours.model.named_parameters()}.items() <= held.items()
    assert ours.settings.optim.precision == precision
    assert ours.precision().fast_dtype == theirs.precision().fast_dtype
    error = (logits(ours) - logits(theirs)).norm() / logits(theirs).norm()
    assert 0 < error < 0.04  # 8 bits in each weight and, of a bf16 run, in each product


def test_figures_of_an_export_are_those_of_its_run(folder, tmp_path):
    to = exported(folder, tmp_path / "e", "full-fp32", "--dtype", "float32")
    given = words("--data {} --batch-size 2 --answer-samples 4", folder / "rows.jsonl")
    given += ["--ablation-samples", "0", "--threads", "1"]
    ours = evaluate.run(["--model", str(to), *given])
    theirs = evaluate.run(["--run", str(folder / "full-fp32"), *given])
    assert ours == theirs and ours["answers"] == 4


# -- what travels ---------------------------------------------------------------------------------


def write(directory, text: str):
    (directory / recorded.FILE).write_text(text, "utf-8")
    return directory


def test_command_line_then_adapter_then_model_then_default(folder, tmp_path):
    base = shutil.copytree(folder / "base", tmp_path / "base")
    write(base, '[model]\nmode = "256"\n[page]\nmargin = 5\ncolumns = 2\n[optim]\nprecision="bf16"')
    adapter = exported(folder, tmp_path / "a", "lora-fp32")
    write(adapter, '[page]\nmargin = 6\nfont_size = 9\n[data]\ninstruction = "Read."\n')
    found = opened("--model", base, "--adapter", adapter, "--instruction", "Look.").settings
    assert found.data.instruction == "Look." and found.model.mode == "256"
    page = found.page
    assert (page.margin, page.font_size, page.columns, page.line_height) == (6, 9, 2, 0.0)
    assert found.optim.precision == "fp32"  # how weights are held is the adapter's affair


def test_a_run_over_an_export_writes_its_own_file(folder, tmp_path):
    base = exported(folder, tmp_path / "e", "full-fp32")
    more = ["--model", base, "--data", folder / "rows.jsonl", "--max-steps", "1"]
    out = run(tmp_path, *more, "--instruction", "Read.", out="again")
    values = recorded.read(out / "checkpoints" / "step-000001")
    assert values["instruction"] == "Read." and values["mode"] == "auto"
    assert recorded.read(base)["instruction"] == INSTRUCTION


def test_a_font_file_travels_by_name_and_digest_and_must_be_given(folder, tmp_path, capsys):
    font, other = tmp_path / "secret" / "mine.ttf", tmp_path / "other.ttf"
    font.parent.mkdir()
    font.write_bytes(font_bytes("figo"))
    other.write_bytes(font_bytes("notos"))
    more = [*ASKED, "--main-font", font, "--font", "symbol1", other, "--tune", "decoder"]
    out = run(folder, *more, out="fonts")
    expected = answers(folder, tmp_path, "--run", out)
    to = exported(folder, tmp_path / "e", "fonts", "--dtype", "float32")
    text = (to / recorded.FILE).read_text("utf-8")
    assert f'main_font = "mine.ttf sha256:{font_digest(str(font))}"' in text
    assert "secret" not in text and '["symbol1", "other.ttf sha256:' in text
    card = (to / "README.md").read_text("utf-8")
    assert "--main-font mine.ttf --font symbol1 other.ttf --model" in card and "secret" not in card
    capsys.readouterr()
    assert generate.main(["--model", str(to), *documents(folder)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "font file mine.ttf (sha256" in line and line.endswith("give --main-font FILE")
    fonts = ["--main-font", font, "--font", "symbol1", other]
    assert answers(folder, tmp_path, *fonts, "--model", to) == expected
    assert "not the font" not in capsys.readouterr().err
    answers(folder, tmp_path, "--main-font", other, *fonts[2:], "--model", to)
    assert "--main-font: not the font of" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text, message",
    [
        ('[data]\ndata = ["/etc/passwd"]\n', "unknown setting [data] data"),
        ("[data]\nimages_anywhere = true\n", "unknown setting [data] images_anywhere"),
        ('[run]\nout = "/tmp/x"\n', "unknown setting [run] out; not in this file"),
        ('[model]\nmodel = "other/model"\n', "unknown setting [model] model"),
        ('[adapter]\nadapter = "other/model"\n', "unknown setting [adapter] adapter"),
        ("[optim]\nbatch_size = 65536\n", "unknown setting [optim] batch_size"),
        ("[hooks]\na = 1\n", "unknown table or key 'hooks'"),
        ('[page]\nmain_font = "/etc/passwd"\n', "--main-font: '/etc/passwd' is neither"),
        ('[page]\nfont = ["../x.ttf"]\n', "--font: '../x.ttf' is neither"),
        (f'[page]\nfont = ["/a/x.ttf sha256:{"0" * 64}"]\n', "is neither an embedded font"),
        (f'[page]\nfont = ["x.ttf sha256:{"0" * 64}"]\n', "give --font FILE"),
        ("[page]\nmargin = true\n", "--margin: True is not a whole number"),
        ("[generation]\nbeams = 100000\n", "--beams: 100000 is above 64"),
        ("[generation]\nbeams = 4\ntemperature = 1.0\n", "--beams: a beam search does not sample"),
        ('[model]\nmode = "../x"\n', "--mode: '../x' is neither"),
        ('[data]\ninstruction = "<image> <image> a <image>"\n', "<image> in the middle"),
        ("[page\n", "not TOML"),
        ("a = " + "[" * 50_000, "not TOML"),
        ("#" * 2**21, "more than 1048576 bytes"),
    ],
)
def test_the_file_can_set_these_values_and_nothing_else(folder, tmp_path, text, message, capsys):
    base = write(shutil.copytree(folder / "base", tmp_path / "base"), text)
    given = ["--model", str(base), "--max-new-tokens", "1", str(folder / "wide.png")]
    assert generate.main(given) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message in line


def test_a_pipe_in_its_place_is_refused(folder, tmp_path, capsys):
    base = shutil.copytree(folder / "base", tmp_path / "base")
    os.mkfifo(base / recorded.FILE)
    assert generate.main(["--model", str(base), str(folder / "wide.png")]) == 2
    assert "not a regular file" in capsys.readouterr().err


# -- the model card -------------------------------------------------------------------------------


def command_in(card: str) -> str:
    (command,) = re.findall(r"```sh\n(.*)\n```", card)
    return command


@pytest.mark.parametrize(
    "which, options",
    [pytest.param("full-fp32", ["--dtype", "float32"], marks=pytest.mark.slow), ("lora-fp32", [])],
)
def test_the_command_in_the_card_gives_the_answers_of_the_run(
    folder, of_run, tmp_path, capsys, which, options
):
    to = exported(folder, tmp_path / "e", which, *options)
    card = (to / "README.md").read_text("utf-8")
    places = {"THIS_REPOSITORY": str(to), "BASE_MODEL": str(folder / "base")}
    program, *given = shlex.split(command_in(card))
    given = [places.get(word, word) for word in given if word != "FILE"]
    more = [*SHORT, *documents(folder)]
    assert program == "python" and given[:2] == ["-m", "deepsynth_min.generate"]
    if which == "full-fp32":
        printed = python(*given, *more, check=True).stdout
    else:  # without the seconds that a process takes to start
        capsys.readouterr()
        assert generate.main([*given[2:], *more]) == 0
        printed = capsys.readouterr().out
    assert re.sub("(?m)^==> .* <==\n", "", printed) == "".join(f"{a}\n\n" for a in of_run(which))


def test_the_card_says_how_it_is_asked_to_the_letter(folder, tmp_path):
    card = (exported(folder, tmp_path / "e", "full-fp32") / "README.md").read_text("utf-8")
    instruction, prompt = map(json.loads, re.findall(r"```json\n(.*)\n```", card))
    assert instruction == INSTRUCTION and prompt == "<image>\nIn `short`:"
    found = opened("--run", folder / "full-fp32").builder
    expected = found.prompt(Row("", "", images=(folder / "wide.png",))).ids
    text = prompt.replace("<image>", "<image>" * expected.count(found.special.image))
    ids = found.tokenizer.encode(text, add_special_tokens=False)
    assert [found.special.bos, *ids] == expected
    for row in ("| page | 192: 192 px |", "| font size | 11 px |", "| margin | 3 px |"):
        assert row in card
    assert "Generation: beam search of width 3, no 4-gram twice. " in card and "--fit pad" in card


def test_the_font_size_is_the_one_that_pages_are_drawn_with(folder, tmp_path):
    """tiny-reader's own 24 px, not a part of the page's side; and its prompt ends in a space."""
    more = "--model tiny-reader --tune lora --max-steps 1 --save-every 1".split()
    run(folder, *more, out="reader")
    to = exported(folder, tmp_path / "e", "reader", "--merge")
    card = (to / "README.md").read_text("utf-8")
    assert "| page | auto: 256 px |\n| font size | 24 px |" in card
    assert 'in one sentence. "\n' in card and "which the official code strips" in card
    card = (exported(folder, tmp_path / "a", "reader") / "README.md").read_text("utf-8")
    assert "--model tiny-reader --adapter THIS_REPOSITORY FILE" in card and "serve" not in card
