"""`python -m deepsynth_min.generate` as a user runs it: files in, answers out, mistakes named."""

import json
import struct
import zlib
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from commands import python, words
from PIL import Image

from deepsynth_min import command_line, generate, settings as S, train
from deepsynth_min.corpus import documents as corpus
from deepsynth_min.data.row import Row
from deepsynth_min.data.samples import SampleBuilder, collate
from deepsynth_min.data.tokenizer import load_tokenizer
from deepsynth_min.model.deepseek_ocr import DeepseekOCR
from deepsynth_min.options import change
from deepsynth_min.runs import reader as answering
from deepsynth_min.runs.open_model import open_model
from deepsynth_min.runs.reader import Reader
from deepsynth_min.training.build import usual_beams

QUICK = ["--max-new-tokens", "5"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """Near its random start, where answers differ more than after a few steps of training."""
    out = tmp_path_factory.mktemp("run") / "r"
    options = "--max-steps 1 --batch-size 2 --val-samples 1 --lr 1e-6 --answer-samples 0"
    given = ["--model", "tiny", "--out", str(out), "--instruction", "In short: "]
    assert train.main([*given, *options.split()]) == 0
    return out


@pytest.fixture
def documents(tmp_path) -> list[Path]:
    """A text, rows without answers (one with its own instruction) and an image."""
    texts = [d.text for d in corpus.documents("val")[:3]]
    (tmp_path / "a.txt").write_text(texts[0], "utf-8")
    rows = [{"text": texts[1]}, {"text": texts[2], "instruction": "Say it again: "}]
    (tmp_path / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Image.new("RGB", (300, 200), "lightgrey").save(tmp_path / "c.png")
    return [tmp_path / name for name in ("a.txt", "b.jsonl", "c.png")]


def run(trained, *arguments) -> int:
    return generate.main(["--run", str(trained), *QUICK, *map(str, arguments)])


@cache
def loaded(checkpoint: Path):
    return DeepseekOCR.from_pretrained(checkpoint), load_tokenizer(checkpoint)


def answer_of(trained: Path, row: Row, most: int = 5) -> str:
    """The reference: the sequence decoded again for each token, from the settings the run wrote."""
    checkpoint = trained / "checkpoints" / "step-000001"
    model, tokenizer = loaded(checkpoint)
    builder = SampleBuilder(command_line.load(trained / "config.toml"), model.config, tokenizer)
    prompt, ids = builder.prompt(row), []
    for _ in range(most):
        sample = replace(prompt, ids=[*prompt.ids, *ids])
        with torch.no_grad():
            token = int(model(collate([sample], builder.special))[0, -1].argmax())
        if token == builder.special.eos:
            break
        ids.append(token)
    return tokenizer.decode(ids)


def test_answers_are_those_of_slow_decoding_with_the_settings_of_the_run(
    trained, documents, tmp_path
):
    out = tmp_path / "answers.jsonl"
    assert run(trained, "--out", out, *documents) == 0
    found = [json.loads(line) for line in out.read_text().splitlines()]
    texts = [d.text for d in corpus.documents("val")[:3]]
    rows = [
        Row("", "", texts[0]),
        Row("", "", texts[1]),
        Row("", "", texts[2], instruction="Say it again: "),
        Row("", "", images=(documents[2],)),
    ]
    expected = [answer_of(trained, row) for row in rows]
    assert [line["answer"] for line in found] == expected and len(set(expected)) > 1
    assert [line["input"] for line in found] == [
        str(documents[0]),
        f"{documents[1]}:1",
        f"{documents[1]}:2",
        str(documents[2]),
    ]
    assert all(line["tokens"] <= 5 for line in found)
    assert all(line["visual_tokens"] == 21 * line["pages"] for line in found)


@pytest.mark.parametrize(
    "options", [[], ["--temperature", "1", "--top-p", "0.9"], ["--beams", "2"]]
)
def test_one_by_one_gives_what_a_batch_gives(trained, documents, tmp_path, options):
    for size in (1, 8):
        out = tmp_path / str(size)
        assert run(trained, *options, "--batch-size", size, "--out", out, *documents) == 0
    assert (tmp_path / "1").read_bytes() == (tmp_path / "8").read_bytes()


@pytest.mark.parametrize("options", [[], ["--temperature", "1", "--seed", "5"], ["--beams", "2"]])
def test_a_single_answer_on_standard_output_is_the_one_in_the_file(
    trained, documents, tmp_path, capsys, options
):
    assert run(trained, *options, documents[0]) == 0
    shown = capsys.readouterr().out
    assert run(trained, *options, "--out", tmp_path / "a.jsonl", documents[0]) == 0
    assert shown == json.loads((tmp_path / "a.jsonl").read_text())["answer"] + "\n"


def test_several_answers_are_shown_under_the_names_of_their_documents(trained, documents, capsys):
    assert run(trained, documents[0], documents[1]) == 0
    printed = capsys.readouterr()
    headings = [line for line in printed.out.splitlines() if line.startswith("==> ")]
    assert headings == [
        f"==> {n} <==" for n in (documents[0], f"{documents[1]}:1", f"{documents[1]}:2")
    ]
    assert "3/3" in printed.err  # the bar


def test_standard_input_in_a_new_process(trained):
    text = "A text typed by hand, with naïve café.\n"
    command = ["-m", "deepsynth_min.generate", "--run", trained, *QUICK, "-"]
    done = python("-X", "importtime", *command, input=text, check=True)
    assert done.stdout == answer_of(trained, Row("", "", text)) + "\n"
    # Torch's compiler takes a second to import, and nothing here wants it.
    assert " torch.nn\n" in done.stderr and "torch._dynamo" not in done.stderr


def test_a_checkpoint_with_an_adapter_answers_as_the_run_that_made_it(trained, documents, tmp_path):
    base, adapted = trained / "checkpoints" / "step-000001", tmp_path / "adapted"
    options = words(
        "--model {} --tune lora --max-steps 2 --lr 0.5 --batch-size 2 --val-samples 1 "
        "--answer-samples 0 --out {}",
        *(base, adapted),
    )
    assert train.main(options) == 0
    adapter = adapted / "checkpoints" / "step-000002"
    files = {name: tmp_path / name for name in ("run", "model", "base")}
    assert run(adapted, "--out", files["run"], *documents) == 0
    for name, more in (("model", ["--adapter", str(adapter)]), ("base", [])):
        options = [*words("--model {} --out {}", base, files[name]), *more, *QUICK]
        assert generate.main([*options, *map(str, documents)]) == 0
    assert files["run"].read_text() == files["model"].read_text() != files["base"].read_text()


# -- mistakes and hard inputs ---------------------------------------------------------------------


def huge_png() -> bytes:
    """Says that it is 30,000 x 30,000 px, and holds one row."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        checksum = zlib.crc32(kind + body)
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", checksum)

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 30_000, 30_000, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(30_001)))


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("none.txt", None, "none.txt: No such file"),
        ("empty.txt", b"", "empty.txt: no text in it"),
        ("blank.txt", b" \n\t\n", "blank.txt: no text in it"),
        ("latin.txt", b"caf\xe9", "latin.txt: neither an image nor text (not UTF-8 at byte 3; "),
        ("long.txt", b"All work and no play. " * 9_091, "context of 2048 tokens (--max-pages"),
        ("broken.png", b"\x89PNG\r\n\x1a\n broken", "broken.png: not a readable image"),
        ("huge.png", huge_png(), "huge.png: not a readable image (Image size (900000000 pixels)"),
        ("rows.jsonl", b'{"summary": "no document"}\n', "rows.jsonl:1: no field 'text'"),
    ],
)
def test_a_document_that_cannot_be_read_is_named(trained, tmp_path, capsys, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert run(trained, tmp_path / name) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("error: ") and message in line


def test_200_000_characters_are_read_as_far_as_the_pages_asked_for(trained, tmp_path, capsys):
    (tmp_path / "long.txt").write_text("All work and no play. " * 9_091)
    out = tmp_path / "a.jsonl"
    options = words("--max-pages 2 --overflow truncate --out {}", out)
    assert run(trained, *options, tmp_path / "long.txt") == 0
    assert json.loads(out.read_text())["pages"] == 2


def test_characters_that_no_font_has_are_boxes_and_a_warning(trained, tmp_path, capsys):
    (tmp_path / "odd.txt").write_text("\U000f0001\U000f0002\U000f0003", "utf-8")
    assert run(trained, tmp_path / "odd.txt") == 0
    error = capsys.readouterr().err
    assert "odd.txt: 3 characters could not be drawn as they should: private use: 3 " in error
    (tmp_path / "odd.txt").write_text("字字", "utf-8")
    assert run(trained, tmp_path / "odd.txt") == 0
    mends = "Han: 1 character no font has (字): pip install 'deepsynth-min[cjk]' or --font FILE"
    assert f"2 characters could not be drawn as they should: {mends}" in capsys.readouterr().err


def test_an_image_of_30_000_pixels_by_few_is_read(trained, tmp_path):
    Image.new("L", (30_000, 40), 200).save(tmp_path / "wide.png")
    assert run(trained, tmp_path / "wide.png") == 0


def test_an_instruction_longer_than_the_context_is_named(trained, documents, capsys):
    assert run(trained, "--instruction", "word " * 3_000, documents[0]) == 2
    assert "the model's context is 2048" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--run", "RUN"], "FILE"),
        (["TEXT"], "--run/--run-dir --model is required"),
        (["--run", "RUN", "--resume", "TEXT"], "--resume: there is nothing to go on with"),
        (["--repeat-allow", "two words", "--run", "RUN", "TEXT"], "--repeat-allow two words: is"),
        (["--run", "RUN", "--model", "x", "TEXT"], "not allowed with"),
        (["--run", "/no/such", "TEXT"], "/no/such: not a run directory"),
        (["--run", "RUN", "--checkpoint", "77", "TEXT"], "step-000077: no such checkpoint"),
        (["--run", "RUN", "--adapter", "x", "TEXT"], "--adapter"),
        (["--run", "RUN", "--beams", "2", "--temperature", "1", "TEXT"], "--beams"),
        (["--run", "RUN", "--max-new-tokens", "0", "TEXT"], "--max-new-tokens: 0 is below 1"),
        (["--run", "RUN", "--batch-size", "0", "TEXT"], "--batch-size"),
        (["--run", "RUN", "--out", "TEXT", "TEXT"], "File exists"),
        (["--model", "tiny", "TEXT"], "--model tiny: a preset has random weights"),
        (["--model", "no-such", "TEXT"], "no-such: neither a directory nor a hub id"),
    ],
)
def test_wrong_arguments(trained, documents, capsys, arguments, message):
    given = {"RUN": str(trained), "TEXT": str(documents[0])}
    assert generate.main([given.get(a, a) for a in arguments]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and message in lines[0]


def test_a_character_of_several_tokens_is_not_streamed_in_pieces(trained, documents, monkeypatch):
    """Real bytes of 'é 文' fed as the tokens of an answer: every piece shown is whole."""
    checkpoint = trained / "checkpoints" / "step-000001"
    tokenizer = load_tokenizer(checkpoint)
    ids = [
        tokenizer.convert_tokens_to_ids(t)
        for t in tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("文字")[0][0]
    ]
    pieces = [torch.tensor([i]) for i in ids]
    given = generate.parser().parse_args(["--run", str(trained), "x"])
    reader = Reader(open_model(given, {}))
    monkeypatch.setattr(answering, "tokens", lambda *_, **__: iter(pieces))
    shown = [piece for piece, _ in reader.stream(reader.prompt(Row("", "", "text")))]
    assert "".join(shown) == "文字" and not any("\ufffd" in piece for piece in shown)
    assert len([piece for piece in shown if piece]) == 2


def test_tiny_reader_searches_with_beams_unless_told_otherwise():
    def beams(**values) -> int:
        return usual_beams(change(S.Settings(), **values))

    assert S.Settings().model.model == "tiny-reader" and beams() == 4
    assert beams(beams=1) == beams(temperature=0.5) == beams(model="tiny") == 1
    assert beams(model="tiny", beams=3) == 3
