"""Shapes of models that have a name: four to start from random weights, one that comes trained.

In: nothing. Out: a ModelConfig by name.

The one idea: `--model NAME` is a preset, and its weights are random, unless it is `tiny-reader`,
whose weights are in the package (`find_checkpoint`) and whose shape here is what its recipe
builds.
"""

import os
from pathlib import Path

from ...errors import UserError
from ...files.download import fetch
from ...settings import ModelSettings
from .config import ClipConfig, DecoderConfig, ModelConfig, QwenConfig, SamConfig, TextConfig
from .official import config_from_file

# The name of the model that comes with the package: it learned to read from nothing on a CPU,
# letter by letter (tiny_reader/). Its vocabulary is that of tokenizer.letter_tokenizer; no more
# than 8 MB in bf16. A line of text is drawn in each row of visual tokens, five letters or so in
# each.
TINY_READER = "tiny-reader"
TINY_READER_CONFIG = ModelConfig(
    sam=SamConfig(
        width=64,
        layers=2,
        heads=4,
        image_size=256,
        window=4,
        global_layers=(),
        neck=64,
        downsample=(64, 176),
    ),
    clip=ClipConfig(width=176, layers=1, heads=4, image_size=28, patch_size=7),
    decoder=DecoderConfig(
        vocab_size=370,
        hidden_size=192,
        intermediate_size=512,
        moe_intermediate_size=96,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=6,
        n_routed_experts=8,
        num_experts_per_tok=2,
        max_position_embeddings=2048,
    ),
    page_size=256,
    text=TextConfig(font_size=24, line_height=2.667, margin=4, prompt_end=" "),
)

# The decoder of the miniatures; its vocabulary is that of the embedded tokenizer.
_SMALL_DECODER = DecoderConfig(
    vocab_size=4096,
    hidden_size=192,
    intermediate_size=512,
    moe_intermediate_size=96,
    num_hidden_layers=4,
    num_attention_heads=6,
    num_key_value_heads=6,
    n_routed_experts=16,
    num_experts_per_tok=4,
    max_position_embeddings=2048,
)
_SMALL_SAM = SamConfig(
    width=96,
    layers=4,
    heads=4,
    image_size=256,
    window=6,
    global_layers=(1, 3),
    neck=64,
    downsample=(96, 128),
)

PRESETS = {
    # The official models: 3,336,106,240 parameters, and 3,389,119,360.
    "deepseek-ocr": ModelConfig(),
    "deepseek-ocr-2": ModelConfig(
        sam=SamConfig(downsample=(512, 896)), clip=None, qwen=QwenConfig()
    ),
    # The same machines in miniature, for a CPU: windowed and global SAM layers, 1 dense and 3
    # mixture layers.
    "tiny": ModelConfig(
        sam=_SMALL_SAM,
        clip=ClipConfig(width=128, layers=3, heads=4, image_size=56, patch_size=14),
        decoder=_SMALL_DECODER,
        page_size=256,
    ),
    "tiny-2": ModelConfig(
        sam=_SMALL_SAM,
        clip=None,
        decoder=_SMALL_DECODER,
        page_size=256,
        qwen=QwenConfig(
            dim=128, layers=3, heads=4, key_value_heads=2, mlp_dim=384, page_sides=(192, 256)
        ),
    ),
}
# Unlimited-OCR is DeepSeek-OCR with a reference sliding window and a longer context.
PRESETS["unlimited-ocr"] = PRESETS["deepseek-ocr"].with_attention(window=128, context=32768)
PRESETS["tiny-unlimited"] = PRESETS["tiny"].with_attention(window=8)


def shape_of(given: ModelSettings, directory: Path | None = None) -> ModelConfig:
    """The shape of a preset, or what a directory's config.json says, with the attention asked for.
    Raises UserError."""
    named = PRESETS[given.model] if directory is None else None
    config = named or config_from_file(directory / "config.json")
    try:
        return config.with_attention(given.attention_window, given.context)
    except UserError as error:
        raise UserError(f"--attention-window, --context: {error}") from None


SHIPPED = Path(__file__).parents[2] / "tiny_reader" / "weights"


def find_checkpoint(
    directory_or_hub_id: str | os.PathLike, revision: str = "", weights: bool = True
) -> Path:
    """A directory as it is; `tiny-reader` from the package; a hub id from the local cache, else
    downloaded. Never any code.

    revision: branch, tag or commit of a hub id; empty: its default branch. weights: without, only
    configuration and tokenizer of a hub id are fetched; with, its configuration first: what is no
    model of the family is refused before its weights come. A token comes from HF_TOKEN by way of
    huggingface_hub. Raises UserError.
    """
    path = Path(directory_or_hub_id)
    if os.path.isdir(path):  # unlike Path's, no error for a name that cannot be one
        return path
    name = str(directory_or_hub_id)
    if name == TINY_READER:
        return SHIPPED
    if os.path.exists(path) or name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise UserError(f"{name}: neither a directory nor a hub id (owner/name)")
    described = ["*.json", "*.txt", "*.toml"]
    if not weights:
        return fetch(name, "model", revision, described, _is_described)
    looked_at = fetch(name, "model", revision, list(_KINDS), _has_kind)
    if (looked_at / _KINDS[0]).is_file():
        config_from_file(looked_at / _KINDS[0], f"{name}: {_KINDS[0]}")
    # Not just a configuration that something looked at.
    return fetch(
        name,
        "model",
        revision,
        [*described, "*.safetensors"],
        lambda cached: any(cached.glob("*.safetensors")),
    )


_KINDS = ("config.json", "adapter_config.json")  # says what is there: a model or an adapter


def _has_kind(cached: Path) -> bool:
    return any((cached / file).is_file() for file in _KINDS)


def _is_described(cached: Path) -> bool:
    return all((cached / file).is_file() for file in ("config.json", "tokenizer.json"))


def find_shape(given: ModelSettings) -> tuple[ModelConfig, Path | None]:
    """(`shape_of` the model that the settings name, wherever it is; its directory, None of a
    preset); its weights are not fetched."""
    if given.model in PRESETS:
        return shape_of(given), None
    directory = find_checkpoint(given.model, given.revision, weights=False)
    return shape_of(given, directory), directory
