"""Claims about the notices, on which a run without arguments trains, and about the two families."""

import hashlib
import json
import re
from collections import Counter
from dataclasses import asdict

import pytest
from commands import python

from deepsynth_min.corpus import documents as reports, families, grammar, notices
from deepsynth_min.data.row import Row
from deepsynth_min.data.samples import SampleBuilder
from deepsynth_min.data.sources import open_data
from deepsynth_min.data.tokenizer import load_tokenizer
from deepsynth_min.errors import UserError
from deepsynth_min.model.shape.presets import SHIPPED, TINY_READER_CONFIG
from deepsynth_min.settings import DataSettings, Settings

TRAIN, HELD_OUT = notices.documents("train"), notices.documents("val")
MONTHS = "|".join(grammar.MONTHS["en"].split())


def possible() -> set[str]:
    """Every last name, town and phrase that the tables can give."""
    tables = notices.tables()
    whole = (tables["last"], tables["town"], tables["slots"]["thing"], tables["slots"]["place"])
    return {head + tail for table in whole for head in table["head"] for tail in table["tail"]}


POSSIBLE = possible()


def values(text: str) -> set[str]:
    """What a notice was given, found by its text alone: days, other numbers, names and phrases."""
    days = re.findall(rf"\d+ (?:{MONTHS})", text)
    rest = re.sub(rf"\d+ (?:{MONTHS})", "", text)
    words = re.findall(r"\w+", rest)
    runs = {" ".join(words[i : i + n]) for n in range(1, 5) for i in range(len(words))}
    return {*days, *re.findall(r"\d+", rest)} | runs & POSSIBLE


def test_no_value_of_a_held_out_notice_stands_in_a_training_notice():
    ours, theirs = (
        {value for d in documents for value in values(d.text)} for documents in (TRAIN, HELD_OUT)
    )
    assert ours & theirs == set()
    assert len(theirs) > 400 and len(ours) > 5000
    assert all(set(d.entities) <= {n for n in d.entities if n in d.text} for d in HELD_OUT)


def test_the_answer_chooses_among_persons_things_and_days():
    for document in TRAIN + HELD_OUT:
        left_out = values(document.text) - values(document.summary)
        assert values(document.summary) <= values(document.text), document.id
        assert len(left_out) >= 2, document.id


def test_every_slot_that_the_kinds_share_is_used():
    sentences = json.dumps(notices.tables()["genre"])
    assert all("{" + slot in sentences for slot in notices.tables()["slots"])


def test_two_kinds_have_the_same_headings_so_that_the_text_decides():
    found, returned = (
        {re.match(r"[A-Z ]+", d.text)[0].strip() for d in TRAIN if d.genre == genre}
        for genre in ("found", "returned")
    )
    assert found == returned == {"FOUND", "LOST PROPERTY", "WHOSE IS IT"}


def test_kinds_have_equal_shares_and_no_text_or_summary_occurs_twice():
    for documents in (TRAIN, HELD_OUT):
        assert set(Counter(d.genre for d in documents).values()) == {len(documents) // 4}
        assert len({d.id for d in documents}) == len(documents)
    everything = TRAIN + HELD_OUT
    assert len({d.text for d in everything}) == len({d.summary for d in everything})
    assert len({d.text for d in everything}) == len(everything)


def test_no_hole_is_left_and_articles_are_right():
    for document in TRAIN + HELD_OUT:
        written = document.text + "\n" + document.summary
        assert not re.search(r"[{}~|\"']|  | [.,]|\.\.|\b[aA] [aeiouAEIOU]", written), written
        assert all(
            re.fullmatch(r"[A-Z0-9][^\n]*[.?A-Z]", line) for line in written.split("\n") if line
        )


def test_tiny_reader_can_draw_and_write_every_character():
    builder = SampleBuilder(Settings(), TINY_READER_CONFIG, load_tokenizer(SHIPPED))
    for document in TRAIN[:60] + HELD_OUT:
        sample = builder(Row("a notice", document.summary, document.text))
        assert not sample.missing and 1 < len(sample.pages) < 10
        assert len(sample.ids) == sample.prompt + len(document.summary) + 1


def test_the_same_seed_gives_the_same_bytes_in_a_new_process(tmp_path):
    command = ["-m", "deepsynth_min.corpus", "--family", "notices", "--seed", 3]
    python(*command, "--split", "val", "--out", tmp_path / "a", check=True)
    rows = [json.loads(line) for line in (tmp_path / "a").read_text("utf-8").splitlines()]
    here = [json.loads(json.dumps(asdict(d))) for d in notices.documents("val", 3)]
    assert rows == here and rows != [json.loads(json.dumps(asdict(d))) for d in HELD_OUT]
    with pytest.raises(ValueError, match="test"):
        notices.documents("test")


def test_the_reports_are_byte_for_byte_those_that_tiny_reader_has_learned_from():
    digest = hashlib.sha256()
    for split in ("train", "val"):
        for document in reports.documents(split):
            digest.update(json.dumps(asdict(document)).encode())
    expected = "61a65d09af1c6e4fdf7b59c8fec2cbda90fb35e07f6f549dfce2cd1599cfc26e"
    assert digest.hexdigest() == expected


def test_embedded_alone_goes_on_meaning_the_reports():
    assert DataSettings().data == ("embedded:notices",)
    old, new = (open_data(DataSettings(data=(n,)), 0) for n in ("embedded", "embedded:reports"))
    assert old.train.signature() == new.train.signature() == "embedded train"
    assert old.train[7] == new.train[7] and old.train[7].where == "embedded train 7"
    assert old.held_out[3].text == reports.documents("val")[3].text
    rows = open_data(DataSettings(), 0)
    assert rows.train[5].text == TRAIN[5].text and rows.held_out[5].summary == HELD_OUT[5].summary
    mixed = DataSettings(data=("embedded:notices:3", "embedded"), val_data="embedded:notices")
    assert open_data(mixed, 0).held_out[0].where == "embedded:notices val 0"
    assert families.family_of("embedding.jsonl") is None
    with pytest.raises(UserError, match="embedded:news.*embedded:reports, embedded:notices and"):
        open_data(DataSettings(data=("embedded:news",)), 0)
