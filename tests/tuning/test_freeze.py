"""The freeze policy, and that its audit notices every way of breaking it."""

import pytest
import torch
from small_steps import build, ragged_batch, step

from deepsynth_min.model.deepseek_ocr import DeepseekOCR, parameter_summary
from deepsynth_min.model.shape.presets import PRESETS
from deepsynth_min.training.optim import make_adamw
from deepsynth_min.training.precision import set_parameter_types
from deepsynth_min.tuning import freeze
from deepsynth_min.tuning.freeze import FreezeError

ENCODER = "model.sam_model.net_2.weight"
PROJECTOR = "model.projector.layers.weight"
DECODER = "model.layers.1.mlp.gate.weight"


@pytest.fixture
def model(small_config) -> DeepseekOCR:
    torch.manual_seed(0)
    return DeepseekOCR(small_config)


def prepared(model, tune="decoder"):
    policy = freeze.freeze(model, tune)
    return policy, make_adamw(model, (0.9, 0.95), 0.0)


@pytest.mark.parametrize(
    "tune, encoder, projector",
    [
        ("decoder", False, False),
        ("projector+decoder", False, True),
        ("all-but-sam", False, True),
        ("all", True, True),
    ],
)
def test_each_policy_trains_what_its_name_says(model, tune, encoder, projector):
    policy, optimizer = prepared(model, tune)
    freeze.check_start(model, optimizer, policy)
    assert (ENCODER in policy, PROJECTOR in policy, DECODER in policy) == (encoder, projector, True)
    assert ("model.view_seperator" in policy) == projector
    assert "model.vision_model.embeddings.patch_embedding.weight" not in policy


@pytest.mark.parametrize("preset", ["tiny", "tiny-2"])
def test_all_but_sam_trains_what_all_trains_and_no_parameter_of_sam(preset):
    with torch.device("meta"):
        model = DeepseekOCR(PRESETS[preset])
    whole, part = freeze.freeze(model, "all"), freeze.freeze(model, "all-but-sam")
    sam = {name for name, _ in model.named_parameters() if name.startswith("model.sam_model.")}
    assert part == whole - sam and sam <= whole
    rows = {row[0]: row[1:3] for row in parameter_summary(model)}
    second = "CLIP" if preset == "tiny" else "Qwen2 encoder"
    assert rows["SAM"][1] == 0 and 0 < rows[second][1] <= rows[second][0]


@pytest.mark.parametrize("precision, tolerance", [("fp32", 1e-5), ("bf16", 0.06)])
def test_with_sam_frozen_the_gradients_are_those_of_all(small_config, precision, tolerance):
    """In bf16 the frozen half is held and computed with in bf16, what trains in float32.

    The frozen half takes other kernels, which round otherwise on each processor: 2.01e-6 apart on
    an Intel Xeon, less on an AMD EPYC."""
    found, autocast = {}, torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")
    for tune in ("all", "all-but-sam"):
        model = build(small_config, tune)
        set_parameter_types(model, precision)
        with autocast:
            found[tune] = step(model, ragged_batch())
        held = {p.dtype for n, p in model.named_parameters() if n not in found[tune][1]}
        assert held == {torch.bfloat16 if precision == "bf16" else torch.float32}
    (whole, gradients), (part, ours) = found["all"], found["all-but-sam"]
    assert part == pytest.approx(whole, rel=tolerance)
    assert set(ours) == {name for name in gradients if "sam_model" not in name}
    for name in ours:
        apart = (ours[name] - gradients[name]).norm()
        assert apart <= tolerance * gradients[name].norm() + 1e-9, name


@pytest.mark.parametrize(
    "sides, trained", [((), {192, 256}), ({256}, {256}), ({192, 256}, {192, 256})]
)
def test_learned_queries_train_for_the_sizes_that_are_read(sides, trained):
    model = DeepseekOCR(PRESETS["tiny-2"])
    policy = freeze.freeze(model, "all", sides)
    queries = {name for name in policy if "query" in name}
    assert queries == {f"model.qwen2_model.query_{side}.weight" for side in trained}
    assert "model.qwen2_model.model.model.norm.weight" in policy
    if trained == {192, 256}:  # of no other model do all parameters train
        optimizer = make_adamw(model, (0.9, 0.95), 0.0)
        freeze.check_start(model, optimizer, policy, "all")
        with pytest.raises(FreezeError, match="nothing is frozen"):
            freeze.check_start(model, optimizer, policy, "decoder")
    assert not any("qwen2" in name for name in freeze.freeze(model, "projector+decoder"))


def set_grad(model, name, flag):
    model.get_parameter(name).requires_grad = flag


@pytest.mark.parametrize(
    "break_it, name",
    [
        (lambda m, o: set_grad(m, ENCODER, True), ENCODER),
        (lambda m, o: set_grad(m, DECODER, False), DECODER),
        (lambda m, o: o.add_param_group({"params": [m.get_parameter(ENCODER)]}), ENCODER),
        (lambda m, o: o.param_groups[0]["params"].remove(m.get_parameter(DECODER)), DECODER),
        (lambda m, o: o.add_param_group({"params": [torch.zeros(3, 7)]}), r"\[3, 7\]"),
    ],
)
def test_the_start_check_names_what_breaks_the_policy(model, break_it, name):
    policy, optimizer = prepared(model)

    # `remove` compares tensors by value; make each parameter list find by identity instead.
    class ById(list):
        def remove(self, wanted):
            self[:] = [p for p in self if p is not wanted]

    for group in optimizer.param_groups:
        group["params"] = ById(group["params"])
    break_it(model, optimizer)
    with pytest.raises(FreezeError, match=name):
        freeze.check_start(model, optimizer, policy)


def test_the_start_check_refuses_empty_sides(model):
    everything = {name for name, _ in model.named_parameters()}
    for parameter in model.parameters():
        parameter.requires_grad = True
    with pytest.raises(FreezeError, match="nothing is frozen"):
        freeze.check_start(model, make_adamw(model, (0.9, 0.95), 0.0), everything)
    optimizer = make_adamw(model, (0.9, 0.95), 0.0)
    for group in optimizer.param_groups:
        group["params"] = []
    for parameter in model.parameters():
        parameter.requires_grad = False
    with pytest.raises(FreezeError, match="nothing trains"):
        freeze.check_start(model, optimizer, set())


def test_the_gradient_check_names_missing_forbidden_and_wild_gradients(model):
    policy, _ = prepared(model)
    for name in policy:
        parameter = model.get_parameter(name)
        parameter.grad = torch.zeros_like(parameter)
    freeze.check_gradients(model, policy)
    model.get_parameter(DECODER).grad[0, 0] = float("nan")
    with pytest.raises(FreezeError, match=f"not finite: {DECODER}"):
        freeze.check_gradients(model, policy)
    model.get_parameter(DECODER).grad = None
    with pytest.raises(FreezeError, match=f"no gradient: {DECODER}"):
        freeze.check_gradients(model, policy)
    model.get_parameter(ENCODER).grad = torch.zeros_like(model.get_parameter(ENCODER))
    with pytest.raises(FreezeError, match=f"has a gradient: {ENCODER}"):
        freeze.check_gradients(model, policy)


def test_the_end_check_notices_one_changed_bit(model):
    prepared(model)
    before = freeze.fingerprint(model)
    model.get_parameter(DECODER).data.add_(1)  # trainable: may move
    freeze.check_end(model, before)
    weight = model.get_parameter(ENCODER).data
    weight.view(torch.int32)[0, 0, 0, 0] ^= 1
    with pytest.raises(FreezeError, match=f"changed: {ENCODER}"):
        freeze.check_end(model, before)
