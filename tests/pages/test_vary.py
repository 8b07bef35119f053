"""Page styles drawn from ranges and choices: what is drawn, how often, and what is refused."""

from collections import Counter
from dataclasses import replace

import pytest
from reference_renderer import embedded

from deepsynth_min.errors import UserError
from deepsynth_min.pages.renderer import PageStyle
from deepsynth_min.pages.vary import check, check_unseen, digest, draw, parse

SPEC = (
    "font_size=9:16,line_height=1.0:1.6,margin=16:64,font=notos|figo|,columns=1|2,invert=0.1",
    "ink=0:90,paper=200:255,align=left|justify",
)
SAMPLES = 4000


@pytest.fixture(scope="module")
def varied():
    return parse(SPEC, "--vary")


@pytest.fixture(scope="module")
def drawn(varied):
    return [draw(varied, 0, number) for number in range(SAMPLES)]


def chi_square(values, expected: dict) -> float:
    counts = Counter(values)
    assert set(counts) <= set(expected), set(counts) - set(expected)
    total = len(values)
    return sum((counts[v] - total * p) ** 2 / (total * p) for v, p in expected.items())


@pytest.mark.parametrize("name, low, high", [("font_size", 9, 16), ("margin", 16, 64)])
def test_whole_numbers_are_drawn_evenly_from_both_ends_on(drawn, name, low, high):
    expected = {value: 1 / (high - low + 1) for value in range(low, high + 1)}
    freedom = len(expected) - 1
    assert chi_square([look[name] for look in drawn], expected) < freedom + 4 * (2 * freedom) ** 0.5


def test_fractions_are_drawn_evenly_from_a_grid_of_hundredths(drawn):
    expected = {n / 100: 1 / 61 for n in range(100, 161)}
    assert chi_square([look["line_height"] for look in drawn], expected) < 60 + 4 * 120**0.5


def test_choices_are_drawn_equally_often(drawn):
    fonts = dict.fromkeys(("notos", "figo", ""), 1 / 3)
    assert chi_square([look["main_font"] for look in drawn], fonts) < 18
    assert chi_square([look["columns"] for look in drawn], {1: 0.5, 2: 0.5}) < 15


def test_what_is_on_or_off_is_on_in_its_share_of_the_samples(drawn):
    assert chi_square([look["invert"] for look in drawn], {True: 0.1, False: 0.9}) < 15


def test_settings_are_drawn_independently_of_each_other(drawn):
    pairs = [(look["columns"], look["font_size"]) for look in drawn]
    assert chi_square(pairs, {(c, s): 1 / 16 for c in (1, 2) for s in range(9, 17)}) < 15 + 4 * 5.5


def test_neighbours_in_the_run_are_drawn_independently_of_each_other(drawn):
    pairs = [(a["columns"], b["columns"]) for a, b in zip(drawn[::2], drawn[1::2])]
    assert chi_square(pairs, {(a, b): 0.25 for a in (1, 2) for b in (1, 2)}) < 20


def test_a_style_depends_on_seed_and_number_alone(varied, drawn):
    assert draw(varied, 0, 77) == drawn[77]
    other = [draw(varied, 1, number) for number in range(100)]
    assert sum(a == b for a, b in zip(other, drawn)) == 0


def test_what_is_drawn_does_not_depend_on_what_else_varies(varied, drawn):
    alone = parse(["margin=16:64"], "--vary")
    assert [draw(alone, 0, n)["margin"] for n in range(99)] == [d["margin"] for d in drawn[:99]]


def test_every_drawn_style_is_one_that_the_checks_of_a_page_allow(varied, drawn):
    base = PageStyle()
    check(varied, base, "--vary")
    for look in drawn[:500]:
        assert replace(base, **look) == base.with_look(look)


