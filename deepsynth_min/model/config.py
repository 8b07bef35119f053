"""The shape of a model: dataclasses that read and write the official config.json.

In: a checkpoint directory's config.json, or a preset's name. Out: a frozen `ModelConfig`; every
module of the model is built from it and from nothing else.

The one idea: the preset `deepseek-ocr`, the preset `tiny` and any checkpoint are the same kind of
thing. A field that the official file can set and that would change the computation is either
honoured or refused, never ignored.

The letters in the shape comments of the whole package are explained in deepsynth_min/README.md.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path

from ..errors import UserError, read_json
from .config_limits import check_numbers


@dataclass(frozen=True)
class SamConfig:
    """SAM ViT-B with a neck and two strided convolutions (Kirillov et al. 2023)."""

    width: int = 768
    layers: int = 12
    heads: int = 12
    patch: int = 16
    image_size: int = 1024  # pixels per side that the position table was made for
    window: int = 14  # patches per side of a local attention window
    global_layers: tuple[int, ...] = (2, 5, 8, 11)  # these layers attend over the whole page
    neck: int = 256
    downsample: tuple[int, ...] = (512, 1024)  # channels of the two stride-2 convolutions


@dataclass(frozen=True)
class ClipConfig:
    """CLIP-L, fed with SAM's features in place of its own patch embedding (Radford et al. 2021)."""

    width: int = 1024
    layers: int = 24
    heads: int = 16
    image_size: int = 224
    patch_size: int = 14


@dataclass(frozen=True)
class DecoderConfig:
    """DeepSeek-V2-style mixture of experts with plain multi-head attention; official field
    names."""

    vocab_size: int = 129280
    hidden_size: int = 1280
    intermediate_size: int = 6848  # the dense MLP of the first layers
    moe_intermediate_size: int = 896  # one routed expert
    num_hidden_layers: int = 12
    num_attention_heads: int = 10
    num_key_value_heads: int = 10
    n_shared_experts: int = 2  # fused into one MLP of n * moe_intermediate_size
    n_routed_experts: int = 64
    num_experts_per_tok: int = 6
    first_k_dense_replace: int = 1  # layers below this index are dense
    norm_topk_prob: bool = False
    routed_scaling_factor: float = 1.0
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-6
    max_position_embeddings: int = 8192
    sliding_window: int = 0  # tokens of its answer that a token sees; 0: all (attention.py)
    bos_token_id: int = 0
    eos_token_id: int = 1

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    def is_dense(self, layer: int) -> bool:
        return layer < self.first_k_dense_replace


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


@dataclass(frozen=True)
class TextConfig:
    """How text is drawn and asked about for a model that learned it in one way only; 0 and -1: as
    for any other. Our own section of config.json, `rendered_text`; the official model has none."""

    font_size: int = 0  # px
    line_height: float = 0.0  # font sizes
    margin: int = -1  # px
    prompt_end: str = ""  # after the instruction, of which the official code strips any space

    @classmethod
    def from_section(cls, section: object, where: str) -> "TextConfig":
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
        return cls(**section)


@dataclass(frozen=True)
class ModelConfig:
    """One DeepSeek-OCR: encoder, projector, decoder. `page_size` is its native page side in px."""

    sam: SamConfig = field(default_factory=SamConfig)
    clip: ClipConfig = field(default_factory=ClipConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    page_size: int = 1024
    text: TextConfig = field(default_factory=TextConfig)

    def __post_init__(self):
        sam, clip, dec = self.sam, self.clip, self.decoder
        width = "vision_config.width."
        sections = {
            f"{width}sam_vit_b.": sam,
            f"{width}clip-l-14-224.": clip,
            "language_config.": dec,
            "": self,
        }
        for name, section in sections.items():
            check_numbers(section, name)

        def require(holds: bool, claim: str) -> None:
            if not holds:
                raise UserError(claim)

        def whole(number: int, of: int, claim: str) -> None:
            require(number % of == 0, claim)

        whole(sam.image_size, 64, "vision_config.image_size must be a multiple of 64")
        claim = "clip-l-14-224.image_size must be a multiple of its patch_size"
        whole(clip.image_size, clip.patch_size, claim)
        whole(sam.width, sam.heads, "sam_vit_b.width must be a multiple of its heads")
        whole(clip.width, clip.heads, "clip-l-14-224.width must be a multiple of its heads")
        require(len(sam.downsample) == 2, "sam_vit_b.downsample_channels must be two widths")
        claim = "sam_vit_b.downsample_channels must end in the width of clip-l-14-224"
        require(sam.downsample[-1] == clip.width, claim)
        layers = range(sam.layers)
        claim = "sam_vit_b.global_attn_indexes must be layer indices"
        require(all(i in layers for i in sam.global_layers), claim)
        heads, kv_heads = dec.num_attention_heads, dec.num_key_value_heads
        whole(dec.hidden_size, heads, "hidden_size must be a multiple of num_attention_heads")
        whole(dec.head_dim, 2, "head size must be even (rotary attention)")
        whole(heads, kv_heads, "num_attention_heads must be a multiple of num_key_value_heads")
        claim = "num_experts_per_tok must lie in 1..n_routed_experts"
        require(1 <= dec.num_experts_per_tok <= dec.n_routed_experts, claim)
        claim = "candidate_resolutions: the page size must be a multiple of 64"
        whole(self.page_size, 64, claim)

    @property
    def feature_width(self) -> int:
        """Width of a page token before the projector: CLIP's and SAM's, side by side."""
        return self.clip.width + self.sam.downsample[-1]

    @classmethod
    def from_dict(cls, official: dict, where: str = "config.json") -> "ModelConfig":
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
        text = TextConfig.from_section(official.get("rendered_text", {}), where)
        try:
            config = cls(sam_config, clip_config, DecoderConfig(**known), page, text)
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

    @classmethod
    def from_file(cls, path: Path) -> "ModelConfig":
        """Raises UserError naming the file."""
        official = read_json(path)
        if not isinstance(official, dict):
            raise UserError(f"{path}: not a JSON object")
        return cls.from_dict(official, str(path))

    def to_dict(self) -> dict:
        """The official layout, as servers need it (model_type, architectures, nested configs)."""
        sam, clip, dec = self.sam, self.clip, self.decoder
        defaults = asdict(DecoderConfig())
        # The official file leaves these out where they have their usual value.
        usual = ("norm_topk_prob", "routed_scaling_factor", "rope_theta", "rms_norm_eps")
        shared = {k: v for k, v in asdict(dec).items() if k not in usual or v != defaults[k]}
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
        return {
            "_name_or_path": "deepseek-ai/DeepSeek-OCR",
            "candidate_resolutions": [[self.page_size, self.page_size]],
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
                "input_dim": self.feature_width,
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
            **({} if self.text == TextConfig() else {"rendered_text": asdict(self.text)}),
        }
