"""A model small enough for a test: every kind of layer once."""

from deepsynth_min.model.config import ClipConfig, DecoderConfig, ModelConfig, SamConfig

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
