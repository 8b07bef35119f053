"""The official config.json: read into a `ModelConfig`, and written from one.

In: a checkpoint directory's config.json. Out: a frozen `ModelConfig`; or of one, the file's content
as servers need it.

The one idea: a field that the official file can set and that would change the computation is either
honoured or refused, never ignored. What is no model of the family is refused by its own name.
"""

from dataclasses import asdict
from pathlib import Path

from ...config_file import is_run
from ...errors import UserError, read_json
from .config import ClipConfig, DecoderConfig, ModelConfig, QwenConfig, SamConfig, TextConfig

FAMILY = "DeepSeek-OCR, Unlimited-OCR and DeepSeek-OCR-2"
CLIP, QWEN = "clip-l-14-224", "qwen2-0-5b"  # sections of vision_config.width
UNLIMITED = "UnlimitedOCRForCausalLM"
# architectures -> what reads SAM's features
_READERS = {"DeepseekOCRForCausalLM": CLIP, UNLIMITED: CLIP, "DeepseekOCR2ForCausalLM": QWEN}
# DeepSeek-OCR-2's official file says that SAM ends in 1024 channels, as DeepSeek-OCR's does. Its
# code and its tensors have 896, the width of what reads them.
_MISSTATED_CHANNELS = 1024

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


def _tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _downsample(channels: object, reader: str, section: dict) -> object:
    """The channels of SAM's two strided convolutions; see _MISSTATED_CHANNELS."""
    channels = _tuple(channels)
    if reader == QWEN and isinstance(channels, tuple) and channels[1:] == (_MISSTATED_CHANNELS,):
        return (channels[0], section["dim"])
    return channels


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


def _architecture(official: dict) -> object:
    named = official.get("architectures")
    return named[0] if isinstance(named, list) and named else None


def _check_kind(official: dict, where: str) -> None:
    """Raises UserError, by the name that it has, for a model that is none of the family."""
    architecture, kind = _architecture(official), official.get("model_type")
    ours = architecture in (None, *_READERS)
    if ours and isinstance(official.get("language_config"), dict):
        return
    if ours and (architecture or not kind):
        raise UserError(f"{where}: no language_config; not a checkpoint of {FAMILY}")
    name = f"a {kind!s:.100} model" if kind else "a model"
    name += f" ({architecture!s:.100})" if architecture else ""
    raise UserError(f"{where}: {name}; this trains {FAMILY}, in their official layout")


def _reader(official: dict, where: str) -> tuple[str, dict]:
    """(name, content) of the section that says what reads SAM's features. Raises UserError."""
    sections, architecture = official["vision_config"]["width"], _architecture(official)
    found = [name for name in (CLIP, QWEN) if name in sections]
    if len(found) != 1:
        raise UserError(f"{where}: vision_config.width must have one of {CLIP} and {QWEN}")
    if architecture and _READERS[architecture] != found[0]:
        raise UserError(f"{where}: {architecture} has no {found[0]}, as vision_config.width says")
    return found[0], sections[found[0]]


def _qwen_config(section: dict, where: str) -> QwenConfig:
    """Raises UserError for a field that would not be honoured."""
    known = asdict(QwenConfig())
    for key in section:
        if key not in known:
            raise UserError(f"{where}: vision_config.width.{QWEN}.{key!s:.100} is not supported")
    return QwenConfig(**{"dim": section["dim"]} | {k: _tuple(v) for k, v in section.items()})


