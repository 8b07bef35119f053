"""Adapter files: the round trip, PEFT on both sides, and every wrong adapter."""

import json
import re
import warnings
from dataclasses import replace

import pytest
import torch
from golden import GOLDEN, TOLERANCE, difference, golden_batch
from golden_adapters import BASE, adapted, logits
from official_tree import official_tree
from released import logits_of
from safetensors.torch import load_file, save_file
from torch import nn

from deepsynth_min.model.deepseek_ocr import DeepseekOCR
from deepsynth_min.model.shape.presets import PRESETS
from deepsynth_min.model.weights import official_views
from deepsynth_min.tuning.adapter import CONFIG, TENSORS, load_adapter, save_adapter
from deepsynth_min.tuning.lora import pairs
from deepsynth_min.tuning.targets import (
    ENCODERS,
    choose,
    official_paths,
    peft_fields,
    selected,
    target_modules,
)


def test_an_adapter_written_by_peft_is_the_same_when_saved_again(tmp_path):
    model = DeepseekOCR.from_pretrained(GOLDEN)
    load_adapter(model, GOLDEN / "adapter", BASE)
    save_adapter(model, tmp_path)
    theirs, ours = load_file(GOLDEN / "adapter" / TENSORS), load_file(tmp_path / TENSORS)
    assert theirs.keys() == ours.keys() and len(ours) == 138
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    config = json.loads((GOLDEN / "adapter" / CONFIG).read_text())
    written = json.loads((tmp_path / CONFIG).read_text())
    assert written.pop("base_model_name_or_path") == "base"
    assert written.pop("task_type") == "CAUSAL_LM"  # PEFT's was made without one
    assert written == {name: config[name] for name in written}


@pytest.mark.parametrize(
    "targets, rslora", [("attention+mlp", True), ("all", False), ("layers.1.self_attn.*", False)]
)
def test_a_saved_adapter_gives_the_same_logits_in_another_model(tmp_path, targets, rslora):
    model = adapted(targets, rslora=rslora)
    save_adapter(model, tmp_path)
    other = DeepseekOCR.from_pretrained(GOLDEN)
    load_adapter(other, tmp_path, BASE)
    assert torch.equal(logits(other), logits(model))
    assert other.adapter == model.adapter


def meant(paths: set[str], targets, excluded) -> set[str]:
    """As PEFT reads the two fields."""
    return selected(paths, targets, "") - selected(paths, excluded, "")


def test_target_modules_select_the_adapted_linears_and_no_other(small_config):
    model = DeepseekOCR(small_config)
    paths = official_paths(model)
    for pattern in ("attention", "attention+mlp", "all", "layers.0.*", "shared_experts.up_proj"):
        chosen = choose(model, (pattern,))
        targets, excluded = peft_fields(paths, chosen)
        assert meant(paths, targets, excluded) == chosen
        vision = ("qkv", "proj", "lin1", "lin2", "qkv_proj", "out_proj", "fc1", "fc2")
        assert not set(vision) & set(targets)
    chosen = choose(model, ("all",))
    assert target_modules(paths, chosen) == (
        "down_proj",
        "gate_proj",
        "k_proj",
        "o_proj",
        "q_proj",
        "up_proj",
        "v_proj",
    )


@pytest.mark.parametrize("pattern", ["attention", "attention+mlp", "all", "layers.[13].*.q_proj"])
def test_target_modules_select_no_linear_of_an_encoder_with_the_same_names(pattern):
    """Neither under the official names, nor under those of transformers' class."""
    with torch.device("meta"):
        model = DeepseekOCR(PRESETS["tiny-2"])
    paths, chosen = official_paths(model), choose(model, (pattern,))
    assert any(path.startswith("model.qwen2_model.model.model.layers.0") for path in paths)
    targets, excluded = peft_fields(paths, chosen)
    assert isinstance(targets, tuple) and excluded == ENCODERS
    assert meant(paths, targets, excluded) == chosen
    renamed = {
        path: path.replace("model.layers", "model.language_model.layers", 1) for path in paths
    }
    renamed = {
        p: q.replace("qwen2_model.model.model", "vision_tower.vision_encoder")
        for p, q in renamed.items()
    }
    found = meant(set(renamed.values()), targets, excluded)
    assert found == {renamed[path] for path in chosen}


@pytest.mark.parametrize("preset", ["tiny", "tiny-2"])
@pytest.mark.parametrize(
    "targets",
    [
        ("encoder",),
        ("encoder-but-sam", "attention+mlp"),
        (r"re:.*layers\.[12]\..*(q_proj|qkv_proj|shared_experts\.up_proj|fc1)",),
        (r"re:(qwen2_model|vision_model)\..*layers\.0\..*", "layers.[13].*.q_proj"),
        ("sam_model.blocks.0.*.proj", "all"),
    ],
)
def test_target_modules_select_linears_of_encoders_and_no_other(preset, targets):
    with torch.device("meta"):
        model = DeepseekOCR(PRESETS[preset])
    paths, chosen = official_paths(model), choose(model, targets)
    assert any(not path.startswith("model.layers.") for path in chosen)
    assert meant(paths, *peft_fields(paths, chosen)) == chosen


