"""The reports: (text, summary) pairs in four languages, made here, nothing downloaded.

In: a split and a seed. Out: a list of Documents of 300 to 1,500 characters, which data/rows.py
gives out like rows {text, summary} of a JSONL file. A summary states names, places, quantities,
dates and outcomes chosen at random, so nothing but reading its document can tell it.

The one idea: a document is made from sentence templates over a *scene*, a set of slots that get
their value when a sentence first uses them. LANGUAGE.toml holds, per genre, the slots and the
sentences:

    start     alternatives for the first sentence
    facts     groups of alternatives; one of each group is written, in any order (or as they stand,
              when `ordered`)
    asides    sentences of which at least two are written, at any place: distractors with persons,
              sums and dates of their own
    head, end alternatives for a line before and after the body (optional)
    summary   alternatives; a summary may only use slots that the text has used
    layout    prose (one block), paragraphs, or lines (one sentence a line)

In a sentence, {slot} is the value, {slot.form} a form of it (grammar.py; of a person also first,
last), {slot?male|female} a choice by gender. A slot is one of
    "person", "town", "date 1950 2020", "day 1 6" (in one of these months), "time 6 21",
    "int 20 500 10" (low, high, step), "dec 10 99" (tenths), "year 1900 1990", "few 2 9" (in words),
    "like OTHER" (another value from the same list), or a list of phrases; "m:", "f:", "n:" mark
    nouns, and "first ~ second" gives {slot} and {slot.also}; or two lists, head and tail.
No two slots of a scene take the same value.

    python -m deepsynth_min.corpus --split train --out FILE.jsonl
"""

import random
import re
import tomllib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import date, time, timedelta
from functools import lru_cache
from itertools import combinations
from pathlib import Path
from typing import TypeVar

from . import grammar

SIZES = {"train": 2400, "val": 256}
MIN_CHARS, MAX_CHARS = 300, 1500
DAY_YEAR = 2022  # in which a "day" is, whose year is not written
FOLDER = Path(__file__).parent
SLOT = re.compile(r"\{(\w+)(?:\.(\w+)|\?([^}]*))?\}")
Item = TypeVar("Item")


@dataclass(frozen=True)
class Document:
    """One document and its one-sentence summary.

    `entities`: the full names of the persons (a letter may call one by the first name) and the
    towns that the text names, in the order in which they were drawn. An *entity combination* is
    (a) a person's full name, itself a combination of a first and a last name, or (b) an unordered
    pair of entities of one document.

    `summaries`: what `summary` was drawn from, all of them right: each tells another side of it.
    """

    instruction = None  # no field: it asks for what the run asks for
    needle = None

    id: str
    language: str
    genre: str
    text: str
    summary: str
    entities: tuple[str, ...]
    summaries: tuple[str, ...]

    def combinations(self) -> list[tuple[str, ...]]:
        """The entity combinations in this document: (person,) and (entity, entity), sorted."""
        persons = [(name,) for name in self.entities if " " in name]  # a town is one word
        return persons + list(combinations(sorted(self.entities), 2))


class Draw:
    """Random choices built on `random()` alone, the one method whose stream Python promises."""

    def __init__(self, seed: int):
        self.random = random.Random(seed).random

    def below(self, n: int) -> int:
        """0 .. n - 1, all equally likely."""
        return int(self.random() * n)

    def pick(self, items: Sequence[Item]) -> Item:
        return items[self.below(len(items))]

    def shuffled(self, items: Iterable[Item]) -> list[Item]:
        items = list(items)
        for i in range(len(items) - 1, 0, -1):
            j = self.below(i + 1)
            items[i], items[j] = items[j], items[i]
        return items


