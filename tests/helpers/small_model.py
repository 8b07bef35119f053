"""A model small enough for a test: every kind of layer once."""

from dataclasses import replace

from deepsynth_min.model.shape.config import (
    ClipConfig,
    DecoderConfig,
    ModelConfig,
    QwenConfig,
    SamConfig,
)

# A quarter of `tiny`: every kind of layer once, the embedded tokenizer's vocabulary.
SMALL = ModelConfig(
    sam=SamConfig(
        width=32,
        layers=2,
        heads=2,
        image_size=128,
        window=3,
        global_layers=(1,),
        neck=16,
        downsample=(16, 32),
    ),
    clip=ClipConfig(width=32, layers=1, heads=2, image_size=28),
    decoder=DecoderConfig(
        vocab_size=4096,
        hidden_size=32,
        intermediate_size=64,
        moe_intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        n_routed_experts=4,
        num_experts_per_tok=2,
        max_position_embeddings=1024,
    ),
    page_size=128,
)

# DeepSeek-OCR-2 as narrow, with the official page sizes: transformers' class knows no other.
SMALL_2 = ModelConfig(
    sam=SamConfig(
        width=16,
        layers=2,
        heads=1,
        image_size=1024,
        global_layers=(1,),
        neck=16,
        downsample=(16, 48),
    ),
    clip=None,
    decoder=replace(SMALL.decoder, max_position_embeddings=4096),
    qwen=QwenConfig(dim=48, layers=2, heads=4, key_value_heads=2, mlp_dim=64),
)
