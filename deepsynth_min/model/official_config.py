"""The official config.json: read into a `ModelConfig`, and written from one.

In: a checkpoint directory's config.json. Out: a frozen `ModelConfig`; or of one, the file's content
as servers need it.

The one idea: a field that the official file can set and that would change the computation is either
honoured or refused, never ignored.
"""

from dataclasses import asdict
from pathlib import Path

from ..errors import UserError, read_json
from .config import ClipConfig, DecoderConfig, ModelConfig, SamConfig, TextConfig

# Fields that the official file may carry with exactly these values; any other value would change
# the computation in a way that this code does not implement.
_ONLY = {
    "use_mla": (False,),
    "q_lora_rank": (None,),
    "kv_lora_rank": (None,),
    "n_group": (1, None),
    "topk_group": (1, None),
    "topk_method": ("greedy",),
    "scoring_func": ("softmax",),
    "hidden_act": ("silu",),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "rope_scaling": (None,),
    "moe_layer_freq": (1,),
    "tie_word_embeddings": (False,),
    "qk_nope_head_dim": (0, None),
    "qk_rope_head_dim": (0, None),
    "v_head_dim": (0, None),
    "lm_head": (True,),
    "rm_head": (False,),
}


UNLIMITED = "UnlimitedOCRForCausalLM"


def _tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _text_config(section: object, where: str) -> TextConfig:
    """Raises UserError naming `where` and the field at fault."""
    limits = {"font_size": (0, 1024), "line_height": (0, 20), "margin": (-1, 16384)}
    known = (*limits, "prompt_end")
    if not isinstance(section, dict) or not section.keys() <= set(known):
        raise UserError(f"{where}: rendered_text may have {', '.join(known)}")
    # Checkpoints that have the section without it were trained before prompts were stripped.
    end = section.get("prompt_end", " " if section else "")
    if not isinstance(end, str) or end.strip():
        raise UserError(f"{where}: rendered_text.prompt_end = {end!r:.100} is not white space")
    section = {**section, "prompt_end": end}
    for name, value in ((name, section[name]) for name in limits if name in section):
        kinds = (int, float) if name == "line_height" else (int,)
        least, most = limits[name]
        if type(value) not in kinds or not least <= value <= most:
            raise UserError(
                f"{where}: rendered_text.{name} = {value!r:.100} is not a number "
                f"from {least} to {most}"
            )
    return TextConfig(**section)


def config_from_dict(official: dict, where: str = "config.json") -> ModelConfig:
    """Reads the official layout. Raises UserError naming `where` and the field at fault."""
    language = official.get("language_config")
    if not isinstance(language, dict):
        raise UserError(f"{where}: no language_config; not a DeepSeek-OCR checkpoint")
    for key, allowed in _ONLY.items():
        if key in language and language[key] not in allowed:
            shown = f"language_config.{key} = {language[key]!r:.100}"
            raise UserError(f"{where}: {shown} is not supported")
    try:
        vision = official["vision_config"]
        sam, clip = vision["width"]["sam_vit_b"], vision["width"]["clip-l-14-224"]
        sam_config = SamConfig(
            width=sam["width"],
            layers=sam["layers"],
            heads=sam["heads"],
            image_size=vision["image_size"],
            global_layers=_tuple(sam["global_attn_indexes"]),
            downsample=_tuple(sam["downsample_channels"]),
            neck=sam.get("neck_channels", SamConfig.neck),
            window=sam.get("window_size", SamConfig.window),
        )
        clip_config = ClipConfig(**{key: clip[key] for key in asdict(ClipConfig())})
    except (KeyError, TypeError, IndexError) as error:
        raise UserError(f"{where}: vision_config lacks or misstates {error}") from None
    try:
        page = official.get("candidate_resolutions", [[vision["image_size"]]])[0][0]
    except (KeyError, TypeError, IndexError):
        raise UserError(f"{where}: candidate_resolutions is no list of page sizes") from None
    known = {key: language[key] for key in asdict(DecoderConfig()) if key in language}
    known.setdefault("num_key_value_heads", known.get("num_attention_heads", 10))
    known["sliding_window"] = official.get("sliding_window") or 0  # beside language_config
    if UNLIMITED in official.get("architectures", ()) and not known["sliding_window"]:
        raise UserError(f"{where}: {UNLIMITED} without a sliding_window")
    text = _text_config(official.get("rendered_text", {}), where)
    try:
        config = ModelConfig(sam_config, clip_config, DecoderConfig(**known), page, text)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    projector = official.get("projector_config", {})
    if not isinstance(projector, dict):
        raise UserError(f"{where}: projector_config is not an object")
    expected = {
        "projector_type": "linear",
        "input_dim": config.feature_width,
        "n_embed": config.decoder.hidden_size,
    }
    for key, value in expected.items():
        if projector.get(key, value) != value:
            raise UserError(
                f"{where}: projector_config.{key} = {projector[key]!r:.100}, not {value!r}"
            )
    return config


