"""`--compile`: torch.compile for what surrounds the matrix products.

In: a model. Out: nothing; the same model, names and weights as they were, of which parts are
compiled when they first run. That takes minutes.

The one idea: norms, gates, routers and sums are small kernels, each of which reads and writes all
activations; compiled, they become few. Compiled is what depends on the number of tokens alone: the
encoder's blocks, the decoder's norms, its MLPs and experts. The decoder's attention stays as it is:
packed samples take a call each, and their lengths are new in every step.
"""

from ..errors import UserError
from ..model.decoder import MixtureOfExperts
from ..model.deepseek_ocr import DeepseekOCR
from ..settings import Settings


def check(settings: Settings) -> None:
    """Raises UserError for what has not been shown to work."""
    if settings.optim.compile and settings.optim.shard:
        raise UserError("--compile: not with --shard, whose layers come and go")


def compile_parts(model: DeepseekOCR, precision: str, backend: str = "inductor") -> None:
    """precision: the compute type, for torch traces grouped products of bf16 alone (2.13): in any
    other the routed experts stay as they are. backend: as torch.compile takes it."""
    trunk = model.model
    reader = trunk.towers[1]  # CLIP or Qwen2
    second = reader.layers if model.config.qwen is not None else reader.transformer.layers
    for block in (*trunk.sam_model.blocks, *second):
        block.compile(backend=backend)
    for layer in trunk.layers:
        whole = precision == "bf16" or not isinstance(layer.mlp, MixtureOfExperts)
        inner = (layer.mlp,) if whole else (layer.mlp.gate, layer.mlp.shared_experts)
        for part in (layer.input_layernorm, layer.post_attention_layernorm, *inner):
            if part is not None:  # not every model has shared experts
                part.compile(backend=backend, dynamic=True)
