"""DeepSeek-OCR-2 against transformers' own class, and against the official files."""

import gzip
import json
from dataclasses import replace

import pytest
import torch
from golden import GOLDEN, GRADIENT_TOLERANCE, TOLERANCE, difference
from released import IMAGE, batch_of, images_of
from small_model import SMALL_2

from deepsynth_min.model.batch import Batch
from deepsynth_min.model.deepseek_ocr import DeepseekOCR, parameter_summary
from deepsynth_min.model.encoders.query_encoder import (
    QueryEncoder,
    _attend,
    prefix_attention,
    prefix_mask,
    query_name,
)
from deepsynth_min.model.shape.presets import PRESETS
from deepsynth_min.model.weights import official_views
from deepsynth_min.pages.modes import MODES

peers = pytest.importorskip("peers", reason="transformers is not installed")
WHOLE = (1, 1)
CASES = {  # pages of each sample, each by its grid of tiles; px of a page
    "page": ([[WHOLE]], 1024),
    "small page": ([[WHOLE]], 768),
    "several pages, uneven": ([[WHOLE, WHOLE], [], [WHOLE]], 1024),
    "no, two and six tiles": ([[WHOLE, (1, 2)], [(3, 2)]], 1024),
    "three, four and five": ([[(1, 3)], [(2, 2), (5, 1)]], 1024),
}


def random_batch(grids: list[list[tuple[int, int]]], side: int) -> Batch:
    answers = [5 + 3 * number for number in range(len(grids))]
    return batch_of(grids, answers, side, tile=768, newlines=False)


@pytest.fixture(scope="module")
def models() -> tuple[DeepseekOCR, torch.nn.Module]:
    """Ours and the peer, with the same random weights, none of them 0."""
    torch.manual_seed(0)
    model = DeepseekOCR(SMALL_2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # norms, biases
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
        for queries in (model.model.qwen2_model.query_768, model.model.qwen2_model.query_1024):
            queries.weight.normal_()
    peer = peers.whole_peer(model)
    peer.model.config.image_token_id = IMAGE
    return model, peer


def run_of(peer: torch.nn.Module, batch: Batch):
    """The peer's outputs, loss included."""
    ids, real = batch.input_ids.masked_fill(batch.image_mask, IMAGE), batch.attention_mask.long()
    return peer(input_ids=ids, attention_mask=real, labels=batch.labels, **images_of(batch))


@pytest.mark.parametrize("side", SMALL_2.qwen.page_sides)
@torch.no_grad()
def test_features_of_both_towers_equal_the_peers(models, side):
    model, peer = models
    pages = random_batch([[WHOLE]], side).pages
    tokens, sam, queries = model._page_grid(pages)
    tower, seen = peer.model.vision_tower, peers.normalised(pages)
    assert difference(sam, tower.sam_encoder(seen).last_hidden_state) < TOLERANCE
    assert difference(queries, tower(seen).last_hidden_state) < TOLERANCE
    theirs = peer.model.get_image_features(seen).pooler_output[0]
    assert difference(tokens.flatten(1, 2)[0], theirs[:-1]) < TOLERANCE


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_page_tokens_logits_and_loss_equal_the_peers(models, case):
    model, peer = models
    batch = random_batch(*CASES[case])
    theirs = run_of(peer, batch)
    tiles = None if batch.tiles is None else model.page_features(batch.tiles)
    seen = {"features": model.page_features(batch.pages), "tile_features": tiles}
    tokens = model.encode_pages(batch.pages, batch.tiles, batch.grids, **seen)
    assert difference(tokens, torch.cat(theirs.image_hidden_states)) < TOLERANCE
    batch, packed = (replace(form, **seen) for form in (batch, batch.packed()))
    real = batch.attention_mask
    assert difference(model(batch)[real], theirs.logits[real]) < TOLERANCE
    total, count = model.loss(batch)
    assert abs(total / count - theirs.loss) < 1e-5
    assert abs(model.loss(packed)[0] - total) < 1e-4


def test_gradients_equal_the_peers(models):
    model, peer = models
    batch = random_batch([[(1, 2)], []], 1024)
    total, count = model.loss(batch)
    (total / count).backward()
    run_of(peer, batch).loss.backward()
    ours = peers.whole_state({name: p.grad for name, p in model.named_parameters()})
    theirs = {name: p.grad for name, p in peer.named_parameters()}
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        error = (ours[name] - gradient).norm() / gradient.norm()
        assert error < GRADIENT_TOLERANCE, f"{name}: relative error {error:.2e}"
    model.zero_grad(), peer.zero_grad()


# -- the query encoder's attention -----------------------------------------------------------------


def test_features_see_each_other_and_queries_see_features_and_queries_before_them():
    expected = [[1, 1, 1, 0, 0]] * 3 + [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]  # 3 features, 2 queries
    assert prefix_mask(3, 5).int().tolist() == expected


@pytest.mark.parametrize("prefix, length", [(9, 18), (3, 5), (1, 4)])
def test_two_fused_calls_are_the_plain_formula(prefix, length):
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 4, length, 8)
    plain = prefix_attention(q, k, v, prefix)
    torch.testing.assert_close(_attend(q, k, v, prefix), plain, atol=1e-5, rtol=1e-5)


