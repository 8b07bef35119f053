"""LoRA on linears and stacked experts: against PEFT's numbers and plain formulas."""

import pytest
import torch
import torch.nn.functional as F
from golden import GOLDEN, GRADIENT_TOLERANCE, TOLERANCE, difference, golden_batch
from released import batch_of
from safetensors import safe_open

from deepsynth_min.errors import UserError
from deepsynth_min.model.deepseek_ocr import DeepseekOCR, parameter_summary
from deepsynth_min.model.experts import mixture_of_experts
from deepsynth_min.model.generation import greedy
from deepsynth_min.model.shape.presets import PRESETS
from deepsynth_min.training.optim import make_adamw
from deepsynth_min.tuning import freeze
from deepsynth_min.tuning.adapted_product import adapted_product
from deepsynth_min.tuning.adapter import base_digest, load_adapter
from deepsynth_min.tuning.lora import (
    Base,
    LoraConfig,
    LoraExperts,
    LoraLinear,
    adapter_views,
    attach,
    pairs,
)
from deepsynth_min.tuning.quant import QuantConfig, QuantLinear
from deepsynth_min.tuning.targets import choose


def expected() -> dict[str, torch.Tensor]:
    with safe_open(GOLDEN / "expected_lora.safetensors", framework="pt") as file:
        return {name.removeprefix("lora.base."): file.get_tensor(name) for name in file.keys()}


@pytest.fixture
def golden() -> DeepseekOCR:
    """The golden model with PEFT's adapter, which alone trains."""
    model = DeepseekOCR.from_pretrained(GOLDEN)
    load_adapter(model, GOLDEN / "adapter", Base("", None, base_digest(GOLDEN)))
    freeze.freeze(model, "lora")
    return model


@pytest.fixture
def model(small_config) -> DeepseekOCR:
    torch.manual_seed(0)
    return DeepseekOCR(small_config)


def adapted(model, targets=("all",), **options) -> DeepseekOCR:
    attach(model, LoraConfig(**{"rank": 3, "alpha": 6.0} | options), choose(model, targets))
    return model


def randomise(model) -> None:
    for pair in pairs(model).values():
        pair.B.data.normal_(0, 0.3)


def gradients(model) -> dict[str, torch.Tensor]:
    """PEFT's tensor name -> gradient, by reading the gradients as if they were the weights."""
    for pair in pairs(model).values():
        pair.A.data, pair.B.data = pair.A.grad, pair.B.grad
    return adapter_views(model)


@pytest.mark.parametrize("kind", ("as it is", "nf4", "int8"))
@pytest.mark.parametrize("frozen_input", (False, True))
@pytest.mark.parametrize("bias", (False, True))
def test_an_adapted_product_is_the_linear_and_the_low_rank_path(kind, frozen_input, bias):
    torch.manual_seed(0)
    base = torch.nn.Linear(64, 24, bias=bias).requires_grad_(False)
    if bias and kind != "as it is":
        pytest.skip("what is quantised has no bias")
    if kind != "as it is":
        base = QuantLinear(base, QuantConfig(kind))
        base.receive("weight", base.weight)
    layer = LoraLinear(base, LoraConfig(3, 5.0))
    layer.lora.B.data.normal_(0, 0.3)
    x = torch.randn(2, 5, 64, requires_grad=not frozen_input)
    wanted = [t for t in (x, layer.lora.A, layer.lora.B) if t.requires_grad]

    def both(out):
        return out, *torch.autograd.grad((out * weights).sum(), wanted)

    weights = torch.randn(2, 5, 24)
    pair = layer.lora
    fused = both(adapted_product(x, base.weight, base.bias, pair.A, pair.B, pair.scale))
    for ours, plain in zip(fused, both(layer.plain(x))):
        assert ours.dtype == plain.dtype == torch.float32
        torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-5)


