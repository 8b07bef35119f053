"""Guided attention: the targets of the recipe's heads, and the loss that turns them there."""

import numpy as np
import pytest
import torch

from deepsynth_min.corpus.documents import documents
from deepsynth_min.data.row import Row
from deepsynth_min.data.samples import SampleBuilder, collate
from deepsynth_min.data.tokenizer import load_tokenizer
from deepsynth_min.model.batch import Batch
from deepsynth_min.model.deepseek_ocr import DeepseekOCR
from deepsynth_min.model.shape.presets import SHIPPED, TINY_READER_CONFIG
from deepsynth_min.pages.renderer import line_ranges, render_pages
from deepsynth_min.settings import Settings
from deepsynth_min.tiny_reader.guide import HEADS, Guide, copied
from deepsynth_min.tiny_reader.random_text import Letters, Words


@pytest.fixture(scope="module")
def builder():
    return SampleBuilder(Settings(), TINY_READER_CONFIG, load_tokenizer(SHIPPED))


def found(text: str, answer: str) -> dict[str, set[str]]:
    """The words of an answer that were found, each with what stands in the text up to there."""
    starts = {}
    for i, places in copied(text, answer):
        assert all(text[place] == answer[i] for place in places)
        if i == 0 or answer[i - 1] == " ":
            word = answer[i:].split()[0]
            starts.setdefault(word, set()).update(text[:place] for place in places)
    return starts


def test_a_name_s_letters_are_found_where_it_stands():
    text, answer = "The mayor, Ada Kern, met Otto Kern in Hull.", "Ada Kern was in Hull"
    assert copied(text, answer)[:3] == [(0, [11]), (1, [12]), (2, [13])]
    starts = found(text, answer)
    assert set(starts) == {"Ada", "Kern", "in", "Hull"}  # "was" is not in the text
    assert starts["Kern"] == {"The mayor, Ada "}  # and not Otto's


def test_a_short_word_without_its_neighbour_tells_nothing():
    assert found("He sat by the sea and saw it.", "It was by sea.") == {}
    assert set(found("A storm at sea sank the ferry.", "ferries sank")) == set()
    assert set(found("It cost 4,500 in damaged boats.", "damaged by 4,500")) == {"damaged", "4,500"}


def test_a_word_that_stands_everywhere_tells_nothing():
    assert found("London. " * 4, "To London") and not found("London. " * 5, "To London")


def test_a_text_that_is_read_has_each_letter_at_its_place():
    assert copied("Ab, c", "Ab, c") == [(0, [0]), (1, [1]), (4, [4])]


@pytest.mark.parametrize("number", range(0, 16, 3))
def test_the_lines_of_a_text_make_its_pages(builder, number):
    text = documents("val")[number].text
    lines = [text[start:stop] for start, stop in line_ranges(text, builder.style)]
    assert np.array_equal(
        render_pages("\n".join(lines), builder.style).pages, render_pages(text, builder.style).pages
    )


def test_a_letter_is_on_the_visual_token_that_its_ink_is_on(builder):
    """By other means: the visual tokens counted up as a prompt has them; the pages drawn up to the
    letter and with it, most of what changed being in one of their places."""
    text, side = documents("val")[0].text, builder.side // 64
    places = Letters(Words(0), builder).visual_positions(text)
    counted, position = {}, 1  # after BOS
    for cell in np.ndindex(len(render_pages(text, builder.style).pages), side, side):
        counted[cell] = position
        position += 1
        if cell[2] == side - 1:
            position += 1 + (cell[1] == side - 1)  # newline, separator
    assert position == builder.prompt(Row("a document", "", text)).visual + 1
    lines, missed, asked = line_ranges(text, builder.style), 0, 0
    for number, (start, stop) in enumerate(lines):
        above = [text[a:b] for a, b in lines[:number]]
        for i in range(start + number % 5, stop, 5):
            if not text[i].isalnum():
                continue
            upto, with_ = (
                render_pages("\n".join([*above, text[start:end]]), builder.style).pages
                for end in (i, i + 1)
            )
            ink = with_.astype(int)
            ink[: len(upto)] -= upto
            ink[len(upto) :] -= 255
            page, height, width = ink.shape
            cells = np.abs(ink).reshape(page, side, 64, side, 64).sum((2, 4))
            largest = np.unravel_index(cells.argmax(), cells.shape)
            near = [cell for cell in np.ndindex(cells.shape) if cells[cell] >= 0.4 * cells.sum()]
            asked, missed = asked + 1, missed + (places[i] not in {counted[cell] for cell in near})
            assert counted[largest] - places[i] in (-1, 0, 1)
    assert asked > 60 and missed <= 0.03 * asked  # a letter on a border may lean to either side


def slowly(attention, x: torch.Tensor, theta: float) -> torch.Tensor:
    """Attention of all heads, [H, T, T], one pair of positions after the other's turn."""
    T, d = len(x), attention.head_dim
    turned = []
    for project in (attention.q_proj, attention.k_proj):
        y = project(x).view(T, -1, d)
        angle = torch.arange(T)[:, None, None] * theta ** (-torch.arange(0, d, 2) / d)
        a, b = y[..., : d // 2], y[..., d // 2 :]
        turned.append(
            torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)
        )
    scores = torch.einsum("qhd,khd->hqk", *turned) / d**0.5
    return scores.masked_fill(torch.ones(T, T).triu(1).bool(), -torch.inf).softmax(-1)


def test_the_loss_is_what_the_heads_do_not_look_at_the_right_tokens(builder):
    torch.manual_seed(0)
    model = DeepseekOCR(TINY_READER_CONFIG)
    for layer in model.model.layers:
        torch.nn.init.normal_(layer.self_attn.q_proj.weight, std=0.3)
        torch.nn.init.normal_(layer.self_attn.k_proj.weight, std=0.3)
    guide = Guide(model)
    rows = [Row("a", "Hull", "Ada was in Hull."), Row("b", "Ada Kern", "Ada Kern met Otto Kern.")]
    batch: Batch = collate([builder(row) for row in rows], builder.special).packed()
    asked = [[(batch.lengths[0] - 3, [1, 2])], [(batch.lengths[1] - 6, [3]), (30, [1, 4])]]
    with guide:
        model.loss(batch)
    seen = guide.x
    total, count = guide.loss(batch.lengths, asked)
    expected, attention = 0.0, model.model.layers[-1].self_attn
    for x, pairs in zip(seen[0].split(batch.lengths), asked):
        paid = slowly(attention, x, model.config.decoder.rope_theta)[:HEADS]
        expected -= sum(paid[:, query, places].sum(-1).log().mean() for query, places in pairs)
    assert count == 3 and total.item() == pytest.approx(expected.item(), rel=1e-4)
    total.backward()
    shared = HEADS * attention.head_dim
    for project in (attention.q_proj, attention.k_proj):
        assert project.weight.grad[:shared].any() and not project.weight.grad[shared:].any()
    assert attention.o_proj.weight.grad is None
    model.loss(batch)  # not watched: nothing of it is kept
    assert guide.x is None
