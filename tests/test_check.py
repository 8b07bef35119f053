"""`python -m deepsynth_min.check` counts what training reads, and finds what is wrong with it."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from deepsynth_min import check, command_line, settings as S
from deepsynth_min.corpus import documents as corpus
from deepsynth_min.data.loader import Loader
from deepsynth_min.data.sources import open_data
from deepsynth_min.data.tokenizer import EMBEDDED
from deepsynth_min.inspection import statistics
from deepsynth_min.inspection.strange import strangest
from deepsynth_min.model.shape.official import config_to_dict
from deepsynth_min.model.shape.presets import PRESETS
from deepsynth_min.options import change
from deepsynth_min.pages.scripts import complaints
from deepsynth_min.pages.style import PageStyle

CASES = Path(__file__).parent / "cases"
DOCUMENTS = corpus.documents("train")


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def rows_of(start: int, stop: int) -> list[dict]:
    return [{"text": d.text, "summary": d.summary} for d in DOCUMENTS[start:stop]]


def collect(data: Path, *more: object, workers: int = 1) -> statistics.Statistics:
    settings = check.lenient(command_line.parse(["--data", str(data), *map(str, more)]))
    return statistics.collect(settings, workers)


def checked(capsys, tmp_path, *arguments: object) -> tuple[int, str, str]:
    """(exit code, the tables with single spaces, the error)."""
    out = ["--html", str(tmp_path / "check.html"), "--workers", "1"]
    code = check.main([*map(str, arguments), *out])
    printed = capsys.readouterr()
    return code, re.sub(" +", " ", printed.out), printed.err.strip().splitlines()[-1]


# -- figures --------------------------------------------------------------------------------------


def test_the_figures_are_those_of_the_batches_of_one_epoch(jsonl):
    found = collect(jsonl, "--val-fraction", "0.25")
    options = "--val-fraction 0.25 --batch-size 6 --bucket 0".split()
    settings = command_line.parse(["--data", str(jsonl), *options])
    train = open_data(settings.data, 0).train
    assert len(train) == 18  # three steps of six: an epoch with nothing of the next
    loader = Loader(train, found.builder, settings)
    batches = [batch for _ in range(3) for batch in next(loader)]
    loader.close()
    counted = {
        "length": sum(int(batch.attention_mask.sum()) for batch in batches),
        "visual": sum(int(batch.image_mask.sum()) for batch in batches),
        "answer": sum(int((batch.labels >= 0).sum()) for batch in batches),
        "pages": sum(len(batch.pages) for batch in batches),
    }
    assert {name: found.per_epoch(name) for name in counted} == counted
    texts = [len(train[i].text) for i in range(18)]
    assert found.train.column("characters").tolist() == texts
    assert found.train.column("drawn").tolist() == texts


def test_the_tables_give_sizes_and_steps(capsys, tmp_path, jsonl):
    options = ["--batch-size", 2, "--accumulate", 2, "--processes", 2, "--val-fraction", 0.25]
    code, tables, _ = checked(capsys, tmp_path, "--data", jsonl, *options)
    lengths = [len(DOCUMENTS[i].text) for i in range(24)]
    held_out = open_data(S.DataSettings(data=str(jsonl), val_fraction=0.25), 0).held_out
    for i in range(len(held_out)):
        lengths.remove(len(held_out[i].text))
    assert code == 0
    assert f"Characters of the text {min(lengths)} {np.median(lengths):,.0f} " in tables
    assert "2 samples x 2 micro-steps x 2 processes = 8" in tables and "steps 3" in tables
    assert "page: drawn from 'text'; answer: 'summary'; 24 rows" in tables


@pytest.mark.slow  # each imports torch
def test_one_process_and_two_find_the_same(tmp_path):
    rows = [*rows_of(0, 150), *map(json.loads, (CASES / "scripts.jsonl").open(encoding="utf-8"))]
    path = write(tmp_path / "rows.jsonl", [*rows, rows[0], {"text": "", "summary": "x"}])
    more = ["--val-fraction", "0.3", "--val-samples", "0"]
    one, two = (collect(path, *more, workers=workers) for workers in (1, 2))
    for split in statistics.SPLITS:
        a, b = getattr(one, split), getattr(two, split)
        assert np.array_equal(a.numbers, b.numbers) and len(a.numbers)
        assert np.array_equal(a.figures, b.figures) and np.array_equal(a.keys, b.keys)
        assert (a.bad, a.missing, a.near, a.touched) == (b.bad, b.missing, b.near, b.touched)


def test_rows_are_read_once_each_in_the_order_of_their_files(jsonl):
    settings = S.DataSettings(data=str(jsonl), val_fraction=0.3)
    train = open_data(settings, 0).train
    numbers = np.concatenate([chosen for _, chosen in statistics._tasks("train", train)])
    lines = [int(train[i].where.rpartition(":")[2]) for i in numbers.tolist()]
    assert lines == sorted(lines) and sorted(numbers.tolist()) == list(range(len(train)))
    assert numbers.tolist() != sorted(numbers.tolist())  # training takes them in another order


def test_rows_of_a_weighted_source_count_as_often_as_they_come(tmp_path):
    a, b = (write(tmp_path / f"{n}.jsonl", rows_of(n, n + 5)) for n in (0, 5))
    val = write(tmp_path / "val.jsonl", rows_of(10, 12))
    both = collect(f"{a}:3", f"{b}", "--val-data", val)
    alone = [collect(path, "--val-data", val).per_epoch("length") for path in (a, b)]
    assert both.per_epoch("length") == pytest.approx(3 * alone[0] + alone[1])


# -- what is wrong --------------------------------------------------------------------------------


def test_bad_rows_are_counted_by_reason_and_named(capsys, tmp_path):
    options = ["--data", CASES / "bad-rows.jsonl", "--val-data", CASES / "splits"]
    code, tables, error = checked(capsys, tmp_path, *options)
    for count in (
        "field 'summary' is not a text 2",
        "not JSON 2",
        "field 'summary' is empty 1",
        "no page 1",
        "no such image 1",
        "an image that cannot be read 1",
        "too long for the model's context 1",
        "cannot be used 9",
    ):
        assert f"{count}\n" in tables
    for line in (2, 3, 4, 6, 7, 9, 10, 11, 13):
        assert f"bad-rows.jsonl:{line}: " in tables
    assert code == 2 and "bad-rows.jsonl:2: field 'summary' is empty" in error


@pytest.mark.parametrize(
    "options, code, message",
    [
        ("--on-bad-row skip", 2, "more than --max-bad 0.01"),
        ("--on-bad-row skip --max-bad 1", 0, ""),
        ("--on-bad-row skip --max-bad 1 --on-too-long error", 2, "bad-rows.jsonl:6: the text"),
        ("--on-bad-row skip --max-bad 0.6", 2, "9 of 13 rows cannot be used"),
    ],
)
def test_it_says_what_training_with_these_settings_would_do(
    capsys, tmp_path, options, code, message
):
    given = ["--data", CASES / "bad-rows.jsonl", "--val-data", CASES / "splits", *options.split()]
    ended, tables, error = checked(capsys, tmp_path, *given)
    assert ended == code and message in error
    assert ("training would start" in tables) == (code == 0)


def test_held_out_rows_of_which_none_can_be_used_stop_it(capsys, tmp_path):
    path = write(tmp_path / "rows.jsonl", rows_of(0, 3))
    val = write(tmp_path / "val.jsonl", [{"text": "a long line " * 9000, "summary": "Long."}])
    options = ["--data", path, "--val-data", val, "--on-bad-row", "skip", "--max-bad", 1]
    code, tables, error = checked(capsys, tmp_path, *options)
    assert code == 2 and "no held-out row can be used" in error
    assert "are held out and scored 0\n" in tables and "val.jsonl:1: " in tables


@pytest.mark.parametrize("policy, code", [("auto", 2), ("truncate", 0)])
def test_a_row_too_long_for_the_context_is_found_or_cut(capsys, tmp_path, policy, code):
    long = {"text": "all is said at great length " * 2000, "summary": "Long."}
    path = write(tmp_path / "rows.jsonl", [*rows_of(0, 4), long])
    val = write(tmp_path / "val.jsonl", rows_of(10, 12))
    options = ["--data", path, "--val-data", val, "--on-too-long", policy]
    ended, tables, error = checked(capsys, tmp_path, *options)
    assert ended == code
    if policy == "truncate":
        share = float(re.search(r"whose text is cut \((.*) % of all characters\) 1\n", tables)[1])
        assert "cut to fit into the context 1\n" in tables and 80 < share < 95
    else:
        assert "too long for the model's context 1\n" in tables and "rows.jsonl:5: " in error


def test_characters_that_no_font_has_are_grouped_by_script(capsys, tmp_path):
    rows = [json.loads(line) for line in (CASES / "scripts.jsonl").open(encoding="utf-8")]
    bengali = sum("\u0980" <= c <= "\u09ff" for c in rows[4]["text"])
    hangul = sum("\uac00" <= c <= "\ud7a3" for c in rows[2]["text"])
    options = ["--data", CASES / "scripts.jsonl", "--val-data", CASES / "splits"]
    code, tables, _ = checked(capsys, tmp_path, *options)
    assert code == 0  # they are drawn as boxes; that is for the user to judge
    mend = r"pip install 'deepsynth-min\[\w+\]' or --font FILE"
    found = dict(re.findall(rf"^ (\S.*?) ([\d,]+) no font has them {mend} ", tables, re.M))
    assert {"Han", "Tamil", "Bengali", "Hangul", "emoji"} <= set(found)
    assert (int(found["Bengali"]), int(found["Hangul"])) == (bengali, hangul)
    assert "Arabic" not in tables
    # what training says of the same rows: the same scripts, and the same that mends them
    for line in complaints([row["text"] for row in rows], PageStyle()):
        script, mends = line.split(":")[0], line.split("): ")[1]
        assert re.search(rf"^ {script} [\d,]+ no font has them {re.escape(mends)} ", tables, re.M)


def test_rows_refused_for_their_characters_still_tell_which(capsys, tmp_path):
    rows = [*rows_of(0, 5), {"text": "售出两盏灯", "summary": "灯"}]
    path = write(tmp_path / "rows.jsonl", rows)
    given = ["--data", path, "--val-data", CASES / "splits", "--on-missing", "error"]
    code, tables, error = checked(capsys, tmp_path, *given)
    assert code == 2 and "rows.jsonl:6: " in error and " cannot be drawn 1\n" in tables
    assert " Han 5 no font has them" in tables


def test_scripts_drawn_without_shaping_name_the_packages(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("deepsynth_min.pages.style.PageStyle.shaper", lambda style: "")
    arabic = {"text": "بيع مصباحان يوم الأربعاء.", "summary": "مصباحان."}
    path = write(tmp_path / "rows.jsonl", [arabic, *rows_of(0, 2)])
    options = ["--data", path, "--val-data", CASES / "splits", "--font-size", 23]
    _, tables, _ = checked(capsys, tmp_path, *options)
    line = next(line for line in tables.splitlines() if "drawn without shaping" in line)
    letters = sum("\u0600" <= c <= "\u06ff" for c in arabic["text"])
    assert line.startswith(f" Arabic {letters} ") and "deepsynth-min[shaping]" in line


# -- duplicates -----------------------------------------------------------------------------------


def test_planted_duplicates_across_the_split_are_found(capsys, tmp_path):
    texts = [" ".join(d.text for d in DOCUMENTS[5 * i : 5 * i + 5])[:900] for i in range(12)]
    changed = texts[1].replace(texts[1][400:420], "quite another passage")
    train = [{"text": text, "summary": f"Answer {i}."} for i, text in enumerate(texts[:8])]
    train.append({"text": texts[2].upper() + "\n", "summary": "ANSWER  2."})
    held = [
        {"text": f"  {texts[0]}", "summary": "Another answer."},
        {"text": changed, "summary": "Changed."},
        *({"text": text, "summary": "New."} for text in texts[8:]),
    ]
    path, val = write(tmp_path / "rows.jsonl", train), write(tmp_path / "val.jsonl", held)
    found = collect(path, "--val-data", val)
    assert [places.tolist() for places in found.same_page()] == [[0], [0]]
    near = [(n.row, n.held_out) for n in found.train.near if n.row not in (0,)]
    assert near == [(1, 1)] and found.train.touched == {0, 1}
    assert found.repeats() == 1
    reasons = {strange.row: " ".join(strange.reasons) for strange in strangest(found)}
    assert "held out too" in reasons[0] and "nearly the same" in reasons[1]
    code, tables, _ = checked(capsys, tmp_path, "--data", path, "--val-data", val)
    assert code == 0 and "the same page trains and is held out 1 1\n" in tables
    assert "80 % alike or more) 1 1\n" in tables and "before them 1\n" in tables


# -- the page -------------------------------------------------------------------------------------


def test_the_page_has_histograms_and_the_strangest_rows_drawn(capsys, tmp_path):
    rows = rows_of(0, 30)
    rows[7]["text"] = "Hm <b>& so on</b>."
    rows[9]["summary"] = "An answer that does not end. " * 20
    path = write(tmp_path / "rows.jsonl", rows)
    options = ["--data", path, "--val-data", CASES / "splits"]
    assert checked(capsys, tmp_path, *options)[0] == 0
    page = (tmp_path / "check.html").read_text("utf-8")
    assert page.count("data:image/png;base64,") == 10 and page.count("<svg") >= 4
    assert "rows.jsonl:8, trains" in page and "the shortest text: 18 characters" in page
    assert "rows.jsonl:10, trains" in page and "the longest answer: " in page
    assert "&lt;b&gt;&amp; so on" in page and "<b>& so" not in page
    assert "http" not in page.replace("http://www.w3.org", "") and "<script" not in page
    assert "prefers-color-scheme: dark" in page and "Training would start." in page


# -- the command ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, message",
    [
        ("--data no-such.jsonl", "no-such.jsonl: no such file"),
        ("--processes 0", "--processes: 0 is below 1"),
        ("--mode 100", "--mode: '100' is neither"),
        ("--model no-such", "no-such: neither a directory nor a hub id"),
        ("--no-such-setting 1", "unknown setting --no-such-setting"),
    ],
)
def test_a_mistake_is_one_line(capsys, tmp_path, options, message):
    code = check.main(["--workers", "1", "--html", str(tmp_path / "c.html"), *options.split()])
    assert code == 2 and message in capsys.readouterr().err
    assert not (tmp_path / "c.html").exists()


def test_a_page_that_cannot_be_written_is_one_line(capsys, tmp_path, jsonl):
    given = ["--data", jsonl, "--limit", 3, "--html", tmp_path / "none" / "c.html"]
    assert check.main(list(map(str, given))) == 2
    assert "c.html: No such file or directory" in capsys.readouterr().err


def test_of_a_checkpoint_only_configuration_and_tokenizer_are_read(tmp_path, jsonl):
    for file in EMBEDDED.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "config.json").write_text(json.dumps(config_to_dict(PRESETS["tiny"])))
    of_directory, of_preset = (collect(jsonl, "--model", name) for name in (tmp_path, "tiny"))
    assert np.array_equal(of_directory.train.figures, of_preset.train.figures)


def test_the_options_of_a_training_are_taken(tmp_path, jsonl):
    (tmp_path / "run.toml").write_text(f'[data]\ndata = ["{jsonl}"]\n[optim]\nlr = 1e-4\n')
    given = ["--config", tmp_path / "run.toml", "--tune", "lora", "--html", "none"]
    assert check.main(list(map(str, given))) == 0
    assert (
        change(command_line.parse(["--config", str(tmp_path / "run.toml")]), lr=1e-4).optim.lr
        == 1e-4
    )


def test_a_file_of_the_users_is_not_replaced_by_the_page(jsonl, capsys):
    before = jsonl.read_bytes()
    assert check.main(["--data", str(jsonl), "--html", str(jsonl)]) == 2
    assert "exists, and is no page of this command" in capsys.readouterr().err
    assert jsonl.read_bytes() == before
    page = str(jsonl.with_suffix(".html"))
    for _ in range(2):  # its own page is
        assert check.main(["--data", str(jsonl), "--workers", "1", "--html", page]) == 0