def config_from_dict(official: dict, where: str = "config.json") -> ModelConfig:
    """Reads the official layout. Raises UserError naming `where` and the field at fault."""
    _check_kind(official, where)
    language = official["language_config"]
    for key, allowed in _ONLY.items():
        if key in language and language[key] not in allowed:
            shown = f"language_config.{key} = {language[key]!r:.100}"
            raise UserError(f"{where}: {shown} is not supported")
    try:
        vision = official["vision_config"]
        sam = vision["width"]["sam_vit_b"]
        name, section = _reader(official, where)
        sam_config = SamConfig(
            width=sam["width"],
            layers=sam["layers"],
            heads=sam["heads"],
            image_size=vision["image_size"],
            global_layers=_tuple(sam["global_attn_indexes"]),
            downsample=_downsample(sam["downsample_channels"], name, section),
            neck=sam.get("neck_channels", SamConfig.neck),
            window=sam.get("window_size", SamConfig.window),
        )
        clip = qwen = None
        if name == QWEN:
            qwen = _qwen_config(section, where)
        else:
            clip = ClipConfig(**{key: section[key] for key in asdict(ClipConfig())})
    except (KeyError, TypeError, IndexError) as error:
        raise UserError(f"{where}: vision_config lacks or misstates {error}") from None
    try:
        page = official.get("candidate_resolutions", [[vision["image_size"]]])[0][0]
    except (KeyError, TypeError, IndexError):
        raise UserError(f"{where}: candidate_resolutions is no list of page sizes") from None
    known = {key: language[key] for key in asdict(DecoderConfig()) if key in language}
    known.setdefault("num_key_value_heads", known.get("num_attention_heads", 10))
    known["sliding_window"] = official.get("sliding_window") or 0  # beside language_config
    if _architecture(official) == UNLIMITED and not known["sliding_window"]:
        raise UserError(f"{where}: {UNLIMITED} without a sliding_window")
    text = _text_config(official.get("rendered_text", {}), where)
    try:
        config = ModelConfig(sam_config, clip, DecoderConfig(**known), page, text, qwen)
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


def _check_is_model(directory: Path) -> None:
    """Raises UserError for what is easily taken for a model: an adapter, a run directory."""
    if (directory / "config.json").exists():
        return
    if (directory / "adapter_config.json").is_file():
        raise UserError(f"{directory}: an adapter, not a model; give its base, and it as --adapter")
    if is_run(directory):
        raise UserError(
            f"{directory}: a run, not a model; its models are in {directory}/checkpoints"
        )


def config_from_file(path: Path, where: str = "") -> ModelConfig:
    """Raises UserError naming the file, or `where` it came from."""
    _check_is_model(path.parent)
    official = read_json(path)
    if not isinstance(official, dict):
        raise UserError(f"{where or path}: not a JSON object")
    return config_from_dict(official, where or str(path))


def _reader_to_dict(config: ModelConfig) -> dict:
    """The section of what reads SAM's features; of Qwen2's, what the official code fixes is left
    out."""
    if config.qwen is None:
        return {CLIP: asdict(config.clip)}
    official, section = asdict(QwenConfig()), asdict(config.qwen)
    own = {key: value for key, value in section.items() if value != official[key]}
    return {QWEN: {"dim": config.qwen.dim} | own}


def config_to_dict(config: ModelConfig) -> dict:
    """The official layout, as servers need it (model_type, architectures, nested configs)."""
    sam, dec = config.sam, config.decoder
    name, number = ("DeepseekOCR", "") if config.qwen is None else ("DeepseekOCR2", "-2")
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
    downsample = list(sam.downsample)
    if config.qwen is not None and config.qwen.dim == QwenConfig.dim:
        downsample[-1] = _MISSTATED_CHANNELS  # as the official file has it
    sam_dict = {
        "downsample_channels": downsample,
        "heads": sam.heads,
        "global_attn_indexes": list(sam.global_layers),
        "layers": sam.layers,
        "width": sam.width,
    }
    if (sam.neck, sam.window) != (SamConfig.neck, SamConfig.window):
        sam_dict |= {"neck_channels": sam.neck, "window_size": sam.window}
    official = {
        "_name_or_path": f"deepseek-ai/DeepSeek-OCR{number}",
        "candidate_resolutions": [[config.page_size, config.page_size]],
        "global_view_pos": "head",
        "architectures": [f"{name}ForCausalLM"],
        "auto_map": {
            "AutoConfig": f"modeling_{name.lower()}.{name}Config",
            "AutoModel": f"modeling_{name.lower()}.{name}ForCausalLM",
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
            "model_name": "deeplip_b_l" if config.qwen is None else "deepencoderv2",
            "model_type": "vision",
            "width": {**_reader_to_dict(config), "sam_vit_b": sam_dict},
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
