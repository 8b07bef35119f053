"""Probes: texts spoilt step by step, equally long, and what a model that reads makes of them."""

import json
from collections import Counter
from dataclasses import replace

import pytest
from commands import words

from deepsynth_min import evaluate
from deepsynth_min.corpus import documents as corpus
from deepsynth_min.data.row import Row, RowError
from deepsynth_min.evaluation.probes import PROBES, Reading, read_prompt, table
from deepsynth_min.evaluation.text_metrics import precision
from deepsynth_min.options import change
from deepsynth_min.settings import Settings

TEXTS = [document.text for document in corpus.documents("val")[:8]]
ROWS = [Row(f"row {i}", "an answer", text) for i, text in enumerate(TEXTS)]


def probed(probe: str, seed: int = 0) -> list[str]:
    reading = Reading(ROWS, "Read.", probe, seed)
    return [reading[i].text for i in range(len(reading))]


@pytest.mark.parametrize("probe", PROBES)
def test_every_probe_has_the_length_and_the_characters_of_the_text(probe):
    for text, spoilt in zip(TEXTS, probed(probe)):
        assert len(spoilt) == len(text) and Counter(spoilt) == Counter(text)
        assert (spoilt == text) is (probe == "real")


def test_shuffled_words_are_the_words_of_the_text_between_its_white_space():
    for text, spoilt in zip(TEXTS, probed("words")):
        assert sorted(spoilt.split()) == sorted(text.split())
        assert spoilt.count("\n") == text.count("\n")


def test_shuffled_letters_stay_in_their_words():
    for text, spoilt in zip(TEXTS, probed("letters")):
        assert [sorted(w) for w in spoilt.split()] == [sorted(w) for w in text.split()]


def test_made_up_words_have_vowels_capitals_and_digits_where_the_text_has_them():
    for text, spoilt in zip(TEXTS, probed("made-up")):
        for a, b in zip(text, spoilt):
            assert a.isupper() == b.isupper() and a.isdigit() == b.isdigit()
            assert a == b or (a in "aeiouy") == (b in "aeiouy") or not a.isascii() & b.isascii()
        kept = set(text.split()) & set(spoilt.split())
        assert len(kept) < len(set(text.split())) / 2


def test_a_probe_depends_on_seed_and_row_alone():
    assert probed("made-up") == probed("made-up") != probed("made-up", seed=1)
    later = Reading([replace(ROWS[0], text="other"), *ROWS[1:]], "Read.", "words")
    assert later[3].text == probed("words")[3]


def test_the_answer_of_a_reading_is_its_page_and_its_instruction_asks_for_it():
    row = Reading(ROWS, read_prompt(Settings()))[2]
    assert row == Row("row 2", TEXTS[2], TEXTS[2], instruction="Read.")
    assert read_prompt(change(Settings(), model="deepseek-ai/DeepSeek-OCR")) == "Free OCR."


def test_a_row_without_a_text_cannot_be_read():
    with pytest.raises(RowError, match="a.jsonl:3: has no text"):
        Reading([Row("a.jsonl:3", "an answer", instruction="Why?")], "Read.")[0]


def test_precision_is_the_share_of_the_answers_words_that_stand_in_the_reference():
    assert precision("a b c d", "a b x x") == 2 / 3  # of a, b and x
    assert precision("a b", "") == 0 and precision("", "") == 0
    assert precision("a b", "A b") == 1 / 2  # case and punctuation count
    assert precision("光学压缩", "光学的") == 2 / 3


def test_the_table_says_how_much_of_the_precision_is_lost():
    figures = {"loss": 0.5, "cer": 0.25, "exact_match": 0.0}
    lines = table({"real": figures | {"precision": 0.8}, "words": figures | {"precision": 0.6}})
    assert lines.splitlines()[1].split() == "real 0.500 0.250 0.800 0.000 0.0%".split()
    assert lines.splitlines()[2].split()[-1] == "25.0%"


@pytest.mark.slow
def test_tiny_reader_loses_precision_where_words_are_made_up(capsys, tmp_path):
    given = words("--model tiny-reader --data embedded:reports --limit 4 --beams 1 --threads 1")
    assert evaluate.main([*given, "--probes"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)["probes"]
    assert list(found) == list(PROBES)
    assert found["made-up"]["loss"] > found["real"]["loss"]
    assert found["made-up"]["precision"] < found["real"]["precision"]
    assert [line.split()[0] for line in err.splitlines()[-4:]] == list(PROBES)
    read = tmp_path / "read.jsonl"  # the same texts by --read, and what was written of them
    assert evaluate.main([*given, "--read", "--out", str(read)]) == 0
    assert json.loads(capsys.readouterr().out)["loss"] == found["real"]["loss"]
    answers = [json.loads(line) for line in read.read_text("utf-8").splitlines()]
    assert [answer["reference"] for answer in answers] == [row.text for row in ROWS[:4]]


def test_probes_have_no_one_set_of_answers_to_write(capsys, tmp_path):
    given = words("--model tiny-reader --data embedded:reports --probes --out {}", tmp_path / "a")
    assert evaluate.main(given) == 2
    assert capsys.readouterr().err.startswith("error: --probes: has four sets of answers")
