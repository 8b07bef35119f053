"""The whole model by the forms that a GPU gets, on the CPU, against those that a CPU gets.

Each form has a test of its own; this one holds the places where a form is chosen and called.
"""

import pytest
import torch
from golden import difference
from gpu_branch import GpuBranch
from released import batch_of

from deepsynth_min.model.deepseek_ocr import DeepseekOCR
from deepsynth_min.model.shape.presets import PRESETS
from deepsynth_min.tuning import freeze
from deepsynth_min.tuning.lora import LoraConfig, LoraLinear, attach, pairs
from deepsynth_min.tuning.targets import choose


def loss_and_gradients(model: DeepseekOCR, batch) -> dict[str, torch.Tensor]:
    model.zero_grad()
    total, _ = model.loss(batch)
    total.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {"loss": total.detach(), **found}


@pytest.mark.parametrize("preset", ["tiny", "tiny-2", "tiny-unlimited"])
@pytest.mark.parametrize("tune", ["all", "lora"])
@pytest.mark.parametrize("packed", (False, True))
def test_the_forms_of_a_gpu_give_the_same_loss_and_gradients(preset, tune, packed, monkeypatch):
    torch.manual_seed(0)
    model = DeepseekOCR(PRESETS[preset])
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):  # zeros in a fresh model, where nobody would miss one
            parameter.data.normal_(0, 0.1)
    if tune == "lora":
        attach(model, LoraConfig(3, 5.0), choose(model, ("all", "encoder")))
        for pair in pairs(model).values():
            pair.B.data.normal_(0, 0.1)
    freeze.freeze(model, tune)
    newlines = PRESETS[preset].page_format.newlines
    batch = batch_of([[(1, 1)], [(1, 1)]], [5, 9], 256, newlines=newlines)
    batch = batch.packed() if packed else batch
    with monkeypatch.context() as patched:  # the form of LoRA that a CPU shares with a GPU
        patched.setattr(LoraLinear, "fuses", lambda layer, x: False)
        plain = loss_and_gradients(model, batch)
    with GpuBranch() as mode:
        fused = loss_and_gradients(model, batch)
    assert mode.asked > 20 and fused.keys() == plain.keys()
    far = {name: difference(fused[name], plain[name]) for name in plain}
    assert max(far.values()) < 1e-4, max(far, key=far.get)