MISTAKES = {
    "font_size=a:b": "'a:b' is not whole numbers LOW:HIGH or A|B|..., as font_size=9:16",
    "font_size=9.5:16": "'9.5:16' is not whole numbers LOW:HIGH",
    "font_size=16:9": "nothing lies from 16 to 9",
    "font_size": "not SETTING=VALUES of a page; settings: font, font_size",
    "fontsize=9:16": "not SETTING=VALUES of a page; did you mean font_size=...?",
    "width=9:16": "not SETTING=VALUES of a page",
    "invert=yes": "'yes' is not a share of the samples, 0 to 1",
    "invert=1.5": "'1.5' is not a share of the samples",
    "align=left|up": "'left|up' is not A|B|... of left, right, center, justify",
    "line_height=1.234:1.235": "nothing lies from 1.234 to 1.235",
    "margin=1:2,margin=3:4": "margin is given twice",
    f"margin=1:{'9' * 5000}": "is not whole numbers",
}


@pytest.mark.parametrize("words", MISTAKES)
def test_words_that_say_nothing_are_an_error_of_one_line_that_says_what_is_possible(words):
    with pytest.raises(UserError) as error:
        parse([words], "--vary")
    text = str(error.value)
    assert text.startswith("--vary ") and MISTAKES[words] in text and "\n" not in text


IMPOSSIBLE = {
    "font_size=0:16": "font_size: 0 must be in 1..1024",
    "margin=16:600": "margin: 600 leaves no space",
    "margin=16:200,columns=1|9,column_gap=90": "leave no space",
    "hanging_indent=0:400,margin=300|330": "hanging_indent: 400 leaves no space",
    "ink=0:220,paper=200:255": "ink and paper may both become 200",
    "paper=0:255": "ink: 0 is the grey of the paper too",
    "ink=0:999999999": "ink: 999999999 must be in 0..255",
    "font=no-such.ttf": "no-such.ttf",
}


@pytest.mark.parametrize("words", IMPOSSIBLE)
def test_a_style_that_could_be_drawn_but_is_no_pages_is_found_beforehand(words):
    with pytest.raises(UserError, match="^--vary: ") as error:
        check(parse([words], "--vary"), PageStyle(), "--vary")
    assert IMPOSSIBLE[words] in str(error.value)


def test_a_font_files_name_may_hold_commas():
    (one, other) = parse(["font=a,b.ttf|c=1,2.ttf,margin=5"], "--vary")
    assert one.values == ("a,b.ttf", "c=1,2.ttf") and other.values == (5,)


@pytest.mark.parametrize("unseen", ["font_size=17:20", "font_size=8:20,line_height=1.7", "tab"])
def test_unseen_styles_are_those_that_training_cannot_draw(unseen):
    varied = parse(["font_size=9:16,line_height=1.0:1.6"], "--vary")
    unseen = "ink=9:12" if unseen == "tab" else unseen  # what does not vary is seen at its base
    check_unseen(parse([unseen], "--unseen-style"), varied, PageStyle())


@pytest.mark.parametrize("unseen", ["font_size=12:20", "margin=10:20", "line_height=1.6|1.8"])
def test_unseen_styles_that_training_may_draw_are_refused(unseen):
    varied = parse(["font_size=9:16,line_height=1.0:1.6"], "--vary")
    with pytest.raises(UserError, match="--unseen-style: of .* none has only values that training"):
        check_unseen(parse([unseen], "--unseen-style"), varied, PageStyle())


def test_a_distribution_is_identified_by_its_fonts_content_not_their_names(tmp_path):
    for name, font in (("a.ttf", "spacemo"), ("b.ttf", "spacemo"), ("c.ttf", "notosit")):
        (tmp_path / name).write_bytes(embedded(font))
    words = [f"font={tmp_path}/{name}.ttf,font_size=9:16" for name in "abc"]
    a, b, c = (digest(parse([word], "--vary")) for word in words)
    assert a == b != c
    assert digest(parse([words[0].replace("9:16", "9:17")], "--vary")) != a
    assert digest(()) is None
