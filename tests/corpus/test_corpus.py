"""Claims about the embedded corpus: what users rely on, and what natives would stumble over."""

import json
import re
import subprocess
import sys
import tomllib
from collections import Counter
from datetime import date, time
from functools import cache
from itertools import combinations
from random import Random

import pytest

from deepsynth_min.corpus import documents as corpus, grammar

SPLITS = ("train", "val")


@cache  # of what takes a second nothing is made while tests are collected
def all_documents() -> list[corpus.Document]:
    return [document for split in SPLITS for document in corpus.documents(split)]


def in_language(language: str) -> list[str]:
    return [part for d in all_documents() if d.language == language for part in (d.text, d.summary)]


def run(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "deepsynth_min.corpus", *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def test_there_are_enough_documents():
    assert len(corpus.documents("train")) >= 2000
    assert len(corpus.documents("val")) >= 250


@pytest.mark.parametrize("split", SPLITS)
def test_languages_have_equal_shares(split):
    shares = Counter(document.language for document in corpus.documents(split))
    assert set(shares) == {"en", "fr", "de", "es"}
    assert max(shares.values()) == min(shares.values())


@pytest.mark.parametrize("split", SPLITS)
def test_every_language_has_every_genre(split):
    pairs = {(document.language, document.genre) for document in corpus.documents(split)}
    assert len(pairs) == 4 * len({document.genre for document in all_documents()})


def test_lengths_are_in_range():
    assert all(300 <= len(document.text) <= 1500 for document in all_documents())


def test_a_summary_is_one_line_and_one_sentence():
    for document in all_documents():
        assert re.fullmatch(r"[^\n]+\.", document.summary)
        assert not re.search(r"[a-zß-ÿ]{3,}\. [A-ZÀ-Þ]", document.summary), document.summary


def test_no_text_occurs_twice():
    assert len({document.text for document in all_documents()}) == len(all_documents())


def test_no_summary_occurs_twice():
    assert len({document.summary for document in all_documents()}) == len(all_documents())


def test_ids_are_unique():
    assert len({document.id for document in all_documents()}) == len(all_documents())


@pytest.mark.parametrize("seed", [0, 1])
def test_splits_share_no_entity_combination(seed):
    """The reference of Document.combinations: full names, and all unordered pairs."""
    found = {}
    for split in SPLITS:
        documents = corpus.documents(split, seed)
        pairs = {frozenset(pair) for d in documents for pair in combinations(d.entities, 2)}
        persons = {frozenset([name]) for d in documents for name in d.entities if " " in name}
        found[split] = pairs | persons
        assert len(found[split]) > 1000
    assert not found["train"] & found["val"]


def test_the_entities_of_a_document_stand_in_its_text():
    """By full name, or in letters by first name."""
    for document in all_documents():
        for entity in document.entities:
            alone = entity.split()[0] if document.genre == "letter" else entity
            assert alone in document.text, (document.id, entity)


def test_no_name_of_a_table_is_missing_from_entities():
    """Full names found by looking them up in the tables, not by asking the generator."""
    for language, tables in corpus._tables().items():
        first = "|".join(name for names in tables["first"].values() for name in names)
        full = re.compile(rf"\b(?:{first}) (?:{'|'.join(tables['last'])})\b")
        for document in all_documents():
            if document.language == language:
                assert set(full.findall(document.text)) <= set(document.entities)


def test_every_number_of_a_summary_stands_in_its_text():
    for document in all_documents():
        assert len(set(document.summaries)) == 3 and document.summary in document.summaries
        for number in re.findall(
            rf"\d(?:[\d.,{grammar.NARROW}]*\d)?", " ".join(document.summaries)
        ):
            assert re.search(rf"(?<!\d){re.escape(number)}(?!\d)", document.text), document.id


def test_every_name_in_a_summary_stands_in_its_text():
    """Capitalised words inside a summary are names (German apart, which capitalises nouns)."""
    for document in all_documents():
        if document.language != "de":
            for summary in document.summaries:
                for name in re.findall(r"(?<=[a-zà-ÿ,’] )[A-ZÀ-Þ][\w-]+", summary):
                    assert name in document.text, (document.id, name)


def test_a_summary_cannot_be_told_from_its_genre_and_language():
    """Within a genre and language, no two summaries hold the same names and numbers."""
    facts = Counter(
        (d.language, d.genre, tuple(re.findall(r"\d+|[A-ZÀ-Þ][\w-]+", d.summary)))
        for d in all_documents()
    )
    assert max(facts.values()) == 1


def test_most_documents_hold_distractors():
    """Persons and towns that the summary does not name."""
    more = [d for d in all_documents() if any(entity not in d.summary for entity in d.entities)]
    assert len(more) > 0.9 * len(all_documents())


def test_facts_stand_at_varied_positions():
    """The last number of the summary: each fifth of the documents' length holds some of them."""
    places = Counter()
    for document in all_documents():
        numbers = re.findall(r"\d+", document.summary)
        if numbers:
            places[5 * document.text.index(numbers[-1]) // len(document.text)] += 1
    assert min(places[fifth] for fifth in range(5)) > 0.04 * sum(places.values())


def test_some_texts_have_paragraphs_and_some_have_none():
    paragraphs = Counter(document.text.count("\n") > 0 for document in all_documents())
    assert min(paragraphs[True], paragraphs[False]) > 0.2 * len(all_documents())


def test_no_hole_or_markup_is_left():
    for document in all_documents():
        written = document.text + document.summary
        assert not re.search(r"[{}~|?\"']|  | [.,]|\.\.|\b[mfn]:\w", written)


def test_the_same_seed_gives_the_same_bytes_in_a_new_process(tmp_path):
    run("--split", "val", "--seed", "3", "--out", str(tmp_path / "a"))
    rows = [json.loads(line) for line in (tmp_path / "a").read_text("utf-8").splitlines()]
    here = [(d.id, d.text, d.summary) for d in corpus.documents("val", 3)]
    assert [(row["id"], row["text"], row["summary"]) for row in rows] == here


def test_another_seed_gives_other_documents():
    assert not {d.text for d in all_documents()} & {d.text for d in corpus.documents("train", 1)}


def test_the_draw_uses_no_method_of_random_but_random():
    reference, draw = Random(5), corpus.Draw(5)
    assert [draw.below(1000) for _ in range(50)] == [
        int(reference.random() * 1000) for _ in range(50)
    ]


def test_a_shuffle_is_a_permutation():
    assert sorted(corpus.Draw(1).shuffled(range(40))) == list(range(40))


def test_unknown_split_is_an_error():
    with pytest.raises(ValueError, match="test"):
        corpus.documents("test")


def test_the_command_refuses_to_overwrite(tmp_path):
    kept = tmp_path / "kept.jsonl"
    kept.write_text("mine")
    result = run("--out", str(kept))
    assert (result.returncode, kept.read_text()) == (2, "mine")
    assert str(kept) in result.stderr and result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "language, wrong",
    [
        ("fr", r"\b[dD]e le\b|\b[dD]e les\b|\bà les?\b"),
        ("fr", r"\b(?:de|que|le|la|je|ne) [aâàeéèêiîoôuyœ](?!nze)"),
        ("fr", r"(?<![\u202f\u00a0])[;!?»]|(?<!\u00a0):(?!\d)|«(?!\u00a0)"),
        ("es", r"\b[dD]e el\b|\b[aA] el\b|\by [iI]|\bo [oO]"),
        ("de", r"\b(?:in|an|zu|von|bei) dem\b|\bzu der\b"),
        ("en", r"\ba [aeio]\w|\ban [^aeiou“]"),
    ],
)
def test_no_contraction_is_missed(language, wrong):
    for part in in_language(language):
        found = re.search(wrong, part)
        assert not found, part[max(0, found.start() - 40) : found.end() + 20]


@pytest.mark.parametrize(
    "language, wrong",
    [
        ("en", r"\d{4,}(?<!\d{5})\b(?=\d)|£\d{4,}"),
        ("fr", r"\d{4,} (?:euros|m)\b"),
        ("de", r"\d{4,} (?:Euro|m|Besucher)\b"),
        ("es", r"\d{5,}"),
    ],
)
def test_long_numbers_are_grouped(language, wrong):
    assert not [part for part in in_language(language) if re.search(wrong, part)]


@pytest.mark.parametrize(
    "word, written",
    [
        (("fr", "atelier", "m", "de"), "de l'atelier"),
        (("fr", "moulin", "m", "de"), "du moulin"),
        (("fr", "Ardun", "name", "de"), "d'Ardun"),
        (("fr", "dépôt", "m", "a"), "au dépôt"),
        (("fr", "Inès", "name", "que"), "qu'Inès"),
        (("fr", "tarte", "f", "un"), "une tarte"),
        (("es", "molino", "m", "a"), "al molino"),
        (("es", "coral", "f", "de"), "de la coral"),
        (("de", "Ofen", "m", "in"), "im Ofen"),
        (("de", "Boot", "n", "dat"), "dem Boot"),
        (("de", "Ofen", "m", "acc"), "den Ofen"),
        (("de", "Ofen", "m", "bare"), "Ofen"),
    ],
)
def test_nouns_take_the_article_of_their_language(word, written):
    assert grammar.noun(*word) == written


@pytest.mark.parametrize(
    "language, written",
    [("en", "12,400"), ("fr", "12\u202f400"), ("de", "12.400"), ("es", "12\u202f400")],
)
def test_thousands_are_written_as_the_language_does(language, written):
    assert grammar.integer(language, 12400) == written


@pytest.mark.parametrize(
    "language, written", [("en", "10.5"), ("fr", "10,5"), ("de", "10,5"), ("es", "10,5")]
)
def test_decimals_are_written_as_the_language_does(language, written):
    assert grammar.decimal(language, 105) == written


@pytest.mark.parametrize(
    "language, written",
    [("en", "18:05"), ("fr", "18\u00a0h\u00a005"), ("de", "18.05\u00a0Uhr"), ("es", "18:05")],
)
def test_the_time_is_written_as_the_language_does(language, written):
    assert grammar.clock(language, time(18, 5)) == written


@pytest.mark.parametrize(
    "language, written",
    [
        ("en", "Thursday 1 March"),
        ("fr", "jeudi 1er mars"),
        ("de", "Donnerstag, dem 1. März"),
        ("es", "jueves 1 de marzo"),
    ],
)
def test_weekdays_are_those_of_the_calendar(language, written):
    assert grammar.day(language, date(2018, 3, 1), "week") == written


def test_every_slot_that_a_genre_defines_is_used():
    for path in sorted(corpus.FOLDER.glob("*.toml")):
        for name, genre in tomllib.loads(path.read_text("utf-8"))["genre"].items():
            sentences = json.dumps({key: genre[key] for key in genre if key != "slots"})
            own = genre.get("slots", {})
            assert all("{" + slot in sentences for slot in own), (path.name, name)


def test_the_file_holds_the_texts_unchanged(tmp_path):
    run("--split", "train", "--out", str(tmp_path / "t"))
    rows = [json.loads(line)["text"] for line in (tmp_path / "t").open(encoding="utf-8")]
    assert rows == [document.text for document in corpus.documents("train")]
