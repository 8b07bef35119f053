"""The batch's contract: visual tokens fill the image mask exactly; what is scored is known."""

import pytest
import torch

from deepsynth_min.model.batch import Batch, visual_tokens
from deepsynth_min.model.deepseek_ocr import DeepseekOCR


@pytest.mark.parametrize(
    "side, grid, tokens",
    [
        (512, (1, 1), 73),
        (640, (1, 1), 111),
        (1024, (1, 1), 273),
        (1280, (1, 1), 421),
        (1024, (2, 3), 273 + 30 * 21),
        (1024, (1, 2), 273 + 20 * 11),
    ],
)
def test_visual_tokens_are_those_of_the_official_modes(side, grid, tokens):
    assert visual_tokens(side, side, grid) == tokens


@pytest.mark.parametrize(
    "side, grid, tokens",
    [(768, (1, 1), 145), (1024, (1, 1), 257), (1024, (1, 2), 545), (1024, (3, 2), 1121)],
)
def test_without_row_ends_tiles_and_view_have_a_token_for_64_px_each(side, grid, tokens):
    assert visual_tokens(side, side, grid, 768, newlines=False) == tokens


def make(image_tokens: list[int], pages: int, size=(128, 128), length=20, **changes) -> Batch:
    mask = torch.zeros(len(image_tokens), length, dtype=torch.bool)
    for row, tokens in enumerate(image_tokens):
        mask[row, 1 : 1 + tokens] = True
    labels = torch.full(mask.shape, -100)
    labels[:, -3:] = 5
    values = dict(
        input_ids=torch.randint(3, 99, mask.shape),
        attention_mask=torch.ones_like(mask),
        image_mask=mask,
        labels=labels,
        pages=torch.randint(0, 256, (pages, 1, *size), dtype=torch.uint8),
    )
    return Batch(**(values | changes))


def test_pages_and_image_mask_must_agree_exactly():
    assert len(make([7, 7], 2).image_index) == 14  # 2 x (2 * 3 + 1)
    for tokens, pages in (([7, 6], 2), ([7, 7], 1), ([7, 7], 3), ([7, 8], 2)):
        with pytest.raises(ValueError, match="visual tokens"):
            make(tokens, pages)


@pytest.mark.parametrize(
    "name, kind",
    [("attention_mask", torch.long), ("image_mask", torch.float), ("labels", torch.int32)],
)
def test_tensors_of_another_type_are_named(name, kind):
    whole = make([7], 1)
    with pytest.raises(ValueError, match=f"{name} is of {kind}, not torch"):
        make([7], 1, **{name: getattr(whole, name).to(kind)})


def test_a_batch_without_row_ends_is_checked_as_such():
    assert len(make([5, 5], 2, newlines=False).packed().image_index) == 10  # 2 x (2 * 2 + 1)
    for newlines, tokens in ((False, 7), (True, 5)):
        with pytest.raises(ValueError, match="visual tokens"):
            make([tokens], 1, newlines=newlines)


def test_a_page_side_must_be_a_multiple_of_64():
    with pytest.raises(ValueError, match="multiples of 64"):
        make([7], 1, size=(128, 100))


def test_the_first_position_cannot_be_scored():
    labels = torch.full((1, 20), -100)
    labels[0, 0] = 4
    with pytest.raises(ValueError, match="position 0"):
        make([7], 1, labels=labels)


def test_scores_come_from_the_position_before_the_label():
    batch = make([7, 7], 2)
    assert batch.score_index.tolist() == [16, 17, 18, 36, 37, 38]
    assert batch.targets.tolist() == [5] * 6 and batch.num_scored == 6


def test_each_sample_sees_its_own_pages_only(small_config):
    """Batches that mix 0, 1 and 2 pages: row by row equal to the rows alone."""
    torch.manual_seed(0)
    model = DeepseekOCR(small_config)
    mixed = make([7, 0, 14], 3)
    with torch.no_grad():
        together = model(mixed)
        pages = mixed.pages.split([1, 0, 2])
        for row, own in enumerate(pages):
            one = slice(row, row + 1)
            alone = Batch(
                mixed.input_ids[one],
                mixed.attention_mask[one],
                mixed.image_mask[one],
                mixed.labels[one],
                own,
            )
            assert torch.allclose(model(alone), together[one], atol=1e-5)
    loss, count = model.loss(mixed)
    expected = torch.nn.functional.cross_entropy(
        together[:, :-1].flatten(0, 1), mixed.labels[:, 1:].flatten(), reduction="sum"
    )
    assert torch.allclose(loss, expected, rtol=1e-5) and count == 9
