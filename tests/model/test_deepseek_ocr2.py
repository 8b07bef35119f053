"""DeepSeek-OCR-2 against transformers' own class, and against the official files."""

import gzip
import json
from dataclasses import replace

import pytest
import torch
from golden import GOLDEN, GRADIENT_TOLERANCE, TOLERANCE, difference
from small_model import SMALL_2

from deepsynth_min.model.batch import Batch, visual_tokens
from deepsynth_min.model.deepseek_ocr import DeepseekOCR, parameter_summary
from deepsynth_min.model.presets import PRESETS
from deepsynth_min.model.query_encoder import QueryEncoder, _attend, prefix_attention, prefix_mask
from deepsynth_min.model.weights import official_views

peer_ocr2 = pytest.importorskip("peer_ocr2", reason="transformers without deepseek_ocr2")
# For each page of a batch, its tiles (w, h); of each sample, its pages.
CASES = {
    "page": (1024, [[(1, 1)]]),
    "small page": (768, [[(1, 1)]]),
    "pages": (1024, [[(1, 1), (1, 1)], [], [(1, 1)]]),
    "no, two and six tiles": (1024, [[(1, 1), (1, 2)], [(3, 2)]]),
    "three, four and five": (1024, [[(1, 3)], [(2, 2), (5, 1)]]),
}


def random_batch(side: int, samples: list[list[tuple[int, int]]]) -> Batch:
    """Samples of random pages, tiles and text of uneven lengths; answers of 5 tokens."""
    torch.manual_seed(1)
    rows = []
    for number, grids in enumerate(samples):
        visual = sum(visual_tokens(side, side, grid, 768, newlines=False) for grid in grids)
        rows.append((visual, 1 + visual + 4 + 3 * number + 5))
    B, T = len(samples), max(length for _, length in rows)
    ids, labels = torch.randint(3, 3999, (B, T)), torch.full((B, T), -100)
    image_mask, attention_mask = torch.zeros(2, B, T, dtype=torch.bool)
    for b, (visual, length) in enumerate(rows):
        image_mask[b, 1 : 1 + visual] = attention_mask[b, :length] = True
        labels[b, length - 5 : length] = ids[b, length - 5 : length]
    grids = [grid for own in samples for grid in own]
    tiles = sum(w * h for w, h in grids if w * h > 1)
    page, tile = (len(grids), 1, side, side), (tiles, 1, 768, 768)
    return Batch(
        ids,
        attention_mask,
        image_mask,
        labels,
        torch.randint(0, 256, page, dtype=torch.uint8),
        torch.randint(0, 256, tile, dtype=torch.uint8) if tiles else None,
        torch.tensor(grids) if tiles else None,
        newlines=False,
    )


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
    return model, peer_ocr2.peer_model(SMALL_2, official_views(model))


@pytest.mark.parametrize("side", SMALL_2.qwen.page_sides)
@torch.no_grad()
def test_features_of_both_towers_equal_the_peers(models, side):
    model, peer = models
    pages = random_batch(side, [[(1, 1)]]).pages
    tokens, sam, queries = model._page_grid(pages)
    tower, seen = peer.model.vision_tower, peer_ocr2.pixels(pages)
    assert difference(sam, tower.sam_encoder(seen).last_hidden_state) < TOLERANCE
    assert difference(queries, tower(seen).last_hidden_state) < TOLERANCE
    theirs = peer.model.get_image_features(seen).pooler_output[0]
    assert difference(tokens.flatten(1, 2)[0], theirs[:-1]) < TOLERANCE


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_page_tokens_logits_and_loss_equal_the_peers(models, case):
    model, peer = models
    batch = random_batch(*CASES[case])
    inputs = peer_ocr2.peer_inputs(batch)
    theirs = peer(**inputs)
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
    batch = random_batch(1024, [[(1, 2)], []])
    total, count = model.loss(batch)
    (total / count).backward()
    peer(**peer_ocr2.peer_inputs(batch)).loss.backward()
    grads = DeepseekOCR(SMALL_2)
    for mine, parameter in zip(grads.parameters(), model.parameters()):
        mine.data, parameter.grad = parameter.grad, None
    ours, theirs = peer_ocr2.to_peer(official_views(grads)), dict(peer.named_parameters())
    assert ours.keys() == theirs.keys()
    for name, parameter in theirs.items():
        error = (ours[name] - parameter.grad).norm() / parameter.grad.norm()
        assert error < GRADIENT_TOLERANCE, f"{name}: relative error {error:.2e}"
        parameter.grad = None


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
    with torch.device("meta"):
        peer = peer_ocr2.peer_class(peer_ocr2.peer_config(true_size.config))
        ours = {name: tensor.shape for name, tensor in peer_ocr2.to_peer(views).items()}
    assert ours == {name: tensor.shape for name, tensor in peer.named_parameters()}
    size = 2 * sum(view.numel() for view in views.values())
    assert size == 2 * 3_389_119_360
    # What the index says is 0.015 % more than these shapes have in bf16, the peer's no less than
    # ours; the index does not tell where.
    assert index["total_size"] - size == 1_010_688


def test_the_summary_counts_the_encoder_apart(true_size):
    rows = {row[0]: row[1:] for row in parameter_summary(true_size)}
    assert rows["SAM"][0] == 94_979_328 and rows["Qwen2 encoder"][0] == 358_256_512
    assert rows["projector"][0] == 896 * 1280 + 1280 + 1280
    assert rows["total"][0] == 3_389_119_360 and rows["total"][2] == 574_127_360
