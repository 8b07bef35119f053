"""Claims about the needles: facts in long documents, and questions about them."""

import json
import re
from collections import Counter
from dataclasses import asdict

import pytest
from commands import python

from deepsynth_min.corpus import families, needles
from deepsynth_min.data.rows import EmbeddedRows
from deepsynth_min.data.samples import SampleBuilder
from deepsynth_min.data.sources import open_data
from deepsynth_min.data.tokenizer import load_tokenizer
from deepsynth_min.errors import UserError
from deepsynth_min.model.shape.presets import SHIPPED, TINY_READER_CONFIG
from deepsynth_min.settings import DataSettings, Settings

TRAIN, HELD_OUT = list(needles.documents("train")), list(needles.documents("val"))


def facts(text: str) -> list[tuple[str, str]]:
    return re.findall(r"The secret number of (\w+) is (\d{4})\.", text)


def test_the_question_decides_which_of_several_numbers_is_right():
    for needle in TRAIN + HELD_OUT:
        found = facts(needle.text)
        town = re.fullmatch(r"What is the secret number of (\w+)\?", needle.instruction)[1]
        assert len(dict(found)) == needles.FACTS == len({number for _, number in found})
        assert dict(found)[town] == needle.summary
        assert needle.text.count(town) == needle.text.count(needle.summary) == 1


def test_no_town_and_no_number_of_a_held_out_fact_is_one_of_a_training_fact():
    ours, theirs = ({value for n in rows for fact in facts(n.text) for value in fact}
                    for rows in (TRAIN, HELD_OUT))  # fmt: skip
    assert not ours & theirs and len(theirs) > 500


def test_held_out_documents_share_no_sentence_with_training_documents_but_fixed_ones():
    sentences = [set(needles._sentences(split)) for split in ("train", "val")]
    names = re.compile(r"[a-z,] [A-Z]\w+ [A-Z]\w+")  # a person: first and last name
    shared = sentences[0] & sentences[1]
    assert not [sentence for sentence in shared if names.search(sentence)]


def test_a_text_is_as_long_as_it_should_be_but_for_a_sentence():
    longest = max(len(s) for split in needles.SIZES for s in needles._sentences(split))
    for needle in TRAIN + HELD_OUT:
        assert needle.length - longest - 1 <= len(needle.text) <= needle.length


def test_the_fact_stands_at_the_sentence_nearest_to_its_depth():
    for needle in TRAIN + HELD_OUT:
        fact = f" of {needle.instruction[29:-1]} is {needle.summary}."
        before, after = needle.text.split(f"The secret number{fact}")
        place, rest = len(before), len(before) + len(after)
        ends = [m.end() for m in re.finditer(r"[.?!] ", before + after.lstrip())]
        nearest = min(abs(end - needle.depth * rest) for end in [0, *ends, rest])
        assert abs(place - needle.depth * rest) <= nearest + 2


def test_any_stretch_of_rows_has_all_places_equally_often():
    places = len(needles.DEPTHS) * len(needles.LENGTHS)
    for start in (0, 7, 100):
        assert set(Counter(n.needle for n in TRAIN[start : start + 4 * places]).values()) == {4}
    assert set(Counter(n.needle for n in HELD_OUT).values()) == {len(HELD_OUT) // places}


def test_a_row_depends_on_its_number_seed_and_lengths_alone(tmp_path):
    command = ["-m", "deepsynth_min.corpus", "--family", "needles@500,900", "--seed", 3]
    python(*command, "--split", "val", "--out", tmp_path / "a", check=True)
    rows = [json.loads(line) for line in (tmp_path / "a").read_text("utf-8").splitlines()]
    here = needles.documents("val", 3, (500, 900))
    assert asdict(here[77]) == rows[77] and [asdict(n) for n in here] == rows
    others = [needles.documents(*given)[77] for given in (("val",), ("val", 4), ("train", 3))]
    assert len({needle.text for needle in [here[77], *others]}) == 4
    with pytest.raises(ValueError, match="test"):
        needles.documents("test")


def test_lengths_stand_in_the_name_beside_a_weight():
    given = DataSettings(data=("embedded:needles@500,2000:0.5", "embedded:notices"))
    data = open_data(given, 0)
    assert "embedded:needles@500,2000 train" in data.train.signature()
    held_out = EmbeddedRows("val", families.family_of("embedded:needles@500,2000"))
    assert {row.needle[1] for row in held_out} == {500, 2000}
    assert [row.needle for row in EmbeddedRows("val", "notices")][:3] == [None] * 3


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("needles@", "is not lengths"),
        ("needles@12", "lengths are 200 to 10,000,000 characters"),
        ("needles@500,500", "lengths differ"),
        ("needles@long", "'long' is not lengths in characters, as in needles@500,2000"),
        ("needles@500,", "'500,' is not lengths"),
        ("notices@500", "no such embedded documents"),
        ("needle", "embedded:reports, embedded:notices and embedded:needles"),
    ],
)
def test_a_wrong_name_is_one_line(name, message):
    with pytest.raises(UserError, match=message) as raised:
        open_data(DataSettings(data=(f"embedded:{name}",)), 0)
    assert f"embedded:{name}" in str(raised.value) and "\n" not in str(raised.value)


def test_tiny_reader_can_draw_them_and_is_asked_the_question():
    builder = SampleBuilder(Settings(), TINY_READER_CONFIG, load_tokenizer(SHIPPED))
    for row in list(EmbeddedRows("val", "needles"))[:30]:
        sample = builder(row)
        assert not sample.missing and len(sample.pages) >= row.needle[1] / 100
        asked = len(row.instruction) + 2  # a line break before it, a space after it
        assert sample.prompt == 1 + sample.visual + asked
        assert len(sample.ids) == sample.prompt + 5
