"""A validator of exported checkpoints, written from the published format and from nothing of ours.

`problems(directory, base)` lists what a server or loader of DeepSeek-OCR would stumble over. Names
are spelled out here part by part; test_export.py proves the list on the official model's own.
"""

import json
import struct
from pathlib import Path


def read_header(path: Path) -> dict:
    """The header of a safetensors file: its length in 8 bytes, then JSON."""
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        return json.loads(file.read(length))


def _linear(name: str, outer: int, inner: int) -> dict:
    return {f"{name}.weight": [outer, inner], f"{name}.bias": [outer]}


def _norm(name: str, width: int) -> dict:
    return {f"{name}.weight": [width], f"{name}.bias": [width]}


def _sam(vision: dict) -> dict:
    sam, p = vision["width"]["sam_vit_b"], "model.sam_model"
    width, side, neck = sam["width"], vision["image_size"] // 16, sam.get("neck_channels", 256)
    first, second = sam["downsample_channels"]
    second = vision["width"].get("qwen2-0-5b", {"dim": second})["dim"]  # whatever the file says
    shapes = {
        f"{p}.pos_embed": [1, side, side, width],
        f"{p}.patch_embed.proj.weight": [width, 3, 16, 16],
        f"{p}.patch_embed.proj.bias": [width],
        f"{p}.neck.0.weight": [neck, width, 1, 1],
        f"{p}.neck.2.weight": [neck, neck, 3, 3],
        **_norm(f"{p}.neck.1", neck),
        **_norm(f"{p}.neck.3", neck),
        f"{p}.net_2.weight": [first, neck, 3, 3],
        f"{p}.net_3.weight": [second, first, 3, 3],
    }
    for i in range(sam["layers"]):
        block = f"{p}.blocks.{i}"
        reach = side if i in sam["global_attn_indexes"] else sam.get("window_size", 14)
        table = [2 * reach - 1, width // sam["heads"]]
        shapes |= {f"{block}.attn.rel_pos_h": table, f"{block}.attn.rel_pos_w": table}
        shapes |= _linear(f"{block}.attn.qkv", 3 * width, width)
        shapes |= _linear(f"{block}.attn.proj", width, width)
        shapes |= _linear(f"{block}.mlp.lin1", 4 * width, width)
        shapes |= _linear(f"{block}.mlp.lin2", width, 4 * width)
        shapes |= _norm(f"{block}.norm1", width) | _norm(f"{block}.norm2", width)
    return shapes


def _clip(vision: dict) -> dict:
    clip, p = vision["width"]["clip-l-14-224"], "model.vision_model"
    width, patch = clip["width"], clip["patch_size"]
    places = (clip["image_size"] // patch) ** 2 + 1
    shapes = {
        f"{p}.embeddings.class_embedding": [width],
        f"{p}.embeddings.patch_embedding.weight": [width, 3, patch, patch],
        f"{p}.embeddings.position_embedding.weight": [places, width],
        **_norm(f"{p}.pre_layrnorm", width),
    }
    for i in range(clip["layers"]):
        layer = f"{p}.transformer.layers.{i}"
        shapes |= _linear(f"{layer}.self_attn.qkv_proj", 3 * width, width)
        shapes |= _linear(f"{layer}.self_attn.out_proj", width, width)
        shapes |= _linear(f"{layer}.mlp.fc1", 4 * width, width)
        shapes |= _linear(f"{layer}.mlp.fc2", width, 4 * width)
        shapes |= _norm(f"{layer}.layer_norm1", width) | _norm(f"{layer}.layer_norm2", width)
    return shapes


def _qwen(vision: dict) -> dict:
    """DeepSeek-OCR-2; the official file gives `dim` alone."""
    qwen, p = vision["width"]["qwen2-0-5b"], "model.qwen2_model"
    width, inner, heads = qwen["dim"], qwen.get("mlp_dim", 4864), qwen.get("heads", 14)
    narrow = width // heads * qwen.get("key_value_heads", 2)
    sides = qwen.get("page_sides", [768, 1024])
    shapes = {f"{p}.query_{side}.weight": [(side // 64) ** 2, width] for side in sides}
    shapes[f"{p}.model.model.norm.weight"] = [width]
    for i in range(qwen.get("layers", 24)):
        layer = f"{p}.model.model.layers.{i}"
        shapes |= _linear(f"{layer}.self_attn.q_proj", width, width)
        shapes |= _linear(f"{layer}.self_attn.k_proj", narrow, width)
        shapes |= _linear(f"{layer}.self_attn.v_proj", narrow, width)
        shapes[f"{layer}.self_attn.o_proj.weight"] = [width, width]
        shapes |= _mlp(f"{layer}.mlp", width, inner)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{layer}.{norm}.weight"] = [width]
    return shapes


def _mlp(name: str, width: int, inner: int) -> dict:
    return {
        f"{name}.gate_proj.weight": [inner, width],
        f"{name}.up_proj.weight": [inner, width],
        f"{name}.down_proj.weight": [width, inner],
    }


def official_shapes(config: dict) -> dict:
    """Tensor name -> shape, for a config.json."""
    c, vision = config["language_config"], config["vision_config"]
    width, features = c["hidden_size"], config["projector_config"]["input_dim"]
    second = "qwen2-0-5b" in vision["width"]
    rows = {} if second else {"model.image_newline": [width]}
    shapes = {
        **_sam(vision),
        **(_qwen(vision) if second else _clip(vision)),
        **_linear("model.projector.layers", width, features),
        **rows,
        "model.view_seperator": [width],
        "model.embed_tokens.weight": [c["vocab_size"], width],
        "model.norm.weight": [width],
        "lm_head.weight": [c["vocab_size"], width],
    }
    for i in range(c["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        for name in "qkvo":
            shapes[f"{layer}.self_attn.{name}_proj.weight"] = [width, width]
        shapes[f"{layer}.input_layernorm.weight"] = [width]
        shapes[f"{layer}.post_attention_layernorm.weight"] = [width]
        if i < c["first_k_dense_replace"]:
            shapes |= _mlp(f"{layer}.mlp", width, c["intermediate_size"])
            continue
        one = c["moe_intermediate_size"]
        shapes[f"{layer}.mlp.gate.weight"] = [c["n_routed_experts"], width]
        shapes |= _mlp(f"{layer}.mlp.shared_experts", width, c["n_shared_experts"] * one)
        for e in range(c["n_routed_experts"]):
            shapes |= _mlp(f"{layer}.mlp.experts.{e}", width, one)
    return shapes


def _config_problems(config: dict) -> list[str]:
    widths = config.get("vision_config", {}).get("width", {})
    second = "2" if "qwen2-0-5b" in widths else ""
    wanted = {
        "model_type": "deepseek_vl_v2",
        "architectures": [f"DeepseekOCR{second}ForCausalLM"],
        "tile_tag": "2D",
    }
    wrong = [name for name, value in wanted.items() if config.get(name) != value]
    found = [f"config.json: {name} = {config.get(name)!r}" for name in wrong]
    for part in ("language_config", "vision_config", "projector_config"):
        if not isinstance(config.get(part), dict):
            found.append(f"config.json: no {part}")
    for name in ("qk_nope_head_dim", "qk_rope_head_dim"):
        if config.get("language_config", {}).get(name) != 0:
            found.append(f"config.json: {name} is not 0")
    return found


def problems(directory: Path, base: Path) -> list[str]:
    """What is wrong with an exported checkpoint; `base` is where its other files came from."""
    config = json.loads((directory / "config.json").read_text())
    if found := _config_problems(config):
        return found
    for file in sorted(base.iterdir()):
        other = file.suffix in (".json", ".txt", ".jinja") and "safetensors" not in file.name
        if other and not (directory / file.name).exists():
            found.append(f"{file.name} is missing")
        elif other and (directory / file.name).read_bytes() != file.read_bytes():
            found.append(f"{file.name} is not the base's")
    index = json.loads((directory / "model.safetensors.index.json").read_text())
    expected, held, total = official_shapes(config), {}, 0
    for path in sorted(directory.glob("*.safetensors")):
        for name, entry in read_header(path).items():
            if name == "__metadata__":
                continue
            if name in held:
                found.append(f"{name} is in two files")
            held[name] = path.name
            start, end = entry["data_offsets"]
            total += end - start
            if name not in expected:
                found.append(f"{name} is no official tensor")
            elif entry["shape"] != expected[name]:
                found.append(f"{name} has shape {entry['shape']}")
            if entry["dtype"] != "BF16":
                found.append(f"{name} is {entry['dtype']}")
    found += [f"{name} is missing" for name in expected if name not in held]
    if index["weight_map"] != held:
        found.append("the index does not say where the tensors are")
    if index["metadata"]["total_size"] != total:
        found.append(f"the index says {index['metadata']['total_size']} bytes, there are {total}")
    return found