def test_queries_that_no_page_uses_get_a_gradient_of_zeros():
    encoder = QueryEncoder(PRESETS["tiny-2"].qwen)
    encoder(torch.randn(1, 128, 4, 4)).sum().backward()
    assert (
        encoder.query_192.weight.grad.abs().sum() == 0 < encoder.query_256.weight.grad.abs().sum()
    )


@pytest.mark.parametrize("h, w", [(2, 2), (4, 3), (5, 5)])
def test_a_page_without_queries_of_its_size_is_an_error(h, w):
    encoder = QueryEncoder(PRESETS["tiny-2"].qwen)
    with pytest.raises(ValueError, match=rf"{w * 64} x {h * 64} px: there are queries for"):
        encoder(torch.randn(1, 128, h, w))


# -- the official files ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def true_size() -> DeepseekOCR:
    with torch.device("meta"):
        return DeepseekOCR(PRESETS["deepseek-ocr-2"])


def test_the_preset_has_exactly_the_official_names_and_the_peers_shapes(true_size):
    index = json.loads(gzip.decompress((GOLDEN / "official_index_2.json.gz").read_bytes()))
    views = official_views(true_size)
    assert views.keys() == set(index["names"]) and len(views) == 2707
    peer = peers.whole_peer(true_size)  # strict: each of its parameters has one of ours
    shapes = {name: p.shape for name, p in peer.named_parameters()}
    ours = peers.whole_state(dict(true_size.named_parameters()))
    assert shapes == {name: p.shape for name, p in ours.items()}
    assert sum(view.numel() for view in views.values()) == 3_389_119_360


def test_the_total_of_the_index_counts_three_page_sizes_that_the_file_does_not_hold(true_size):
    """To the byte a query for each 64 x 64 px of DeepSeek-OCR's other pages. test_weights.py has
    the size of the released file, which holds none of them; nor does the index name one."""
    index = json.loads(gzip.decompress((GOLDEN / "official_index_2.json.gz").read_bytes()))
    held = 2 * sum(view.numel() for view in official_views(true_size).values())
    sides, kept = [512, 640, 1280], true_size.config.qwen.page_sides
    assert {*sides, *kept} == {*MODES.values(), 768} and not set(sides) & set(kept)
    assert not any(query_name(side) in name for side in sides for name in index["names"])
    queries = sum((side // 64) ** 2 for side in sides)
    assert index["total_size"] - held == 2 * queries * true_size.config.qwen.dim == 1_010_688


def test_the_summary_counts_the_encoder_apart(true_size):
    rows = {row[0]: row[1:] for row in parameter_summary(true_size)}
    assert rows["SAM"][0] == 94_979_328 and rows["Qwen2 encoder"][0] == 358_256_512
    assert rows["projector"][0] == 896 * 1280 + 1280 + 1280
    assert rows["total"][0] == 3_389_119_360 and rows["total"][2] == 574_127_360
