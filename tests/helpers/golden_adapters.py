"""The golden model with an adapter of random numbers."""

import torch
from golden import GOLDEN, golden_batch

from deepsynth_min.model.deepseek_ocr import DeepseekOCR
from deepsynth_min.tuning.adapter import base_digest
from deepsynth_min.tuning.lora import Base, LoraConfig, attach, pairs
from deepsynth_min.tuning.targets import choose

BASE = Base("base", None, base_digest(GOLDEN))


def adapted(targets="all", **options) -> DeepseekOCR:
    """The golden model with random pairs."""
    torch.manual_seed(0)
    model = DeepseekOCR.from_pretrained(GOLDEN)
    config = LoraConfig(**{"rank": 4, "alpha": 8.0, "base": BASE} | options)
    attach(model, config, choose(model, (targets,)))
    for pair in pairs(model).values():
        pair.B.data.normal_(0, 0.1)
    return model


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model(golden_batch("base"))
