"""`--compile`: torch.compile for what surrounds the matrix products.

In: a model. Out: nothing; the same model, names and weights as they were, of which parts are
compiled when they first run. That takes minutes.

The one idea: norms, gates, routers and sums are small kernels, each of which reads and writes all
activations; compiled, they become few. Compiled is what depends on the number of tokens alone: the
encoder's blocks, the decoder's norms, its MLPs and experts. The decoder's attention stays as it is:
packed samples take a call each, and their lengths are new in every step.

`--flex`, on by default on a GPU: single kernels, SAM's attention and the decoder's with a reference
sliding window, are compiled alone, in seconds.
What is chosen here was chosen by arithmetic (bench/roofline.py), not yet measured on a GPU.
"""

from importlib.util import find_spec

import torch
from torch import nn
from torch.torch_version import TorchVersion

from ..errors import UserError
from ..model.decoder import MixtureOfExperts
from ..model.deepseek_ocr import DeepseekOCR
from ..model.experts import has_grouped_product
from ..settings import Settings


def check(settings: Settings) -> None:
    """Raises UserError for what has not been shown to work."""
    if settings.optim.compile:
        # Compiled by torch 2.11, an autograd.Function whose forward ends in place (an adapter's
        # product, the experts' sum) has gradients of zero, and nothing says so.
        if TorchVersion(torch.__version__) < "2.13":
            raise UserError(
                f"--compile: needs PyTorch 2.13 or newer, this is {torch.__version__} and would "
                "compute wrong gradients"
            )
        if settings.optim.shard:
            raise UserError("--compile: not with --shard, whose layers come and go")


def has_compiler(device: torch.device) -> bool:
    """Whether torch.compile can write kernels for it: Triton, and a GPU on which its kernels of
    attention fit."""
    return device.type == "cuda" and find_spec("triton") is not None and has_grouped_product(device)


def use_flex(model: DeepseekOCR, device: torch.device) -> None:
    """SAM adds its bias inside a compiled kernel, wherever it runs without gradients, and a
    reference sliding window is one; does nothing on a device without a compiler, nor to heads that
    are narrower than torch's kernel takes."""
    fits = lambda width: has_compiler(device) and width >= 16  # noqa: E731, numbers of a head
    model.window_in_blocks = fits(model.config.decoder.head_dim)
    for block in model.model.sam_model.blocks:
        block.attn.by_score = fits(block.attn.rel_pos_h.shape[1])


def parts_to_compile(model: DeepseekOCR, precision: str) -> dict[nn.Module, bool]:
    """Module -> whether the number of its rows changes from step to step.

    precision: the compute type, for torch traces grouped products of bf16 alone (2.13): in any
    other the routed experts stay as they are.
    """
    trunk = model.model
    reader = trunk.towers[1]  # CLIP or Qwen2
    second = reader.layers if model.config.qwen is not None else reader.transformer.layers
    parts = {block: False for block in (*trunk.sam_model.blocks, *second)}
    for layer in trunk.layers:
        whole = precision == "bf16" or not isinstance(layer.mlp, MixtureOfExperts)
        inner = (layer.mlp,) if whole else (layer.mlp.gate, layer.mlp.shared_experts)
        for part in (layer.input_layernorm, layer.post_attention_layernorm, *inner):
            if part is not None:  # not every model has shared experts
                parts[part] = True
    return parts


def compile_parts(model: DeepseekOCR, precision: str, backend: str = "inductor") -> None:
    """backend: as torch.compile takes it."""
    for part, dynamic in parts_to_compile(model, precision).items():
        part.compile(backend=backend, **({"dynamic": True} if dynamic else {}))