@dataclass(frozen=True)
class Value:
    """The value of a slot: a word or number, and what the grammar needs to know of it."""

    kind: str  # person, town, noun, phrase, int, dec, year, few, date, time
    word: object  # str, int (tenths for dec), date or time; (first, last) for a person
    gender: str = ""

    def keys(self) -> list:
        """What no other slot of the scene may share: of persons the first and the last name."""
        return list(self.word) if self.kind == "person" else [(self.kind, self.word)]

    def written(self, language: str, form: str) -> str:
        """The value as text, in a grammatical form (grammar.py); "" is the basic one."""
        word = self.word
        if self.kind in ("person", "town"):
            names = {"first": word[0], "last": word[1]} if self.kind == "person" else {}
            full = " ".join(word) if self.kind == "person" else word
            return names.get(form) or (grammar.noun(language, full, "name", form) if form else full)
        if self.kind == "noun":
            return grammar.noun(language, word, self.gender, form)
        if self.kind == "phrase":
            return dict(zip(("", "also"), word.split(" ~ ")))[form]
        if self.kind in ("date", "day"):
            return grammar.day(language, word, form)
        assert not form, f"{self.kind} has no form {form!r}"
        spell = {
            "int": grammar.integer,
            "dec": grammar.decimal,
            "few": grammar.count,
            "time": grammar.clock,
            "year": lambda _, year: str(year),
        }
        return spell[self.kind](language, word)