def test_under_autocast_it_computes_in_16_bit_and_gives_float32_gradients():
    torch.manual_seed(0)
    base = torch.nn.Linear(64, 24, bias=False)
    layer = LoraLinear(base.bfloat16().requires_grad_(False), LoraConfig(3, 5.0))
    pair, x = layer.lora, torch.randn(7, 64)
    pair.B.data.normal_(0, 0.3)
    with torch.autocast("cpu", torch.bfloat16):
        out = adapted_product(x, layer.base.weight, None, pair.A, pair.B, pair.scale)
        plain = layer.plain(x)
    out.sum().backward()
    assert out.dtype == plain.dtype == torch.bfloat16 and pair.A.grad.dtype == torch.float32
    torch.testing.assert_close(out, plain, atol=0.05, rtol=0.02)


def test_logits_loss_and_greedy_tokens_with_an_adapter_equal_the_official_ones(golden):
    e, batch = expected(), golden_batch("base")
    with torch.no_grad():
        assert difference(golden(batch)[:1], e["logits"]) < TOLERANCE
        total, count = golden.loss(batch)
    assert abs(total.item() / count - e["loss"].item()) < 1e-5
    prompt = 1 + int(batch.image_mask[0].sum()) + 5
    start = golden_batch("base", slice(0, 1), slice(0, prompt))
    ours = greedy(golden, start, 12, stop_at_eos=False)
    assert ours == [e["greedy"].tolist()]


def test_gradients_of_the_adapter_equal_the_official_ones_and_the_base_has_none(golden):
    total, count = golden.loss(golden_batch("base"))
    (total / count).backward()
    assert all(p.grad is None for name, p in golden.named_parameters() if ".lora" not in name)
    ours, compared = gradients(golden), 0
    for name, theirs in expected().items():
        if name.startswith("train.grad."):
            name = name.removeprefix("train.grad.").replace(".default", "")
            error = (ours["base_model.model." + name] - theirs).norm() / theirs.norm()
            assert error < GRADIENT_TOLERANCE, f"{name}: relative error {error:.2e}"
            compared += 1
    assert compared == 32


@pytest.mark.parametrize("rslora, scale", [(False, 6.0 / 3), (True, 6.0 / 3**0.5)])
def test_a_linear_computes_w_plus_scaled_b_a(model, rslora, scale):
    randomise(adapted(model, rslora=rslora))
    linear = model.model.layers[0].self_attn.q_proj
    x = torch.randn(5, 32)
    weight = linear.base.weight + scale * linear.lora.B @ linear.lora.A
    assert torch.allclose(linear(x), F.linear(x, weight), atol=1e-5)
    assert torch.allclose(linear.base.weight + linear.lora.delta(), weight)


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_stacked_experts_equal_a_loop_over_experts_with_merged_weights(model, rank):
    randomise(adapted(model, rank=rank))
    experts = model.model.layers[1].mlp.experts
    assert isinstance(experts, LoraExperts)
    x = torch.randn(20, 32, requires_grad=True)
    chosen = torch.randint(0, 3, (20, 2))  # expert 3 gets no token
    weight = torch.rand(20, 2)
    ours = experts(x, chosen, weight)
    probe = torch.randn_like(ours)
    wanted = [x, *(p for name, p in experts.named_parameters() if "lora" in name)]
    ours_grad = torch.autograd.grad(ours, wanted, probe)
    base, merged = experts.base, type("Merged", (), {})()
    gate, up, down = (
        getattr(experts, f"lora_{kind}").B @ getattr(experts, f"lora_{kind}").A * (6.0 / rank)
        for kind in ("gate", "up", "down")
    )
    merged.gate_up, merged.down = base.gate_up + torch.cat([gate, up], 1), base.down + down
    reference = mixture_of_experts(merged, x, chosen, weight)
    assert torch.allclose(ours, reference, atol=1e-4)
    for mine, theirs in zip(ours_grad, torch.autograd.grad(reference, wanted, probe)):
        assert torch.allclose(mine, theirs, atol=1e-4)


