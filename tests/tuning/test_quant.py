"""Quantised weights: their size, their error, and QLoRA against LoRA over the unpacked weight."""

import pytest
import torch
from golden import GOLDEN, golden_batch
from torch import nn

from deepsynth_min.model.deepseek_ocr import DeepseekOCR, parameter_summary
from deepsynth_min.model.shape.official import config_from_file
from deepsynth_min.model.weights import load_weights
from deepsynth_min.training.optim import LossScaler, clip_and_step, make_adamw
from deepsynth_min.tuning import freeze, quant
from deepsynth_min.tuning.freeze import FreezeError
from deepsynth_min.tuning.lora import LoraConfig, attach, pairs
from deepsynth_min.tuning.quant import (
    Packed,
    QuantConfig,
    QuantExperts,
    QuantLinear,
    packed_weights,
    quantise,
)
from deepsynth_min.tuning.targets import choose

KINDS = [("nf4", True), ("nf4", False), ("fp4", True), ("int8", True)]

# The 16 levels of NF4 as the paper's appendix E prints them.
NF4 = [
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
]


def test_nf4_takes_the_nearest_of_the_papers_levels_times_the_blocks_absmax():
    torch.manual_seed(0)
    weight = torch.randn(6, 128) * 0.02
    blocks = weight.view(-1, 64)
    absmax = blocks.abs().amax(1, keepdim=True)
    levels = torch.tensor(NF4)
    nearest = (blocks[..., None] / absmax[..., None] - levels).abs().argmin(-1)
    reference = (levels[nearest] * absmax).view_as(weight)
    ours = Packed(weight, QuantConfig("nf4", double=False)).unpack(torch.float32)
    assert torch.allclose(ours, reference, atol=1e-7)


@pytest.mark.parametrize("kind, double", KINDS[:3])
def test_packing_in_parts_gives_what_bitsandbytes_gives_for_the_whole(monkeypatch, kind, double):
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    torch.manual_seed(0)
    weight = torch.randn(3, 128, 192)
    monkeypatch.setattr(quant, "PART", 64 * 100)
    whole = quantize_4bit(weight, blocksize=64, compress_statistics=double, quant_type=kind)
    ours = Packed(weight, QuantConfig(kind, double))
    assert torch.equal(ours.levels, whole[0])
    assert torch.equal(ours.unpack(torch.float32), dequantize_4bit(*whole))


def test_int8_is_within_half_a_step_of_each_row():
    torch.manual_seed(0)
    weight = torch.randn(3, 7, 64)
    ours = Packed(weight, QuantConfig("int8")).unpack(torch.float32)
    step = weight.abs().amax(-1, keepdim=True) / 127
    # Half a step, and the float16 that the kernel reads: 127 steps * 2^-11.
    assert ((ours - weight).abs() <= 0.57 * step).all()


@pytest.mark.parametrize("kind, double", KINDS)
def test_stored_bytes_are_as_the_arithmetic_says(kind, double):
    weight = torch.randn(8, 512, 256)
    n = weight.numel()
    expected = {
        ("nf4", False): n / 2 + 4 * n / 64,
        ("nf4", True): n / 2 + n / 64 + 4 * n / 64 / 256 + 4,
        ("fp4", True): n / 2 + n / 64 + 4 * n / 64 / 256 + 4,
        ("int8", True): n + 4 * n / 256,
    }[kind, double]
    assert Packed(weight, QuantConfig(kind, double)).stored_bytes() == expected


def quantised(config: QuantConfig, dtype=None) -> DeepseekOCR:
    """The golden model, packed while it is loaded."""
    with torch.device("meta"):
        model = DeepseekOCR(config_from_file(GOLDEN / "config.json"))
    quantise(model, config)
    load_weights(model, GOLDEN, dtype)
    return model


