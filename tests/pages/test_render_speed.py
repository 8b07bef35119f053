"""Half of what bench/render.py must show, since machines are busy; the bars are in the bench."""

import io

import pytest
import render as bench
import render_peers
from reference_renderer import embedded

TEXTS = bench.documents(2)
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def font(tmp_path_factory):
    path = tmp_path_factory.mktemp("font") / "embedded.ttf"
    path.write_bytes(io.BytesIO(embedded("notos")).read())
    return str(path)


def ours_at(size, font):
    style = bench.PageStyle(
        margin=bench.MARGIN, font_size=size, line_height=bench.LINE_HEIGHT, main_font=font
    )
    return bench.Ours(TEXTS, style)


def reached(measure, tries=5):
    """Does it hold once? Other programs slow a run down, none speeds one up."""
    return any(measure() for _ in range(tries))


@pytest.mark.parametrize("size", [12, 16])
def test_fifty_times_pillow_with_cached_widths(size, font):
    pytest.importorskip("PIL")
    peer = render_peers.pillow_cached(font, size, 1024, bench.MARGIN, round(1.2 * size))
    runs = {"ours": ours_at(size, font).draw, "Pillow": lambda: peer(TEXTS[:1])}
    share = len(TEXTS[0]) / sum(map(len, TEXTS))

    def holds():
        seconds = bench.timed(runs, 2)
        return seconds["Pillow"] / share / seconds["ours"] >= 50

    assert reached(holds)


def test_four_times_opencv(font):
    pytest.importorskip("cv2", minversion="5")
    peer = render_peers.opencv(font, 16, 1024, bench.MARGIN, 19)
    runs = {"ours": ours_at(16, font).draw, "OpenCV": lambda: peer(TEXTS)}

    def holds():
        seconds = bench.timed(runs, 3)
        return seconds["OpenCV"] / seconds["ours"] >= 4

    assert reached(holds)


@pytest.mark.parametrize("size", [12, 16])
def test_five_times_the_blit_floor_at_most(size, font):
    ours = ours_at(size, font)

    def holds():
        seconds = bench.timed({"ours": ours.draw, "floor": ours.blit}, 3)
        return seconds["ours"] / seconds["floor"] <= 5

    assert reached(holds)