@pytest.mark.parametrize("targets", ["attention", "attention+mlp", "all"])
def test_a_fresh_adapter_leaves_the_logits_bit_for_bit_what_they_were(targets):
    model = DeepseekOCR.from_pretrained(GOLDEN)
    with torch.no_grad():
        before = model(golden_batch("base"))
        adapted(model, (targets,))
        assert torch.equal(model(golden_batch("base")), before)


def test_dropout_acts_in_training_only_and_keeps_the_mean(model):
    randomise(adapted(model, dropout=0.5))
    pair = model.model.layers[0].self_attn.q_proj.lora
    x = torch.randn(4, 32)
    assert not torch.equal(pair(x), pair(x))
    mean = torch.stack([pair(x) for _ in range(4000)]).mean(0)
    model.eval()
    assert torch.equal(pair(x), pair(x))
    assert (mean - pair(x)).norm() / pair(x).norm() < 0.1


@pytest.mark.parametrize(
    "targets, size",
    [
        ("attention", 1_966_080),
        ("attention+mlp", 3_978_240),
        ("all", 77_509_632),
        ("encoder-but-sam", 24 * 16 * (4 * 1024 + 2 * 1024 + 2 * 5 * 1024)),
    ],
)
def test_adapter_sizes_at_rank_16_on_the_official_model(targets, size):
    with torch.device("meta"):
        model = adapted(DeepseekOCR(PRESETS["deepseek-ocr"]), (targets,), rank=16, alpha=32)
    assert sum(view.numel() for view in adapter_views(model).values()) == size
    freeze.freeze(model, "lora")
    rows = {row[0]: row[1:] for row in parameter_summary(model)}
    assert rows["adapter"][:2] == (size, size) and rows["total"][1] == size


def test_a_pattern_selects_by_path_and_never_leaves_the_decoder(model):
    assert choose(model, ("layers.1.self_attn.[qv]_proj",)) == {
        "model.layers.1.self_attn.q_proj",
        "model.layers.1.self_attn.v_proj",
    }
    assert all(path.startswith("model.layers.") for path in choose(model, ("*",)))
    for pattern in ("qkv_proj", "lm_head", "mlp.gate", "nothing"):
        with pytest.raises(UserError, match="fits no linear of the decoder"):
            choose(model, (pattern,))


def test_an_encoder_is_selected_by_its_name_or_by_a_regular_expression(model):
    clip = {
        f"model.vision_model.transformer.layers.0.{linear}"
        for linear in ("self_attn.qkv_proj", "self_attn.out_proj", "mlp.fc1", "mlp.fc2")
    }
    sam = {
        f"model.sam_model.blocks.{block}.{linear}"
        for block in (0, 1)
        for linear in ("attn.qkv", "attn.proj", "mlp.lin1", "mlp.lin2")
    }
    assert choose(model, ("encoder-but-sam",)) == clip
    assert choose(model, ("encoder",)) == clip | sam == choose(model, (r"re:[sv].*_model\..*",))
    assert choose(model, ("model.sam_model.blocks.1.*",)) == {p for p in sam if ".1." in p}
    some = {path for path in clip if path.endswith(("qkv_proj", "fc1"))}
    assert choose(model, (r"re:vision_model\..*(qkv_proj|fc1)",)) == some
    both = choose(model, ("attention", "vision_model.*.fc1"))
    assert len(both) == 8 + 1
    assert choose(model, (r"re:.*(q_proj|qkv|lin9)",)) == {
        path for path in sam | choose(model, ("attention",)) if path.endswith(("q_proj", ".qkv"))
    }
    for pattern, message in (
        ("vision_model.*.q_proj", "fits no linear of the encoder"),
        ("sam_model.patch_embed.*", "fits no linear of the encoder"),
        (r"re:projector\..*", "fits no linear of decoder and encoder"),
        ("re:(", "no regular expression"),
    ):
        with pytest.raises(UserError, match=message):
            choose(model, (pattern,))


