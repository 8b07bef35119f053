"""The shape of a model, as dataclasses; official.py reads and writes them as config.json.

In: a checkpoint's config.json, or a preset's name. Out: a frozen `ModelConfig`; every module of the
model is built from it and from nothing else.

The one idea: the preset `deepseek-ocr`, the preset `tiny` and any checkpoint are the same kind of
thing.

The letters in the shape comments of the whole package are explained in deepsynth_min/README.md.
"""

from dataclasses import dataclass, field, replace

from ...errors import UserError
from ...pages.modes import PageFormat
from .limits import check_numbers


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
class QwenConfig:
    """Qwen2-0.5B's decoder and learned queries, in CLIP's place (DeepSeek-OCR-2). The official file
    gives `dim` alone; the rest is fixed in the official code, and of ours may stand beside it."""

    dim: int = 896
    layers: int = 24
    heads: int = 14
    key_value_heads: int = 2
    mlp_dim: int = 4864
    rope_theta: float = 1e6
    rms_norm_eps: float = 1e-6
    page_sides: tuple[int, ...] = (768, 1024)  # px, of tiles and of pages: each has its queries


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


@dataclass(frozen=True)
class TextConfig:
    """How text is drawn and asked about for a model that learned it in one way only; 0 and -1: as
    for any other. Our own section of config.json, `rendered_text`; the official model has none."""

    font_size: int = 0  # px
    line_height: float = 0.0  # font sizes
    margin: int = -1  # px
    prompt_end: str = ""  # after the instruction, of which the official code strips any space


@dataclass(frozen=True)
class ModelConfig:
    """One model of the family: encoder, projector, decoder. SAM's features are read by `clip`
    (DeepSeek-OCR) or by `qwen` (DeepSeek-OCR-2). `page_size` is its native page side in px."""

    sam: SamConfig = field(default_factory=SamConfig)
    clip: ClipConfig | None = field(default_factory=ClipConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    page_size: int = 1024
    text: TextConfig = field(default_factory=TextConfig)
    qwen: QwenConfig | None = None

    def __post_init__(self):
        sam, dec = self.sam, self.decoder
        assert (self.clip is None) != (self.qwen is None), "SAM's features have one reader"
        reader, name = (self.clip, "clip-l-14-224") if self.clip else (self.qwen, "qwen2-0-5b")
        check_numbers(reader, f"vision_config.width.{name}.")
        check_numbers(sam, "vision_config.width.sam_vit_b.")
        check_numbers(dec, "language_config.")
        check_numbers(self, "")
        _multiple(sam.image_size, 64, "vision_config.image_size must be a multiple of 64")
        _multiple(sam.width, sam.heads, "sam_vit_b.width must be a multiple of its heads")
        _require(len(sam.downsample) == 2, "sam_vit_b.downsample_channels must be two widths")
        layers = range(sam.layers)
        claim = "sam_vit_b.global_attn_indexes must be layer indices"
        _require(all(i in layers for i in sam.global_layers), claim)
        heads, kv_heads = dec.num_attention_heads, dec.num_key_value_heads
        _multiple(dec.hidden_size, heads, "hidden_size must be a multiple of num_attention_heads")
        _multiple(dec.head_dim, 2, "head size must be even (rotary attention)")
        _multiple(heads, kv_heads, "num_attention_heads must be a multiple of num_key_value_heads")
        claim = "num_experts_per_tok must lie in 1..n_routed_experts"
        _require(1 <= dec.num_experts_per_tok <= dec.n_routed_experts, claim)
        claim = "candidate_resolutions: the page size must be a multiple of 64"
        _multiple(self.page_size, 64, claim)
        _check_clip(self) if self.qwen is None else _check_qwen(self)

    def with_attention(self, window: int = 0, context: int = 0) -> "ModelConfig":
        """With another sliding window, or another number of tokens at most; 0: as it is."""
        changes = {"sliding_window": window, "max_position_embeddings": context}
        changes = {name: value for name, value in changes.items() if value}
        return replace(self, decoder=replace(self.decoder, **changes))

    @property
    def family(self) -> str:
        """What a model of this kind is called."""
        if self.qwen is not None:
            return "DeepSeek-OCR-2"
        return "Unlimited-OCR" if self.decoder.sliding_window else "DeepSeek-OCR"

    @property
    def feature_width(self) -> int:
        """Width of a page token before the projector: CLIP's and SAM's, side by side, or that of a
        query's output."""
        if self.qwen is not None:
            return self.qwen.dim
        return self.clip.width + self.sam.downsample[-1]

    @property
    def page_format(self) -> PageFormat:
        """Which pages it reads, and how they become tokens."""
        if self.qwen is None and self.decoder.sliding_window:  # Unlimited-OCR
            return PageFormat(self.page_size, served_tiles=32, most_tiles=32)
        if self.qwen is None:
            return PageFormat(self.page_size)
        tile, page = self.qwen.page_sides
        return PageFormat(
            native=self.page_size,
            sides=(tile, page),
            tile=tile,
            gundam=page,
            most_tiles=6,
            newlines=False,
            stretched_up_to=tile,
        )


def _require(holds: bool, claim: str) -> None:
    if not holds:
        raise UserError(claim)


def _multiple(number: int, of: int, claim: str) -> None:
    _require(number % of == 0, claim)


def _check_clip(config: ModelConfig) -> None:
    clip = config.clip
    claim = "clip-l-14-224.image_size must be a multiple of its patch_size"
    _multiple(clip.image_size, clip.patch_size, claim)
    _multiple(clip.width, clip.heads, "clip-l-14-224.width must be a multiple of its heads")
    claim = "sam_vit_b.downsample_channels must end in the width of clip-l-14-224"
    _require(config.sam.downsample[-1] == clip.width, claim)


def _check_qwen(config: ModelConfig) -> None:
    qwen, name = config.qwen, "qwen2-0-5b"
    _multiple(qwen.dim, qwen.heads, f"{name}.dim must be a multiple of its heads")
    _multiple(qwen.dim // qwen.heads, 2, f"{name}: head size must be even (rotary attention)")
    claim = f"{name}.heads must be a multiple of its key_value_heads"
    _multiple(qwen.heads, qwen.key_value_heads, claim)
    claim = f"sam_vit_b.downsample_channels must end in the dim of {name}"
    _require(config.sam.downsample[-1] == qwen.dim, claim)
    sides = qwen.page_sides
    ascending = len(sides) == 2 and sides[0] < sides[1] and not any(side % 64 for side in sides)
    _require(ascending, f"{name}.page_sides must be two multiples of 64, the smaller one first")
    claim = f"candidate_resolutions: {config.page_size} px, but {name} has queries for {sides}"
    _require(config.page_size in sides, claim)
    claim = f"sliding_window: a model with {name} has none (Unlimited-OCR has, with clip-l-14-224)"
    _require(not config.decoder.sliding_window, claim)
