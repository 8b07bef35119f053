"""The whole model against transformers' released class, which reads the same weights."""

from dataclasses import replace

import pytest
import torch
from released import IMAGE, batch_of, images_of
from small_model import SMALL

from deepsynth_min.model.deepseek_ocr import DeepseekOCR

peers = pytest.importorskip("peers", reason="transformers is not installed")
TOLERANCE, GRADIENT_TOLERANCE = 2e-4, 1e-3


@pytest.fixture(scope="module", params=["DeepSeek-OCR", "Unlimited-OCR"])
def models(request):
    """Ours, and the library's class with the same weights; both attend to all of an answer that the
    window of the latter covers."""
    torch.manual_seed(0)
    window = 40 if request.param == "Unlimited-OCR" else 0
    ours = DeepseekOCR(replace(SMALL, decoder=replace(SMALL.decoder, sliding_window=window)))
    peer = peers.whole_peer(ours)
    peer.model.config.image_token_id = IMAGE
    return ours.train(), peer.train()


WHOLE = (1, 1)
CASES = {
    "base": ([[WHOLE]], [9]),
    "several pages": ([[WHOLE] * 3], [9]),
    "tiles": ([[(2, 1)]], [9]),
    "tiles of several pages": ([[(2, 3), WHOLE, (1, 2)]], [5]),
    "uneven": ([[WHOLE], [WHOLE, WHOLE], [WHOLE]], [3, 30, 12]),
    "uneven with tiles": ([[(3, 1)], [WHOLE]], [4, 21]),
}


@pytest.mark.parametrize("case", CASES)
def test_page_tokens_logits_loss_and_gradients_are_the_released_class_s(models, case):
    ours, peer = models
    batch = batch_of(*CASES[case])
    images = images_of(batch)
    tokens = ours.encode_pages(batch.pages, batch.tiles, batch.grids)
    theirs = torch.cat(peer.model.get_image_features(**images).pooler_output)
    assert torch.allclose(tokens, theirs, atol=TOLERANCE)

    ids = batch.input_ids.masked_fill(batch.image_mask, IMAGE)
    real = batch.attention_mask
    out = peer(input_ids=ids, attention_mask=real.long(), labels=batch.labels, **images)
    assert torch.allclose(ours(batch)[real], out.logits[real], atol=TOLERANCE)

    ours.zero_grad(), peer.zero_grad()
    total, count = ours.loss(batch.packed())
    assert float(total) / count == pytest.approx(float(out.loss), abs=TOLERANCE)
    (total / count).backward()
    out.loss.backward()
    wanted = {name: p.grad for name, p in peer.named_parameters()}
    found = {
        n: p.grad if p.grad is not None else torch.zeros_like(p) for n, p in ours.named_parameters()
    }
    for name, gradient in peers.whole_state(found).items():
        want = wanted[name] if wanted[name] is not None else torch.zeros_like(gradient)
        error = (gradient - want).norm()
        assert error <= GRADIENT_TOLERANCE * want.norm() + 1e-7, name
