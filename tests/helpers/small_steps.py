"""One training step of a small model on a ragged batch: what tests of equal forms compare."""

import pytest
import torch

from deepsynth_min.model.batch import Batch
from deepsynth_min.model.deepseek_ocr import DeepseekOCR
from deepsynth_min.tuning import freeze
from deepsynth_min.tuning.lora import LoraConfig, attach
from deepsynth_min.tuning.targets import choose


def ragged_batch() -> Batch:
    """Samples of 20, 11 and 27 tokens with 1, 0 and 2 pages, padded."""
    torch.manual_seed(1)
    lengths, visual = (20, 11, 27), (7, 0, 14)
    ids = torch.randint(3, 99, (3, 27))
    real, image = torch.zeros(2, 3, 27, dtype=torch.bool)
    labels = torch.full((3, 27), -100)
    for b, (length, tokens) in enumerate(zip(lengths, visual)):
        real[b, :length] = True
        image[b, 1 : 1 + tokens] = True
        labels[b, length - 5 : length] = ids[b, length - 5 : length]
    pages = torch.randint(0, 256, (3, 1, 128, 128), dtype=torch.uint8)
    return Batch(ids, real, image, labels, pages, owners=(0, 2, 2))


def build(config, tune: str) -> DeepseekOCR:
    torch.manual_seed(0)
    model = DeepseekOCR(config)
    if tune == "lora":
        attach(model, LoraConfig(4, 8.0, 0.3), choose(model, ("all",)))
        for name, parameter in model.named_parameters():
            if ".lora" in name:
                torch.nn.init.normal_(parameter, std=0.1)
    freeze.freeze(model, tune)
    return model


def step(model: DeepseekOCR, batch: Batch, balance: float = 0.02):
    """(loss, gradients) of the sum with the balance term, as training has it; 0: without."""
    model.zero_grad()
    torch.manual_seed(7)  # of dropout
    loss, count, term = model.loss_terms(batch, balance=balance > 0)
    (loss / count + balance * (term or 0)).backward()
    return loss.item(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def assert_equal(ours, reference) -> None:
    """What `step` gave, twice: equal but for rounding."""
    assert ours[0] == pytest.approx(reference[0], rel=1e-6)
    assert ours[1].keys() == reference[1].keys()
    for name, gradient in reference[1].items():
        assert (ours[1][name] - gradient).norm() <= 2e-6 * gradient.norm() + 1e-9, name
