"""The model against the official code's own numbers (tests/golden/README.md)."""

import gzip
import json

import pytest
import torch
from golden import CASES, GOLDEN, GRADIENT_TOLERANCE, TOLERANCE, difference, expected, golden_batch

from deepsynth_min.model.decoder import Layout
from deepsynth_min.model.deepseek_ocr import DeepseekOCR, parameter_summary
from deepsynth_min.model.generation import greedy
from deepsynth_min.model.loss import chunked_cross_entropy
from deepsynth_min.model.shape.official import config_from_dict, config_to_dict
from deepsynth_min.model.shape.presets import PRESETS
from deepsynth_min.model.weights import official_views


@pytest.fixture
def model() -> DeepseekOCR:
    return DeepseekOCR.from_pretrained(GOLDEN)


def gradients(model: DeepseekOCR) -> dict[str, torch.Tensor]:
    """Official name -> gradient, by reading the gradients as if they were the weights."""
    reference = DeepseekOCR(model.config)
    for mine, parameter in zip(reference.parameters(), model.parameters()):
        mine.data = torch.zeros_like(mine) if parameter.grad is None else parameter.grad
    return official_views(reference)


def assert_gradients_agree(model: DeepseekOCR, prefix: str, at_least: int) -> None:
    ours = gradients(model)
    names = [name for name in expected() if name.startswith(prefix)]
    assert len(names) >= at_least
    for name in names:
        theirs = expected()[name]
        error = (ours[name.removeprefix(prefix)] - theirs).norm() / theirs.norm()
        assert error < GRADIENT_TOLERANCE, f"{name}: relative error {error:.2e}"


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_encoder_features_and_page_tokens_equal_the_official_ones(model, case):
    e = expected()
    tokens, sam, clip = model._page_grid(e[f"{case}.pages"])
    assert difference(sam, e[f"{case}.sam_features"]) < TOLERANCE
    assert difference(clip, e[f"{case}.clip_features"]) < TOLERANCE
    assert difference(tokens.flatten(1, 2), e[f"{case}.page_tokens"]) < TOLERANCE


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_logits_equal_the_official_ones(model, case):
    assert difference(model(golden_batch(case)), expected()[f"{case}.logits"]) < TOLERANCE


@pytest.mark.parametrize("case", CASES)
def test_loss_equals_the_official_one(model, case):
    total, count = model.loss(golden_batch(case))
    assert abs(total.item() / count - expected()[f"{case}.loss"].item()) < 1e-5


@pytest.mark.parametrize("case, at_least", [("base", 30), ("gundam", 10)])
def test_gradients_equal_the_official_ones(model, case, at_least):
    total, count = model.loss(golden_batch(case))
    (total / count).backward()
    assert_gradients_agree(model, f"{case}.train.grad.", at_least)


@pytest.mark.parametrize("case", ("base", "gundam"))
def test_balance_loss_gradients_of_the_routers_equal_the_official_ones(model, case):
    batch = golden_batch(case)
    everything = torch.ones_like(batch.attention_mask)  # the official code counts padding too
    hidden, balance = model.hidden(
        model.embed(batch), Layout(batch.attention_mask, token_mask=everything)
    )
    scored = hidden.flatten(0, 1)[batch.score_index]
    total = chunked_cross_entropy(scored, model.lm_head.weight, batch.targets)
    (total / batch.num_scored + 0.02 * balance / len(batch.input_ids)).backward()
    assert_gradients_agree(model, f"{case}.train_aux.grad.", 2)


@pytest.mark.parametrize("case", CASES)
def test_greedy_tokens_equal_the_official_ones(model, case):
    prompt = 1 + int(expected()[f"{case}.image_mask"][0].sum()) + 5  # BOS, page, 5 text tokens
    batch = golden_batch(case, slice(0, 1), slice(0, prompt))
    ours = greedy(model, batch, 12, stop_at_eos=False)
    assert ours == [expected()[f"{case}.greedy"].tolist()]


def test_the_preset_deepseek_ocr_has_exactly_the_official_tensors():
    shapes = json.loads(gzip.decompress((GOLDEN / "official_shapes.json.gz").read_bytes()))
    with torch.device("meta"):
        views = official_views(DeepseekOCR(PRESETS["deepseek-ocr"]))
    assert {name: list(view.shape) for name, view in views.items()} == shapes
    assert len(views) == 2710
    assert sum(view.numel() for view in views.values()) == 3_336_106_240


def test_the_preset_deepseek_ocr_writes_the_official_config():
    official = json.loads((GOLDEN / "official_config.json").read_text())
    assert config_to_dict(PRESETS["deepseek-ocr"]) == official
    assert config_from_dict(official) == PRESETS["deepseek-ocr"]


def test_the_summary_of_the_official_model_gives_its_published_counts():
    with torch.device("meta"):
        rows = {row[0]: row[1:] for row in parameter_summary(DeepseekOCR(PRESETS["deepseek-ocr"]))}
    assert rows["SAM"][0] == 95_569_152
    assert rows["CLIP"][0] == 303_177_728
    assert rows["projector"][0] == 2_625_280
    assert rows["routed experts"][0] == 2_422_210_560
    assert rows["decoder"][0] == 181_566_720
    assert rows["embedding"][0] + rows["head"][0] == 330_956_800
    assert round(rows["total"][2] / 1e6) == 574  # active per token
