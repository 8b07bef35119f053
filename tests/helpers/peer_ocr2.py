"""transformers' own class of DeepSeek-OCR-2, with our weights in it: a peer of the whole model.

Its names are spelled out here (`peer_names`), apart from the conversion that transformers itself
does when it reads an official checkpoint, which test_deepseek_ocr2_runs.py goes through.
"""

import re

import torch
from torch import Tensor
from transformers.models.deepseek_ocr2.configuration_deepseek_ocr2 import DeepseekOcr2Config
from transformers.models.deepseek_ocr2.modeling_deepseek_ocr2 import (
    DeepseekOcr2ForConditionalGeneration as peer_class,
)

from deepsynth_min.model.batch import Batch
from deepsynth_min.model.config import ModelConfig

_SAM, _TOWER = "model.vision_tower.sam_encoder", "model.vision_tower"
_NAMES = (  # official -> transformers; the first that fits
    (r"model\.sam_model\.blocks\.(\d+)\.norm(\d)", _SAM + r".layers.\1.layer_norm\2"),
    (r"model\.sam_model\.blocks\.(\d+)", _SAM + r".layers.\1"),
    (r"model\.sam_model\.patch_embed\.proj", _SAM + ".patch_embed.projection"),
    (r"model\.sam_model\.neck\.0", _SAM + ".neck.conv1"),
    (r"model\.sam_model\.neck\.1", _SAM + ".neck.layer_norm1"),
    (r"model\.sam_model\.neck\.2", _SAM + ".neck.conv2"),
    (r"model\.sam_model\.neck\.3", _SAM + ".neck.layer_norm2"),
    (r"model\.sam_model\.net_2", _SAM + ".proj.conv1"),
    (r"model\.sam_model\.net_3", _SAM + ".proj.conv2"),
    (r"model\.sam_model\.pos_embed", _SAM + ".pos_embed"),
    (r"model\.qwen2_model\.model\.model\.", _TOWER + ".vision_encoder."),
    (r"model\.qwen2_model\.query_(\d+)", _TOWER + r".query_\1_resolution"),
    (r"model\.projector\.layers", "model.multi_modal_projector"),
    (r"model\.view_seperator", "model.view_separator"),
    (r"model\.(embed_tokens|layers|norm)\.", r"model.language_model.\1."),
    (r"lm_head\.", "lm_head."),
)
_EXPERT = re.compile(r"(.*\.mlp\.experts)\.(\d+)\.(gate|up|down)_proj\.weight")


def _peer_name(name: str) -> str:
    for pattern, ours in _NAMES:
        if re.match(pattern, name):
            return re.sub(pattern, ours, name, count=1)
    raise AssertionError(f"{name} has no name in the peer")


def to_peer(official: dict[str, Tensor]) -> dict[str, Tensor]:
    """Official tensors (or their gradients) under the peer's names, experts stacked."""
    found, experts = {}, {}
    for name, tensor in official.items():
        if match := _EXPERT.fullmatch(name):
            experts.setdefault(match[1], {})[int(match[2]), match[3]] = tensor
        else:
            found[_peer_name(name)] = tensor
    for path, held in experts.items():
        path, count = _peer_name(path), 1 + max(number for number, _ in held)
        pairs = [torch.cat([held[e, "gate"], held[e, "up"]]) for e in range(count)]
        found[f"{path}.gate_up_proj"] = torch.stack(pairs)
        found[f"{path}.down_proj"] = torch.stack([held[e, "down"] for e in range(count)])
    return found


def peer_config(config: ModelConfig) -> DeepseekOcr2Config:
    sam, qwen, dec = config.sam, config.qwen, config.decoder

    def rope(theta: float) -> dict:
        return {"rope_type": "default", "rope_theta": theta}

    kinds = ["dense" if dec.is_dense(i) else "sparse" for i in range(dec.num_hidden_layers)]
    same = (
        *("vocab_size", "hidden_size", "intermediate_size", "moe_intermediate_size"),
        *("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "n_shared_experts"),
        *("n_routed_experts", "num_experts_per_tok", "rms_norm_eps", "max_position_embeddings"),
        *("routed_scaling_factor", "bos_token_id", "eos_token_id"),
    )
    return DeepseekOcr2Config(
        vision_config={
            "sam_config": {
                "hidden_size": sam.width,
                "output_channels": sam.neck,
                "num_hidden_layers": sam.layers,
                "num_attention_heads": sam.heads,
                "image_size": sam.image_size,
                "window_size": sam.window,
                "global_attn_indexes": list(sam.global_layers),
                "downsample_channels": list(sam.downsample),
            },
            "encoder_config": {
                "hidden_size": qwen.dim,
                "intermediate_size": qwen.mlp_dim,
                "num_hidden_layers": qwen.layers,
                "num_attention_heads": qwen.heads,
                "num_key_value_heads": qwen.key_value_heads,
                "rms_norm_eps": qwen.rms_norm_eps,
                "rope_parameters": rope(qwen.rope_theta),
            },
        },
        text_config={
            **{name: getattr(dec, name) for name in same},
            "mlp_layer_types": kinds,
            "rope_parameters": rope(dec.rope_theta),
        },
        image_token_id=IMAGE,
    )


IMAGE = 4000  # id of the image token in the batches of tests; of the narrow vocabularies


def peer_model(config: ModelConfig, official: dict[str, Tensor]) -> torch.nn.Module:
    """The peer with these weights, every one of its parameters filled."""
    peer = peer_class(peer_config(config)).eval()
    peer.load_state_dict(to_peer(official))
    return peer


def pixels(pages: Tensor) -> Tensor:
    """uint8 [N, C, h, w] -> float32 [N, 3, h, w] in -1 .. 1."""
    return ((pages.float() / 255 - 0.5) / 0.5).expand(-1, 3, -1, -1)


def peer_inputs(batch: Batch) -> dict:
    """What the peer's forward takes for a batch of ours."""
    inputs = {
        "input_ids": batch.input_ids.masked_fill(batch.image_mask, IMAGE),
        "attention_mask": batch.attention_mask.long(),
        "labels": batch.labels,
        "use_cache": False,
    }
    if len(batch.pages):
        inputs["pixel_values"] = pixels(batch.pages)
    if batch.tiles is not None:
        inputs["pixel_values_local"] = pixels(batch.tiles)
        inputs["num_local_patches"] = [w * h if w * h > 1 else 0 for w, h in batch.grids.tolist()]
    return inputs