@pytest.mark.parametrize("preset", ["tiny", "tiny-2"])
def test_target_modules_of_the_default_are_endings_in_each_model(preset):
    with torch.device("meta"):
        model = DeepseekOCR(PRESETS[preset])
    endings = (
        *("k_proj", "mlp.down_proj", "mlp.gate_proj", "mlp.up_proj", "o_proj", "q_proj"),
        *("shared_experts.down_proj", "shared_experts.gate_proj", "shared_experts.up_proj"),
        "v_proj",
    )
    paths, chosen = official_paths(model), choose(model, ("attention+mlp",))
    assert peft_fields(paths, chosen) == (endings, ENCODERS)


def test_an_expression_selects_what_no_ending_does_and_no_other():
    """As adapters of DeepSeek-OCR-2 had it before they excluded the encoders, and are still read;
    and as those on a part of an encoder have it."""
    with torch.device("meta"):
        model = DeepseekOCR(PRESETS["tiny-2"])
    paths, chosen = official_paths(model), choose(model, ("attention+mlp",))
    mlp, layer = (
        r"(mlp\.down_proj|mlp\.gate_proj|mlp\.up_proj)",
        r"model\.(language_model\.)?layers",
    )
    kinds = "|".join(rf"self_attn\.{kind}_proj" for kind in "koqv")
    shared = "|".join(rf"mlp\.shared_experts\.{kind}_proj" for kind in ("down", "gate", "up"))
    expression = target_modules(paths, chosen)
    assert expression == rf"{layer}\.((0)\.{mlp}|(0|1|2|3)\.({kinds})|(1|2|3)\.({shared}))"
    assert selected(paths, expression, "") == chosen


# -- PEFT itself ----------------------------------------------------------------------------------


def use_weights_of(tree: nn.Module, model: DeepseekOCR) -> None:
    """Puts the tree's (adapted or merged) linears, and its embedding, in place of a model's."""
    views = official_views(model)
    for name, parameter in tree.named_parameters():
        views[name].copy_(parameter)


ON_ENCODERS = ("encoder", "encoder-but-sam", r"re:vision_model\..*(qkv_proj|fc1)")


@pytest.mark.parametrize("targets", ["attention+mlp", "all", *ON_ENCODERS])
@torch.no_grad()
def test_peft_loads_our_adapter_and_its_merge_gives_our_logits(tmp_path, targets):
    peft = pytest.importorskip("peft")
    model = adapted(targets)
    save_adapter(model, tmp_path)
    tree = official_tree(load_file(GOLDEN / "model.safetensors"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # PEFT warns of keys that it misses or does not expect
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        loaded = peft.PeftModel.from_pretrained(tree, tmp_path)
    assert sum(hasattr(m, "lora_A") for m in loaded.modules()) == len(
        choose(DeepseekOCR.from_pretrained(GOLDEN), (targets,))
    )
    merged = loaded.merge_and_unload()
    other = DeepseekOCR.from_pretrained(GOLDEN)
    use_weights_of(merged, other)
    assert (logits(other) - logits(model)).abs().max() < 1e-4


@pytest.mark.parametrize("way", ["peft", "transformers"])
@pytest.mark.parametrize("targets", ["attention", "attention+mlp", "layers.1.self_attn.*"])
def test_transformers_class_with_our_adapter_has_our_logits_and_no_key_is_missing(
    tmp_path, targets, way
):
    """Its CLIP has linears of the same names, which an ending alone would mean as well."""
    peers, peft = (pytest.importorskip(name) for name in ("peers", "peft"))
    model = adapted(targets).eval()
    save_adapter(model, tmp_path)
    peer = peers.whole_peer(DeepseekOCR.from_pretrained(GOLDEN)).eval()
    batch, image = golden_batch("base"), 4
    assert image not in batch.input_ids
    ids = batch.input_ids.masked_fill(batch.image_mask, image)
    batch, peer.config.image_token_id = replace(batch, input_ids=ids), image
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated")
        if way == "peft":
            peer = peft.PeftModel.from_pretrained(peer, tmp_path)
        else:
            peer.load_adapter(str(tmp_path))
    found = [path for path, module in peer.named_modules() if hasattr(module, "lora_A")]
    assert len(found) == len(pairs(model)) and not any("vision" in path for path in found)
    assert difference(logits_of(model, batch), logits_of(peer, batch)) < TOLERANCE


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], r"model\.layers\..*\.(q_proj|v_proj)"])
def test_an_adapter_that_excludes_nothing_is_read_and_kept_as_it_is(tmp_path, targets):
    """As those of before have it."""
    model, other = adapted(r"re:model\.layers\..*\.[qv]_proj"), DeepseekOCR.from_pretrained(GOLDEN)
    save_adapter(model, tmp_path)
    path = tmp_path / CONFIG
    fields = json.loads(path.read_text()) | {"target_modules": targets}
    del fields["exclude_modules"]
    path.write_text(json.dumps(fields))
    load_adapter(other, tmp_path, BASE)
    assert torch.equal(logits(other), logits(model))
    save_adapter(other, tmp_path)
    again = json.loads(path.read_text())
    assert again["target_modules"] == targets and again["exclude_modules"] is None


