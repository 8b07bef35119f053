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

from collections.abc import Sequence
from dataclasses import dataclass

from .config import ClipConfig, DecoderConfig, ModelConfig, QwenConfig, SamConfig


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


@dataclass(frozen=True)
class Adapters:
    """Weights of A and B that each place is multiplied with: a token of the decoder, a patch in
    SAM, a place of what reads SAM's features."""

    decoder: int = 0
    sam: int = 0
    second: int = 0


def adapter_weights(config: DecoderConfig, rank: int) -> int:
    """Of adapters on attention, dense MLP and shared experts, for one token."""
    width, total = config.hidden_size, 0
    kv = config.num_key_value_heads * config.head_dim
    for layer in range(config.num_hidden_layers):
        shared = config.n_shared_experts * config.moe_intermediate_size
        inner = config.intermediate_size if config.is_dense(layer) else shared
        total += rank * (2 * (width + width) + 2 * (width + kv) + 3 * (width + inner))
    return total


def attended(length: int, prompt: int, window: int) -> int:
    """Twice the pairs of query and key of a sample, a token with itself being half a pair: its
    square, or less where of the answer only `window` tokens are in sight."""
    answer = length - prompt
    if not window or answer <= window:
        return length**2
    return prompt**2 + 2 * answer * prompt + window**2 + (answer - window) * (2 * window - 1)


def decoder_flops(
    config: DecoderConfig,
    lengths: Sequence[int],
    passes: int = 3,
    as_done: bool = False,
    adapters: int = 0,
    prompts: Sequence[int] = (),
) -> int:
    """Layers over samples of some lengths. passes: 1 forward; 2 with the gradient of the input;
    3 with that of the weights too. adapters: their weights, which always train, on a frozen base.
    prompts: tokens of each sample before its answer, which a sliding window needs.
    """
    linear = 2 * passes * sum(lengths) * decoder_linears(config)
    linear += 6 * sum(lengths) * adapters
    window = config.sliding_window if prompts else 0
    square = sum(attended(n, p, window) for n, p in zip(lengths, prompts or lengths, strict=True))
    attention = 4 * square * config.hidden_size * config.num_hidden_layers
    if as_done:  # whole squares, and the scores once more in backward
        return linear + int(attention * (3.5 if passes > 1 else 1))
    return linear + attention // 2 * (3 if passes > 1 else 1)


def spared_flops(config: DecoderConfig, tokens: int, passes: int = 3) -> int:
    """What decoder_flops counts too much for tokens that are not scored: the last layer's output
    projection and MLP (their adapters are counted all the same)."""
    weights = config.hidden_size**2 + mlp_weights(config, config.num_hidden_layers - 1)
    return 2 * passes * tokens * weights


def pages_flops(
    config: ModelConfig, tune: str, views: dict[int, int], adapters: Adapters = Adapters()
) -> int:
    """The encoder over views (pages and tiles): side in px -> their number; with its backward."""
    sam_passes = 3 if tune == "all" else 2 if adapters.sam else 1
    after = 2 if adapters.sam or adapters.second else 1
    second_passes = 3 if tune.startswith("all") else after
    total = 0
    for side, number in views.items():
        places = (side // 64) ** 2
        places = 2 * places if config.qwen else places + 1
        total += number * sam_passes * sam_flops(config.sam, side)
        total += number * second_passes * second_flops(config, side)
        total += 6 * number * (side // config.sam.patch) ** 2 * adapters.sam
        total += 6 * number * places * adapters.second
    return total


def step_flops(
    config: ModelConfig,
    tune: str,
    views: dict[int, int],
    lengths: Sequence[int],
    scored: int,
    adapters: Adapters = Adapters(),
    prompts: Sequence[int] = (),
    encoded: dict[int, int] | None = None,
) -> int:
    """One training step. views: pages and tiles, side in px -> their number; encoded: those that
    the encoder must read, if the features of others are known already."""
    adapted, dec = "lora" in tune, config.decoder
    passes = 2 if adapted else 3
    total = decoder_flops(dec, lengths, passes, adapters=adapters.decoder, prompts=prompts)
    total -= spared_flops(dec, sum(lengths) - scored, passes)
    total += 2 * passes * scored * dec.hidden_size * dec.vocab_size
    total += pages_flops(config, tune, views if encoded is None else encoded, adapters)
    places = sum(number * (side // 64) ** 2 for side, number in views.items())
    encoder_adapted = 1 if adapters.sam or adapters.second else 0
    back = 2 if tune.startswith("all") or "projector" in tune else encoder_adapted
    return total + 2 * places * config.feature_width * dec.hidden_size * (1 + back)