def config_from_file(path: Path) -> ModelConfig:
    """Raises UserError naming the file."""
    official = read_json(path)
    if not isinstance(official, dict):
        raise UserError(f"{path}: not a JSON object")
    return config_from_dict(official, str(path))


def config_to_dict(config: ModelConfig) -> dict:
    """The official layout, as servers need it (model_type, architectures, nested configs)."""
    sam, clip, dec = config.sam, config.clip, config.decoder
    defaults = asdict(DecoderConfig())
    # The official file leaves these out where they have their usual value.
    usual = ("norm_topk_prob", "routed_scaling_factor", "rope_theta", "rms_norm_eps")
    shared = {k: v for k, v in asdict(dec).items() if k not in usual or v != defaults[k]}
    del shared["sliding_window"]
    shared |= {
        "kv_lora_rank": None,
        "lm_head": True,
        "n_group": 1,
        "q_lora_rank": None,
        "qk_nope_head_dim": 0,
        "qk_rope_head_dim": 0,
        "rm_head": False,
        "topk_group": 1,
        "topk_method": "greedy",
        "use_mla": False,
        "v_head_dim": 0,
    }
    sam_dict = {
        "downsample_channels": list(sam.downsample),
        "heads": sam.heads,
        "global_attn_indexes": list(sam.global_layers),
        "layers": sam.layers,
        "width": sam.width,
    }
    if (sam.neck, sam.window) != (SamConfig.neck, SamConfig.window):
        sam_dict |= {"neck_channels": sam.neck, "window_size": sam.window}
    official = {
        "_name_or_path": "deepseek-ai/DeepSeek-OCR",
        "candidate_resolutions": [[config.page_size, config.page_size]],
        "global_view_pos": "head",
        "architectures": ["DeepseekOCRForCausalLM"],
        "auto_map": {
            "AutoConfig": "modeling_deepseekocr.DeepseekOCRConfig",
            "AutoModel": "modeling_deepseekocr.DeepseekOCRForCausalLM",
        },
        "language_config": {
            "architectures": ["DeepseekV2ForCausalLM"],
            "auto_map": {
                "AutoConfig": "configuration_deepseekv2.DeepseekV2Config",
                "AutoModel": "modeling_deepseek.DeepseekV2Model",
                "AutoModelForCausalLM": "modeling_deepseek.DeepseekV2ForCausalLM",
            },
            "torch_dtype": "bfloat16",
            **shared,
        },
        "model_type": "deepseek_vl_v2",
        "projector_config": {
            "input_dim": config.feature_width,
            "model_type": "mlp_projector",
            "n_embed": dec.hidden_size,
            "projector_type": "linear",
        },
        "tile_tag": "2D",
        "torch_dtype": "bfloat16",
        "transformers_version": "4.46.3",
        "vision_config": {
            "image_size": sam.image_size,
            "mlp_ratio": 3.7362,
            "model_name": "deeplip_b_l",
            "model_type": "vision",
            "width": {"clip-l-14-224": asdict(clip), "sam_vit_b": sam_dict},
        },
        **shared,
        **({} if config.text == TextConfig() else {"rendered_text": asdict(config.text)}),
    }
    return with_attention(official, config)


def with_attention(official: dict, config: ModelConfig) -> dict:
    """A config.json's content with the sliding window and the context of `config`: with a window it
    is an Unlimited-OCR, which servers and transformers find by these names."""
    dec = config.decoder
    official["max_position_embeddings"] = dec.max_position_embeddings
    official["language_config"]["max_position_embeddings"] = dec.max_position_embeddings
    if dec.sliding_window:
        official.pop("auto_map", None)  # names the code of another attention
        official |= {"architectures": [UNLIMITED], "model_type": "unlimited_ocr"}
        official["sliding_window"] = dec.sliding_window
    return official