def test_peft_computes_the_same_product_as_our_linear(tmp_path):
    peft = pytest.importorskip("peft")
    model = adapted("attention+mlp", rslora=True)
    save_adapter(model, tmp_path)
    loaded = peft.PeftModel.from_pretrained(
        official_tree(load_file(GOLDEN / "model.safetensors")), tmp_path
    )
    for path in ("model.layers.0.mlp.gate_proj", "model.layers.2.self_attn.o_proj"):
        compare_products(loaded, model, path)


def compare_products(loaded, model, path: str) -> None:
    theirs, ours = loaded.base_model.model.get_submodule(path), model.get_submodule(path)
    x = torch.randn(3, ours.base.in_features)
    assert torch.allclose(theirs(x), ours(x), atol=1e-5)


@pytest.mark.parametrize("encoder", ["vision_model", "sam_model"])
def test_an_adapter_that_peft_makes_on_an_encoder_is_read(tmp_path, encoder):
    """CLIP's qkv_proj and SAM's qkv are one linear each, in the official code as here."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    options = {"target_modules": rf".*({encoder}\..*(qkv|qkv_proj|fc2|lin1)|q_proj)"}
    config = peft.LoraConfig(r=3, lora_alpha=5, init_lora_weights=False, **options)
    tree = official_tree(load_file(GOLDEN / "model.safetensors"))
    theirs = peft.get_peft_model(tree, config)
    theirs.save_pretrained(tmp_path)
    model = DeepseekOCR.from_pretrained(GOLDEN)
    load_adapter(model, tmp_path, BASE)
    assert len([path for path in pairs(model) if encoder in path]) == sum(
        hasattr(m, "lora_A") and encoder in path for path, m in theirs.named_modules()
    )
    inner = {"vision_model": "transformer.layers.0.mlp.fc2", "sam_model": "blocks.1.attn.qkv"}
    compare_products(theirs, model, f"model.{encoder}.{inner[encoder]}")
    other = DeepseekOCR.from_pretrained(GOLDEN)
    use_weights_of(theirs.merge_and_unload(), other)
    assert (logits(other) - logits(model)).abs().max() < 1e-4


PROJECTOR = {f"model.projector.layers.{name}" for name in ("weight", "bias")}


@pytest.mark.parametrize("spelt", ["", "modules_to_save.", "modules_to_save.default."])
@pytest.mark.parametrize("excluded", [["layers.0.self_attn.q_proj", "o_proj"], r".*\.[01]\..*"])
@torch.no_grad()
def test_modules_that_peft_saves_whole_or_leaves_out_are_read(tmp_path, spelt, excluded):
    """Whatever version wrote them; and saved again they are the same adapter."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    config = peft.LoraConfig(
        r=3,
        init_lora_weights=False,
        target_modules=["q_proj", "o_proj", "lm_head"],
        exclude_modules=excluded,
        modules_to_save=["projector", "embed_tokens", "lm_head"],
    )
    tree = official_tree(load_file(GOLDEN / "model.safetensors"))
    theirs = peft.get_peft_model(tree, config)
    for name, parameter in theirs.named_parameters():
        if "modules_to_save" in name:
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    theirs.save_pretrained(tmp_path / "peft", save_embedding_layers=False)
    rename(tmp_path / "peft" / TENSORS, spelt)
    model, other, again = (DeepseekOCR.from_pretrained(GOLDEN) for _ in range(3))
    load_adapter(model, tmp_path / "peft", BASE)
    use_weights_of(theirs.merge_and_unload(), other)
    assert (logits(other) - logits(model)).abs().max() < 1e-4
    assert (logits(DeepseekOCR.from_pretrained(GOLDEN)) - logits(model)).abs().max() > 0.1
    assert set(model.adapter.beside) == PROJECTOR | {"lm_head.weight", "model.embed_tokens.weight"}
    (tmp_path / "ours").mkdir()
    save_adapter(model, tmp_path / "ours")
    load_adapter(again, tmp_path / "ours", BASE)
    assert torch.equal(logits(again), logits(model)) and again.adapter == model.adapter


def rename(path, spelt: str) -> None:
    """Writes the whole weights of an adapter under the names that older versions have."""
    tensors = load_file(path)
    saved = {n for n in tensors if ".lora_" not in n}
    assert len(saved) == 4
    named = {
        re.sub(r"(projector|embed_tokens|lm_head)\.", rf"\1.{spelt}", n) if n in saved else n: t
        for n, t in tensors.items()
    }
    save_file(named, path)
