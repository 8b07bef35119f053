"""Generate over many documents: what cannot be read is a record, the rest goes on, and so on."""

import json
import shutil
from pathlib import Path

import pytest
from adapter_runs import write_base
from commands import words
from small_model import SMALL

from deepsynth_min import generate, train
from deepsynth_min.corpus import documents as corpus

CASES = Path(__file__).parent / "cases"


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("run") / "r"
    options = "--model tiny --max-steps 1 --batch-size 2 --val-samples 1 --lr 1e-6 --out {}"
    assert train.main([*words(options, out), "--answer-samples", "0"]) == 0
    return out


def run(trained, *arguments) -> int:
    return generate.main(["--run", str(trained), *map(str, arguments)])


def records(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@pytest.fixture
def documents(tmp_path) -> list[Path]:
    """Good ones, and between them one of each kind that cannot be read."""
    good = corpus.documents("val")[0].text
    (tmp_path / "a.txt").write_text(good, "utf-8")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "rows.jsonl").write_text('{"text": "one"}\nnot JSON\n{"text": "two"}\n')
    shutil.copy(CASES / "images" / "cut.png", tmp_path / "cut.png")
    (tmp_path / "long.txt").write_text("All work and no play. " * 9_091)
    (tmp_path / "sheet.xlsx").write_bytes(b"PK\x03\x04rest")
    shutil.copy(CASES / "images" / "three-pages.pdf", tmp_path / "scan.txt")  # whatever its name
    shutil.copy(CASES / "images" / "scan.jp2", tmp_path / "z.jp2")
    names = "a.txt latin.txt rows.jsonl cut.png long.txt none.txt sheet.xlsx scan.txt z.jp2"
    return [tmp_path / name for name in names.split()]


WRONG = {
    "latin.txt": "neither an image nor text (not UTF-8 at byte 3; it looks like Latin-1",
    "rows.jsonl:2": "not JSON",
    "cut.png": "not a readable image",
    "long.txt": "context of 2048 tokens",
    "none.txt": "No such file",
    "sheet.xlsx": "a ZIP or Office file",
}


def test_what_cannot_be_read_is_a_record_and_the_rest_goes_on(trained, documents, tmp_path, capsys):
    out = tmp_path / "out.jsonl"
    for size in (1, 4):
        options = words("--max-new-tokens 5 --batch-size {} --out {}", size, out)
        assert run(trained, *options, *documents) == 2
        assert (
            capsys.readouterr().err.splitlines()[-1] == "error: 6 of 11 documents could not be read"
        )
        found = {Path(line["input"]).name: line for line in records(out)}
        assert {name for name, line in found.items() if "error" in line} == set(WRONG)
        assert all(reason in found[name]["error"] for name, reason in WRONG.items())
        assert [found[n]["pages"] for n in ("a.txt", "rows.jsonl:1", "scan.txt", "z.jp2")] == [
            found["a.txt"]["pages"],
            1,
            3,
            1,
        ]
        out.rename(tmp_path / f"{size}.jsonl")
    assert (tmp_path / "1.jsonl").read_bytes() == (tmp_path / "4.jsonl").read_bytes()


def test_an_interrupted_run_goes_on_where_it_was(trained, documents, tmp_path, capsys):
    out, whole = tmp_path / "out.jsonl", tmp_path / "whole.jsonl"
    options = words("--max-new-tokens 5 --temperature 1 --seed 3 --out")
    assert run(trained, *options, whole, *documents) == 2
    lines = whole.read_text("utf-8").splitlines(keepends=True)
    good = [line for line in lines if "error" not in json.loads(line)]
    out.write_text("".join(good[:2]) + good[2][:20], "utf-8")  # killed while it wrote the third
    assert run(trained, *options, out, "--resume", *documents) == 2
    assert out.read_text("utf-8").splitlines(keepends=True)[:2] == good[:2]
    assert sorted(out.read_text("utf-8").splitlines()) == sorted(
        whole.read_text("utf-8").splitlines()
    )
    shutil.copy(CASES / "images" / "0.png", documents[3])  # one of them has been mended
    assert run(trained, *options, out, "--resume", *documents) == 2
    again = {Path(line["input"]).name: line for line in records(out)}
    assert "answer" in again["cut.png"] and len(again) == len(lines)
    assert run(trained, *options, out, *documents) == 2
    assert "File exists" in capsys.readouterr().err


def test_a_file_with_the_key_of_before_is_gone_on_with(trained, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"text": "one"}\n{"text": "two", "summary": "2"}\n')
    out, options = tmp_path / "out.jsonl", words("--max-new-tokens 5 --threads 1 --out")
    assert run(trained, *options, out, tmp_path / "rows.jsonl") == 0
    first, second = records(out)
    assert list(first)[:2] == ["input", "answer"] and "reference" not in first
    assert second["reference"] == "2"
    before = {"input": first["input"], "summary": "kept"}
    out.write_text(json.dumps(before) + "\n", "utf-8")
    assert run(trained, *options, out, "--resume", tmp_path / "rows.jsonl") == 0
    assert records(out) == [before, second]


def test_an_answer_may_be_as_long_as_the_context_and_one_that_is_cut_is_named(tmp_path, capsys):
    base = write_base(tmp_path / "base", SMALL)
    (tmp_path / "a.txt").write_text("A short text.")

    def answer(*arguments) -> str:
        given = ["--model", str(base), "--mode", "128", *map(str, arguments)]
        assert generate.main([*given, str(tmp_path / "a.txt")]) == 0
        return capsys.readouterr().err

    said = answer("--out", tmp_path / "o.jsonl")
    (line,) = records(tmp_path / "o.jsonl")
    assert line["ended"] or line["tokens"] > SMALL.decoder.max_position_embeddings - 100
    assert ("cut off after" in said) != line["ended"]
    assert "the answer: cut off after 3 tokens (--max-new" in answer("--max-new-tokens", 3)