class Scene:
    """The slots of one document, each drawn when first asked for.

    allowed: whether a document may use a value; others are drawn until one is.
    """

    def __init__(
        self,
        language: str,
        tables: dict,
        slots: dict,
        draw: Draw,
        allowed: Callable[[Value], bool] = lambda value: True,
    ):
        self.language, self.tables, self.slots, self.draw = language, tables, slots, draw
        self.allowed = allowed
        self.values: dict[str, Value] = {}
        self.used: list = []

    def value(self, slot: str) -> Value:
        while slot not in self.values:
            value = self._drawn(self.slots[slot])
            if self.allowed(value) and not any(key in self.used for key in value.keys()):
                self.used += value.keys()
                self.values[slot] = value
        return self.values[slot]

    def _drawn(self, spec: str | list[str] | dict[str, list[str]]) -> Value:
        draw, names = self.draw, self.tables
        if isinstance(spec, dict):
            return Value("phrase", self._name(spec))
        if isinstance(spec, list):
            phrase = draw.pick(spec)
            gender, colon, word = phrase.partition(":")
            if colon and gender in ("m", "f", "n"):
                return Value("noun", word, gender)
            return Value("phrase", phrase)
        kind, *args = spec.split()
        if kind == "like":
            return self._drawn(self.slots[args[0]])
        if kind == "person":
            gender = draw.pick("mf")
            first, last = draw.pick(names["first"][gender]), self._name(names["last"])
            return Value(kind, (first, last), gender)
        if kind == "town":
            return Value(kind, self._name(names["town"]))
        low, high, step = [int(arg) for arg in args] + [1] * (3 - len(args))
        if kind == "date":
            start = date(low, 1, 1)
            return Value(kind, start + timedelta(draw.below((date(high, 12, 31) - start).days + 1)))
        if kind == "day":
            start, end = date(DAY_YEAR, low, 1), date(DAY_YEAR + high // 12, high % 12 + 1, 1)
            return Value(kind, start + timedelta(draw.below((end - start).days)))
        if kind == "time":
            return Value(kind, time(low + draw.below(high - low + 1), 5 * draw.below(12)))
        return Value(kind, low + step * draw.below((high - low) // step + 1))

    def _name(self, table: list[str] | dict[str, list[str]]) -> str:
        """One of a list, or put together from a head and a tail."""
        if isinstance(table, list):
            return self.draw.pick(table)
        return self.draw.pick(table["head"]) + self.draw.pick(table["tail"])

    def write(self, sentence: str) -> str:
        """Fills the slots of a sentence, which begins with a capital whatever stands there."""

        def fill(match: re.Match) -> str:
            slot, form, choice = match.groups()
            value = self.value(slot)
            if choice is not None:
                return choice.split("|")["mfn".index(value.gender)]
            return value.written(self.language, form or "")

        filled = grammar.typeset(self.language, SLOT.sub(fill, sentence))
        return filled[0].upper() + filled[1:]

    def entities(self) -> tuple[str, ...]:
        """Persons and towns of the scene, in the order in which they were drawn."""
        return tuple(
            value.written(self.language, "")
            for value in self.values.values()
            if value.kind in ("person", "town")
        )


def _body(genre: dict, scene: Scene, draw: Draw) -> list[str]:
    """The sentences between head and end: start, then facts with asides among them."""
    facts = [draw.pick(group) for group in genre["facts"]]
    sentences = facts if genre.get("ordered") else draw.shuffled(facts)
    asides = genre["asides"]
    for aside in draw.shuffled(asides)[: 2 + draw.below(len(asides) - 1)]:
        sentences.insert(draw.below(len(sentences) + 1), aside)
    return [scene.write(sentence) for sentence in [draw.pick(genre["start"]), *sentences]]


def _laid_out(layout: str, sentences: list[str], draw: Draw) -> str:
    if layout == "prose":
        return " ".join(sentences)
    if layout == "lines":
        return "\n".join(sentences)
    assert layout == "paragraphs", layout
    breaks = sorted(1 + draw.below(len(sentences) - 1) for _ in range(1 + draw.below(2)))
    edges = [0, *dict.fromkeys(breaks), len(sentences)]
    return "\n\n".join(" ".join(sentences[a:b]) for a, b in zip(edges, edges[1:]))


def make_document(
    id: str,
    language: str,
    tables: dict,
    genre: str,
    draw: Draw,
    allowed: Callable[[Value], bool] = lambda value: True,
) -> Document:
    """A document of a genre, drawn from the tables and sentences of a language.

    allowed: of a value, whether the document may use it.
    """
    rules = tables["genre"][genre]
    slots = tables.get("slots", {}) | rules.get("slots", {})
    scene = Scene(language, tables, slots, draw, allowed)
    head = [scene.write(draw.pick(rules["head"]))] if "head" in rules else []
    text = _laid_out(rules["layout"], _body(rules, scene, draw), draw)
    end = [scene.write(draw.pick(rules["end"]))] if "end" in rules else []
    known = set(scene.values)
    summaries = tuple(map(scene.write, rules["summary"]))
    summary = draw.pick(summaries)
    unknown = [slot for slot in scene.values if slot not in known]
    assert not unknown, f"{language} {genre}: the summaries tell {unknown}, which the text does not"
    text = "\n\n".join([*head, text, *end])
    return Document(id, language, genre, text, summary, scene.entities(), summaries)


@lru_cache(maxsize=1)
def _tables() -> dict[str, dict]:
    """language -> the names and genres of LANGUAGE.toml."""
    return {
        language: tomllib.loads((FOLDER / f"{language}.toml").read_text("utf-8"))
        for language in grammar.LANGUAGES
    }


@lru_cache(maxsize=2)
def _splits(seed: int) -> dict[str, list[Document]]:
    """Both splits. The later one is drawn until it shares no entity combination with the first."""
    tables, draw = _tables(), Draw(seed)
    splits, texts, elsewhere = {}, set(), set()
    for split, size in SIZES.items():
        made: list[Document] = []
        while len(made) < size:
            turn, language = divmod(len(made), len(grammar.LANGUAGES))
            language = grammar.LANGUAGES[language]
            genres = list(tables[language]["genre"])
            id = f"{split}-{len(made):04d}"
            document = make_document(
                id, language, tables[language], genres[turn % len(genres)], draw
            )
            if (
                MIN_CHARS <= len(document.text) <= MAX_CHARS
                and document.text not in texts
                and elsewhere.isdisjoint(document.combinations())
            ):
                made.append(document)
                texts.add(document.text)
        elsewhere.update(pair for document in made for pair in document.combinations())
        splits[split] = made
    return splits


def documents(split: str, seed: int = 0) -> list[Document]:
    """The documents of `split` ("train" or "val"): the same bytes for the same seed, anywhere.

    Languages and genres take turns, so any stretch of the list is a fair sample. Of one seed, the
    two splits share no text and no entity combination (see Document). Raises ValueError for another
    split.
    """
    if split not in SIZES:
        raise ValueError(f"split must be one of {', '.join(SIZES)}, not {split!r}")
    return list(_splits(seed)[split])
