"""Small pages are read together on a CPU, and each is to the last bit what it is alone."""

import pytest
import torch
from gpu_branch import GpuBranch

from deepsynth_min.model.deepseek_ocr import DeepseekOCR
from deepsynth_min.model.encoders.at_once import PagesAtOnce
from deepsynth_min.model.shape.presets import PRESETS


@pytest.mark.parametrize(
    ("preset", "side"),
    [
        *(("tiny", side) for side in (64, 128, 192, 256)),
        *(("tiny-2", side) for side in PRESETS["tiny-2"].qwen.page_sides),  # has no other queries
    ],
)
def test_what_a_page_becomes_does_not_depend_on_the_pages_beside_it(preset, side):
    torch.manual_seed(0)
    model = DeepseekOCR(PRESETS[preset]).requires_grad_(False)
    pages = torch.randint(0, 256, (5, 1, side, side), dtype=torch.uint8)
    alone = torch.cat([model.page_features(page[None]) for page in pages])
    assert model.page_features(pages).equal(alone)
    assert model.page_features(pages[:3]).equal(alone[:3])


def pages(number: int, side: int = 64) -> torch.Tensor:
    return torch.zeros(number, 1, side, side, dtype=torch.uint8)


class Reader:
    """Counts its calls; `differs` if what it gives depends on how many pages it reads at once."""

    def __init__(self, differs: bool):
        self.differs, self.calls = differs, 0

    def __call__(self, given: torch.Tensor, together: int) -> torch.Tensor:
        self.calls += 1
        return given.float().flatten(1).sum(1) * (1 + self.differs * together * 1e-6)


def test_pages_go_together_where_that_gives_the_same_to_the_bit_and_it_is_tried_once():
    at_once, read = PagesAtOnce(16), Reader(differs=False)
    assert [at_once.size(pages(4), read) for _ in range(3)] == [4, 4, 4]
    assert read.calls == 2
    assert at_once.size(pages(3), read) == 3 and read.calls == 4


def test_pages_go_one_by_one_where_it_does_not():
    at_once, read = PagesAtOnce(16), Reader(differs=True)
    assert [at_once.size(pages(4), read) for _ in range(2)] == [1, 1]


def test_no_more_go_together_than_are_small_and_none_but_on_a_cpu():
    at_once, read = PagesAtOnce(16), Reader(differs=False)
    assert at_once.size(pages(20, 256), read) == 8
    assert at_once.size(pages(4, 1024), read) == 1
    with GpuBranch():
        assert at_once.size(pages(4), read) == 1
