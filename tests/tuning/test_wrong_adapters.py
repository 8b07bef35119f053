"""Every wrong adapter is refused, by name."""

import json
import shutil

import pytest
import torch
from golden import GOLDEN
from golden_adapters import BASE, adapted
from safetensors.torch import load_file, save_file

from deepsynth_min.errors import UserError
from deepsynth_min.model.deepseek_ocr import DeepseekOCR
from deepsynth_min.tuning.adapter import (
    CONFIG,
    TENSORS,
    base_digest,
    load_adapter,
    read_config,
    save_adapter,
)
from deepsynth_min.tuning.lora import Base, pairs


def edited(tmp_path, **fields):
    shutil.copytree(GOLDEN / "adapter", tmp_path / "edited")
    path = tmp_path / "edited" / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    return tmp_path / "edited"


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"r": 8}, r"wrongly shaped.*is \[4, 64\], not \[8, 64\]"),
        ({"use_dora": True}, "use_dora = True is not supported"),
        ({"bias": "all"}, "bias = 'all' is not supported"),
        ({"modules_to_save": ["lm_head"]}, "1 missing: base_model.model.lm_head.weight"),
        ({"modules_to_save": ["score"]}, "modules_to_save: the model has no 'score'"),
        ({"modules_to_save": ["experts"]}, r"'experts': .*experts.0.gate_proj.weight cannot be"),
        ({"modules_to_save": ["layers.0.self_attn"]}, "target_modules does not select"),
        ({"modules_to_save": "lm_head"}, "modules_to_save = 'lm_head' makes no sense"),
        ({"exclude_modules": ["q_proj"]}, "target_modules does not select .* e.g. .*q_proj"),
        ({"exclude_modules": r".*\.0\..*"}, "target_modules does not select"),
        ({"exclude_modules": 3}, "exclude_modules = 3 makes no sense"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights"),
        ({"r": 0}, "r = 0 makes no sense"),
        ({"lora_alpha": "8"}, "lora_alpha = '8' makes no sense"),
        ({"target_modules": ["q_proj"]}, "target_modules does not select"),
        ({"target_modules": "("}, "no regular expression"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused_by_name(tmp_path, fields, message):
    model = DeepseekOCR.from_pretrained(GOLDEN)
    with pytest.raises(UserError, match=message):
        load_adapter(model, edited(tmp_path, **fields), BASE)
    assert model.adapter is None and not pairs(model)


def damaged(tmp_path, change):
    directory = edited(tmp_path)
    tensors = load_file(directory / TENSORS)
    change(tensors)
    save_file(tensors, directory / TENSORS)
    return directory


def _wide(tensors):
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    tensors[name] = torch.zeros(4, 128)


def _foreign(tensors):
    tensors["base_model.model.model.sam_model.patch_embed.proj.lora_A.weight"] = torch.zeros(4, 8)


def _no_expert(tensors):
    for name in [name for name in tensors if ".1.mlp.experts.5.up_proj" in name]:
        del tensors[name]


def _no_b(tensors):
    del tensors["base_model.model.model.layers.2.self_attn.v_proj.lora_B.weight"]


@pytest.mark.parametrize(
    "change, message",
    [
        (_wide, r"wrongly shaped: .*q_proj.lora_A.weight is \[4, 128\]"),
        (_foreign, "sam_model.patch_embed.proj is no linear of decoder or encoder"),
        (_no_expert, "23 of the 24 linears of model.layers.1.mlp.experts"),
        (_no_b, "1 missing: .*v_proj.lora_B.weight"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_by_name(tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        load_adapter(DeepseekOCR.from_pretrained(GOLDEN), damaged(tmp_path, change), BASE)


def test_an_adapter_over_another_base_is_refused(tmp_path):
    save_adapter(adapted(), tmp_path)
    base = tmp_path / "other"
    base.mkdir()
    shutil.copyfile(GOLDEN / "config.json", base / "config.json")
    tensors = load_file(GOLDEN / "model.safetensors")
    tensors["model.layers.2.self_attn.q_proj.weight"][0] += 1
    save_file(tensors, base / "model.safetensors")
    with pytest.raises(UserError, match="trained over another base model"):
        load_adapter(
            DeepseekOCR.from_pretrained(base), tmp_path, Base("other", None, base_digest(base))
        )


def test_the_digest_of_a_base_is_the_same_in_bf16(tmp_path):
    tensors = load_file(GOLDEN / "model.safetensors")
    save_file({n: t.bfloat16() for n, t in tensors.items()}, tmp_path / "model.safetensors")
    assert base_digest(tmp_path) == BASE.digest


@pytest.mark.parametrize("size", [0, 4, 3000, -1])
def test_a_truncated_adapter_file_is_a_clear_error(tmp_path, size):
    directory = edited(tmp_path)
    data = (directory / TENSORS).read_bytes()
    (directory / TENSORS).write_bytes(data[:size])
    with pytest.raises(UserError, match="not a safetensors file"):
        load_adapter(DeepseekOCR.from_pretrained(GOLDEN), directory, BASE)


def test_a_directory_without_an_adapter_is_a_clear_error(tmp_path):
    with pytest.raises(UserError, match="no adapter_config.json in it"):
        read_config(tmp_path)
