"""FLOPs of a step by formula: what the model needs, whatever the code does.

In: a configuration, the sizes of a batch, what trains. Out: floating point operations, a
multiplication and an addition being two. Model FLOP utilisation is these over the time of the step
and the rate that the machine was measured at.

Counted are matrix products, convolutions and attention; a causal token attends to half of the
others, and its backward pass is twice the forward. Work that is done again or in vain (recomputed
activations and logits, padding of windows excepted, for the model's definition asks for it) is not
counted. With `as_done` it is, as torch's FlopCounterMode would count the kernels that really run:
the tests hold the formulas to that counter.
"""

from deepsynth_min.model import ModelConfig
from deepsynth_min.model.shape.config import ClipConfig, DecoderConfig, QwenConfig, SamConfig


def sam_flops(config: SamConfig, side: int, as_done: bool = False) -> int:
    """Forward of one page of side x side px. as_done: as on a GPU, or with gradients."""
    width, d = config.width, config.width // config.heads
    grid = side // config.patch
    total = 2 * grid**2 * 3 * config.patch**2 * width  # patch embedding
    for layer in range(config.layers):
        window = grid if layer in config.global_layers else config.window
        windows = (-(-grid // window)) ** 2
        places = windows * window**2
        total += 2 * places * width * 4 * width  # qkv and projection, padded places included
        total += 2 * places * width * 2 * window  # relative positions
        columns = d + 2 * window if as_done else d  # the bias is columns of queries and keys
        total += 4 * windows * window**4 * config.heads * columns
        total += 2 * grid**2 * width * 8 * width  # MLP
    half, quarter, (first, second) = grid // 2, grid // 4, config.downsample
    total += 2 * grid**2 * config.neck * (width + 9 * config.neck)
    return total + 2 * 9 * (half**2 * config.neck * first + quarter**2 * first * second)


def clip_flops(config: ClipConfig, side: int) -> int:
    """Forward of one page's SAM features, class token included."""
    places, width = (side // 64) ** 2 + 1, config.width
    return config.layers * (2 * places * width * 12 * width + 4 * places**2 * width)


def qwen_flops(config: QwenConfig, side: int) -> int:
    """Forward of one page's SAM features and as many queries. Features attend to themselves,
    queries to all, as computed: what is masked counts too."""
    features, width = (side // 64) ** 2, config.dim
    narrow = width * config.key_value_heads // config.heads
    weights = 2 * width * (width + narrow) + 3 * width * config.mlp_dim
    attention = 4 * width * (features**2 + features * 2 * features)
    return config.layers * (2 * 2 * features * weights + attention)


def second_flops(config: ModelConfig, side: int) -> int:
    """Forward of one page's features through what follows SAM."""
    return qwen_flops(config.qwen, side) if config.qwen else clip_flops(config.clip, side)


def encoder_flops(config: ModelConfig, side: int, as_done: bool = False) -> int:
    """Forward of one page, projector left out."""
    return sam_flops(config.sam, side, as_done) + second_flops(config, side)


def mlp_weights(config: DecoderConfig, layer: int) -> int:
    """Weights that a token is multiplied with after a layer's attention."""
    width = config.hidden_size
    if config.is_dense(layer):
        return 3 * width * config.intermediate_size
    experts = config.num_experts_per_tok + config.n_shared_experts
    return 3 * width * config.moe_intermediate_size * experts + width * config.n_routed_experts


def decoder_linears(config: DecoderConfig) -> int:
    """Weights that a token is multiplied with in all layers, head left out."""
    width, layers = config.hidden_size, range(config.num_hidden_layers)
    kv = config.num_key_value_heads * config.head_dim
    return sum(2 * width * (width + kv) + mlp_weights(config, layer) for layer in layers)


def adapter_weights(config: DecoderConfig, rank: int) -> int:
    """Weights of adapters on attention, dense MLP and shared experts (all tokens visit them)."""
    width, total = config.hidden_size, 0
    kv = config.num_key_value_heads * config.head_dim
    for layer in range(config.num_hidden_layers):
        shared = config.n_shared_experts * config.moe_intermediate_size
        inner = config.intermediate_size if config.is_dense(layer) else shared
        total += rank * (2 * (width + width) + 2 * (width + kv) + 3 * (width + inner))
    return total


def decoder_flops(
    config: DecoderConfig, lengths: list[int], passes: int = 3, as_done: bool = False, rank: int = 0
) -> int:
    """Layers over samples of some lengths. passes: 1 forward; 2 with the gradient of the input;
    3 with that of the weights too. rank: adapters, which always train, on a frozen base.
    """
    linear = 2 * passes * sum(lengths) * decoder_linears(config)
    linear += 6 * sum(lengths) * adapter_weights(config, rank)
    square = sum(length**2 for length in lengths)
    attention = 4 * square * config.hidden_size * config.num_hidden_layers
    if as_done:  # whole squares, and the scores once more in backward
        return linear + int(attention * (3.5 if passes > 1 else 1))
    return linear + attention // 2 * (3 if passes > 1 else 1)


def spared_flops(config: DecoderConfig, tokens: int, passes: int = 3) -> int:
    """What decoder_flops counts too much for tokens that are not scored: the last layer's MLP (its
    adapters are counted all the same)."""
    return 2 * passes * tokens * mlp_weights(config, config.num_hidden_layers - 1)


def step_flops(
    config: ModelConfig,
    tune: str,
    side: int,
    pages: int,
    lengths: list[int],
    scored: int,
    rank: int = 16,
    cached: bool = False,
) -> int:
    """One training step. cached: the encoder's features are known already."""
    adapted, dec = "lora" in tune, config.decoder
    passes = 2 if adapted else 3
    total = decoder_flops(dec, lengths, passes, rank=rank if adapted else 0)
    total -= spared_flops(dec, sum(lengths) - scored, passes)
    total += 2 * passes * scored * dec.hidden_size * dec.vocab_size
    if not cached:
        total += encoder_flops(config, side) * pages * (3 if tune == "all" else 1)
        total += second_flops(config, side) * pages * (2 if tune == "all-but-sam" else 0)
    places = pages * (side // 64) ** 2
    trained = 2 if tune.startswith("all") or "projector" in tune else 0
    return total + 2 * places * config.feature_width * dec.hidden_size * (1 + trained)
