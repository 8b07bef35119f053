"""Where a model looks: the weights are those of its attention, and the heads that were guided to a
copied word lie on it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from small_model import SMALL

from deepsynth_min.corpus.documents import documents
from deepsynth_min.data.row import Row
from deepsynth_min.data.samples import SampleBuilder, collate
from deepsynth_min.data.tokenizer import EMBEDDED, encode, load_tokenizer
from deepsynth_min.errors import UserError
from deepsynth_min.evaluation.attention_map import attention_weights, over_views, views
from deepsynth_min.model.deepseek_ocr import DeepseekOCR
from deepsynth_min.model.generation import greedy
from deepsynth_min.model.shape.presets import PRESETS, SHIPPED
from deepsynth_min.options import change
from deepsynth_min.pages.renderer import render_pages
from deepsynth_min.settings import Settings
from deepsynth_min.tiny_reader.guide import HEADS, copied
from deepsynth_min.tiny_reader.reading import summary_row


def small(**decoder) -> DeepseekOCR:
    torch.manual_seed(0)
    return DeepseekOCR(replace(SMALL, decoder=replace(SMALL.decoder, **decoder))).eval()


def sample_of(model: DeepseekOCR, text: str = "the river " * 6, **settings):
    tokenizer = load_tokenizer(EMBEDDED)
    builder = SampleBuilder(change(Settings(), **settings), model.config, tokenizer)
    return builder(Row("row", "the river rose", text)), builder


@pytest.mark.parametrize("changed", [{}, {"num_key_value_heads": 1}, {"sliding_window": 3}])
def test_the_weights_give_what_the_layers_attention_gives(changed):
    model = small(**changed)
    sample, builder = sample_of(model)
    weights, seen = attention_weights(model, sample, builder), []
    for layer in model.model.layers:
        layer.self_attn.register_forward_hook(lambda _, x, out: seen.append((x[0], out)))
    with torch.no_grad():
        model.loss(collate([sample], builder.special, pack=True))
    asking = slice(sample.prompt - 1, len(sample.ids) - 1)
    for layer, own, (x, out) in zip(model.model.layers, weights, seen):
        attention = layer.self_attn
        v = attention.v_proj(x).view(1, x.shape[1], -1, attention.head_dim).transpose(1, 2)
        v = v.repeat_interleave(len(own) // v.shape[1], dim=1)
        mine = attention.o_proj((own @ v[0]).transpose(0, 1).flatten(1))
        if layer is not model.model.layers[-1]:  # which gives those alone
            out = out[:, asking]
        torch.testing.assert_close(mine, out[0], atol=2e-6, rtol=1e-5)


def test_each_view_s_tokens_stand_where_the_sequence_has_them():
    model = small()
    sample, builder = sample_of(model, "long words " * 600, mode="gundam", max_tiles=4)
    assert any(w * h > 1 for w, h in sample.grids)
    found = np.concatenate([view.positions.ravel() for view in views(sample, builder)])
    assert len(set(found.tolist())) == len(found) and found.max() < 1 + sample.visual
    tokens = (sum(view.image[0].size for view in views(sample, builder))) // 64**2
    assert len(found) == tokens


def test_tiles_are_one_picture_again():
    model = small()
    sample, builder = sample_of(model, "long words " * 600, mode="gundam", max_tiles=4)
    (w, h), picture = sample.grids[0], views(sample, builder)[0].image
    side = sample.tiles[0].shape[-1]
    assert picture.shape[1:] == (h * side, w * side)
    np.testing.assert_array_equal(picture[:, -side:, -side:], sample.tiles[0][-1])


def test_learned_queries_have_no_place_on_the_page():
    model = DeepseekOCR(PRESETS["tiny-2"])
    builder = SampleBuilder(Settings(), model.config, load_tokenizer(EMBEDDED))
    with pytest.raises(UserError, match="learned queries"):
        views(builder(Row("row", "a", "b")), builder)


def places(text: str, start: int, stop: int, style) -> set[tuple[int, int, int]]:
    """(page, row, column) of the visual tokens between the first and the last pixel that change if
    a word's letters stand in the other order."""
    turned = text[:start] + text[start:stop][::-1] + text[stop:]
    changed = render_pages(text, style).pages != render_pages(turned, style).pages  # [N, H, W]
    found = set()
    for page, row in {(p, y // 64) for p, y in zip(*np.nonzero(changed)[:2])}:
        columns = np.nonzero(changed[page, row * 64 : row * 64 + 64])[1] // 64
        found |= {(page, row, c) for c in range(columns.min(), columns.max() + 1)}
    return found


@pytest.mark.slow
def test_the_heaviest_place_of_the_guided_heads_lies_on_the_word_that_is_copied():
    model = DeepseekOCR.from_pretrained(SHIPPED, torch.float32).eval()
    builder = SampleBuilder(Settings(), model.config, load_tokenizer(SHIPPED))
    hits, others, words = 0, 0, 0
    rows = [summary_row(document) for document in documents("val")[:80]]
    prompts = [builder.prompt(row) for row in rows]
    answers = []
    for first in range(0, len(prompts), 16):
        answers += greedy(model, collate(prompts[first : first + 16], builder.special), 200)
    for row, prompt, ids in zip(rows, prompts, answers):
        answer = builder.tokenizer.decode(ids)
        word = first_copied(row.text, answer)
        if word is None or encode(builder.tokenizer, answer) != ids or words == 50:
            continue
        of_answer, of_text, length = word
        sample = replace(prompt, ids=[*prompt.ids, *ids, builder.special.eos])
        guided = attention_weights(model, sample, builder)[-1, :HEADS].mean(0)  # [A, T]
        looked = guided[of_answer : of_answer + length].mean(0, keepdim=True)
        maps = np.stack([m[0] for m in over_views(looked, views(sample, builder))])
        heaviest = np.unravel_index(maps.argmax(), maps.shape)
        hits += heaviest in places(row.text, of_text, of_text + length, builder.style)
        begin = 0 if of_text > len(row.text) // 2 else len(row.text) - length
        others += heaviest in places(row.text, begin, begin + length, builder.style)
        words += 1
    print(f"heaviest place on the word: {hits} of {words}; on another of its length: {others}")
    assert words == 50 and hits >= 40 and others <= 10


def first_copied(text: str, answer: str) -> tuple[int, int, int] | None:
    """(start in the answer, start in the text, letters) of an answer's first word of five letters
    or more that it has from one place of the text."""
    targets = dict(copied(text, answer))
    for start in sorted(targets):
        stop = start
        while stop < len(answer) and answer[stop].isalpha():
            stop += 1
        alone = len(targets[start]) == 1 and not (start and answer[start - 1].isalnum())
        if alone and stop - start >= 5:
            return start, targets[start][0], stop - start
    return None
