"""Histograms: bars that fit what is counted. Heat maps: a number in each cell."""

import re

from deepsynth_min.reports.charts import heat_map, histogram


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


def test_a_heat_map_has_each_number_in_its_cell_and_colours_them_by_it():
    values = {(0.0, 500): 0.0, (0.0, 2000): 0.5, (1.0, 2000): 1.0}  # one place is empty
    drawn = heat_map("t", values, ("depth", "{:.0%}".format), ("length", "{:,}".format))
    form = r"<title>(.*?)</title>.*?opacity: ([\d.]+).*?>(\d+%)</text></g>"
    found = re.findall(form, drawn)
    assert [where for where, *_ in found] == [
        "depth 0%, length 500: 0.0%",
        "depth 0%, length 2,000: 50.0%",
        "depth 100%, length 2,000: 100.0%",
    ]
    assert [number for *_, number in found] == ["0%", "50%", "100%"]
    depths = [float(opacity) for _, opacity, _ in found]
    assert 0 < depths[0] < depths[1] < depths[2] < 0.6  # the number must be read on it
    assert heat_map("t", {}, ("depth", str), ("length", str)) == ""