@pytest.mark.parametrize("preset", ["tiny", "tiny-2"])
@pytest.mark.parametrize("fused", (False, True))
def test_an_adapter_on_an_encoder_computes_what_merged_weights_do(preset, fused, monkeypatch):
    monkeypatch.setattr(LoraLinear, "fuses", lambda layer, x: fused)  # the form of a GPU, here
    torch.manual_seed(0)
    model, newlines = DeepseekOCR(PRESETS[preset]), PRESETS[preset].page_format.newlines
    batch = batch_of([[(1, 1)]], [5], 256, newlines=newlines)
    merged = DeepseekOCR(PRESETS[preset])
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.data.normal_(0, 0.1)
    adapted(model, ("encoder", "attention"))
    randomise(model)
    merged.load_state_dict(dict(merged_tensors_of(model)))
    with torch.no_grad():
        pages = batch.pages
        ours, plain = model.page_features(pages), merged.page_features(pages)
        assert (ours - plain).norm() < 1e-5 * plain.norm()
    freeze.freeze(model, "lora")
    ours, theirs = (m.loss(batch)[0] for m in (model, merged))
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    ours.backward()
    theirs.backward()
    for path, pair in pairs(model).items():  # W + s B A: the gradient of B is s (dW) A^T
        whole = merged.get_submodule(path).weight.grad
        expected = (pair.scale * whole @ pair.A.T, pair.scale * pair.B.T @ whole)
        for mine, plain in zip((pair.B.grad, pair.A.grad), expected):
            assert (mine - plain).norm() <= 1e-4 * plain.norm(), path
    rows = {row[0]: row[1:] for row in parameter_summary(model)}
    decoder = sum(
        p.A.numel() + p.B.numel() for n, p in pairs(model).items() if n.startswith("model.layers.")
    )
    assert rows["adapter"][1] > rows["adapter"][2] == decoder > 0


def merged_tensors_of(model) -> dict[str, torch.Tensor]:
    """The state of a plain model: linears with their updates, all else as it is."""
    state = {n: p for n, p in model.state_dict().items() if ".lora" not in n}
    state = {name.replace(".base.", "."): tensor for name, tensor in state.items()}
    for path, pair in pairs(model).items():
        state[f"{path}.weight"] = state[f"{path}.weight"] + pair.delta()
    return state


def test_routed_experts_are_adapted_all_or_none(model):
    with pytest.raises(UserError, match=r"4 of the 12 linears of model.layers.1.mlp.experts"):
        choose(model, ("experts.*.gate_proj",))


@pytest.mark.parametrize("tune, projector", [("lora", False), ("projector+lora", True)])
def test_only_the_adapter_and_what_tune_names_is_in_the_optimizer(model, tune, projector):
    adapted(model)
    policy = freeze.freeze(model, tune)
    optimizer = make_adamw(model, (0.9, 0.95), 0.0)
    freeze.check_start(model, optimizer, policy)
    assert ("model.projector.layers.weight" in policy) == projector
    rest = {name for name in policy if ".lora" not in name}
    assert all("projector" in n or "newline" in n or "seperator" in n for n in rest)
    assert bool(rest) == projector
    assert isinstance(model.model.layers[0].self_attn.q_proj, LoraLinear)


def test_lora_plus_trains_b_at_its_own_rate(model):
    adapted(model)
    freeze.freeze(model, "lora")
    optimizer = make_adamw(model, (0.9, 0.95), 0.0, lora_plus_ratio=8.0)
    names = {id(p): name for name, p in model.named_parameters()}
    for group in optimizer.param_groups:
        factor = 8.0 if names[id(group["params"][0])].endswith(".B") else 1.0
        assert group["rate_factor"] == factor
        assert {names[id(p)].endswith(".B") for p in group["params"]} == {factor == 8.0}
