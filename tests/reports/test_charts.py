"""Histograms: bars that fit what is counted."""

import re

from deepsynth_min.reports.charts import histogram


def test_the_bars_of_a_histogram_hold_every_value_once():
    for values in ([1, 2, 2, 3, 900], [0.5], [4, 4, 4], [0.1 * i for i in range(200)], [7, 8]):
        drawn = histogram("t", values, "px")
        counts = [int(n.replace(",", "")) for n in re.findall(r": ([\d,]+)</title>", drawn)]
        assert sum(counts) == len(values), values
    assert histogram("t", [], "px") == ""


def bars_of(values) -> list[tuple[float, float, str]]:
    """(left, right, label) of each bar of a histogram, in px."""
    form = r'<rect class="c0" x="(.*?)" .*?width="(.*?)".*?<title>(.*?)</title>'
    found = re.findall(form, histogram("t", values, "tokens"))
    return [(float(x), float(x) + float(width), label) for x, width, label in found]


def test_values_that_repeat_have_a_bar_each_side_by_side():
    bars = bars_of([21] * 5 + [42] * 7 + [105] * 2 + [945])
    labels = ["21 tokens: 5", "42 tokens: 7", "105 tokens: 2", "945 tokens: 1"]
    assert [label for *_, label in bars] == labels
    assert all(b[0] - a[1] < 2 for a, b in zip(bars, bars[1:]))  # nothing empty between them


def test_bars_of_whole_numbers_hold_as_many_possible_values_each():
    multiples = [21 * n for n in range(1, 61)]  # of 21, without a gap
    for values in (multiples, range(100), range(0, 400, 4)):
        bars = bars_of(values)
        assert len({label.split(": ")[1] for *_, label in bars[:-1]}) == 1, bars
        assert all(b[0] - a[1] < 2 for a, b in zip(bars, bars[1:]))