def unpacked(model: DeepseekOCR) -> DeepseekOCR:
    """A plain model with the weights that a quantised one stands for."""
    plain = DeepseekOCR.from_pretrained(GOLDEN)
    for path, packed in packed_weights(model).items():
        plain.get_parameter(path).data = packed.unpack(torch.float32)
    return plain


def adapted(model: DeepseekOCR) -> DeepseekOCR:
    torch.manual_seed(1)
    attach(model, LoraConfig(rank=4, alpha=8.0), choose(model, ("all",)))
    for pair in pairs(model).values():
        pair.B.data.normal_(0, 0.1)
    freeze.freeze(model, "lora")
    return model


@pytest.mark.parametrize("kind, double", KINDS)
def test_qlora_equals_lora_over_the_unpacked_weight_forward_and_backward(kind, double):
    qlora = quantised(QuantConfig(kind, double))
    lora = unpacked(qlora)
    results = []
    for model in (adapted(qlora), adapted(lora)):
        total, count = model.loss(golden_batch("base"))
        (total / count).backward()
        results.append((total, {n: p.grad for n, p in model.named_parameters() if ".lora" in n}))
    (loss, gradients), (other_loss, other) = results
    assert torch.allclose(loss, other_loss, rtol=1e-5)
    assert gradients.keys() == other.keys() and len(gradients) == 2 * (12 + 3 + 2 * 3 + 2 * 3)
    for name in gradients:
        assert torch.allclose(gradients[name], other[name], rtol=1e-3, atol=1e-6), name


def test_only_linears_and_experts_of_the_decoders_layers_are_packed():
    model = quantised(QuantConfig())
    packed = {name.rpartition(".")[0] for name in packed_weights(model)}
    for path, module in model.named_modules():
        inside = path.startswith("model.layers.")
        assert (path in packed) == isinstance(module, QuantLinear | QuantExperts)
        assert not (inside and isinstance(module, nn.Linear))
    assert model.model.layers[1].mlp.gate.weight.requires_grad  # the router is a plain parameter
    assert len(packed) == 12 + 3 + 2 * (3 + 1)


def test_packing_while_loading_equals_packing_a_filled_model():
    late = DeepseekOCR.from_pretrained(GOLDEN)
    quantise(late, QuantConfig())
    early = quantised(QuantConfig())
    assert early.state_dict().keys() == late.state_dict().keys()
    for (name, a), b in zip(early.state_dict().items(), late.state_dict().values()):
        assert torch.equal(a, b), name


def test_the_summary_counts_a_packed_weight_as_what_it_stands_for():
    assert [row[:2] for row in sorted(parameter_summary(quantised(QuantConfig())))] == [
        row[:2] for row in sorted(parameter_summary(DeepseekOCR.from_pretrained(GOLDEN)))
    ]


def test_the_loss_of_qlora_falls_and_its_base_does_not_move():
    model = adapted(quantised(QuantConfig()))
    optimizer, scaler = make_adamw(model, (0.9, 0.95), 0.0), LossScaler(False, "cpu")
    before, losses, batch = freeze.fingerprint(model), [], golden_batch("base")
    assert any(name.endswith("levels") for name in before)
    for _ in range(12):
        total, count = model.loss(batch)
        (total / count).backward()
        clip_and_step(optimizer, scaler, 5e-3, 1.0)
        optimizer.zero_grad()
        losses.append(total.item() / count)
    assert losses[-1] < 0.8 * losses[0]
    freeze.check_end(model, before)
    next(iter(packed_weights(model).values())).levels[0] ^= 1
    with pytest.raises(FreezeError, match="levels"):
        freeze.check_end(model, before)


def test_under_autocast_the_packed_product_is_computed_in_16_bit():
    model = quantised(QuantConfig(), torch.bfloat16)
    plain = unpacked(model).bfloat16()
    linear, reference = (m.model.layers[0].self_attn.q_proj for m in (model, plain))
    x = torch.randn(4, 64)
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(x).dtype == torch.bfloat16
        assert torch.equal(linear(x), reference(x))
