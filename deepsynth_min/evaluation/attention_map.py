"""Where a model looks: the attention of each token of an answer, laid over the pages that it read.

In: a model and a sample with its answer. Out: for each token of the answer a map [rows, columns] of
each view of the pages, one number for each visual token.

The one idea: a second forward pass in the plain form, layer after layer, which keeps what softmax
gives; the fused kernels of training and decoding never have it, and nothing is hooked onto them.
The weights are those by which the token was chosen: of the position before it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..data.samples import Sample, SampleBuilder, collate
from ..errors import UserError
from ..model.attention import window_mask
from ..model.decoder import Layout
from ..model.deepseek_ocr import DeepseekOCR
from ..model.rotary import rotary_tables, rotate


@dataclass(frozen=True)
class View:
    """A picture that visual tokens stand for, and where these are in the sequence."""

    image: np.ndarray  # uint8 [C, height, width]
    positions: np.ndarray  # int64 [rows, columns]


def views(sample: Sample, builder: SampleBuilder) -> list[View]:
    """The pages of a sample; of one with tiles, these as one picture first, as in the sequence.

    Raises UserError for a model whose visual tokens have no place on the page.
    """
    if builder.config.qwen is not None:
        raise UserError(
            "attention: this model's visual tokens are learned queries, with no place on the page"
        )
    found, start, tiles = [], 1, iter(sample.tiles)  # BOS comes first
    for page, (w, h) in zip(sample.pages, sample.grids):
        pictures = []
        if w * h > 1:
            cells = next(tiles)  # [w*h, C, s, s]
            c, s = cells.shape[1:3]
            whole = cells.reshape(h, w, c, s, s).transpose(2, 0, 3, 1, 4)
            pictures.append(whole.reshape(c, h * s, w * s))
        for picture in [*pictures, page]:
            rows, columns = (side // 64 for side in picture.shape[1:])
            width = columns + sample.newlines
            positions = start + np.arange(rows * width).reshape(rows, width)[:, :columns]
            found.append(View(picture, positions))
            start += rows * width
        start += 1  # the separator
    return found


@torch.no_grad()
def attention_weights(model: DeepseekOCR, sample: Sample, builder: SampleBuilder) -> Tensor:
    """[layers, heads, A, T]: how each of the A tokens of a sample's answer, when it was chosen,
    divided its attention among the T tokens of the sequence."""
    batch = collate([sample], builder.special).to(next(model.parameters()).device)
    x, config = model.embed(batch), model.config.decoder  # [1, T, D]
    T, device = x.shape[1], x.device
    mask = torch.ones(T, T, dtype=torch.bool, device=device).tril()[None, None]
    if config.sliding_window:
        prompts = torch.tensor([sample.prompt], device=device)
        mask = window_mask(prompts, T, config.sliding_window)
    asking = torch.arange(sample.prompt - 1, T - 1, device=device)
    where = torch.arange(T, device=device)[None]
    cos, sin = rotary_tables(where, config.head_dim, config.rope_theta)
    found = []
    for layer in model.model.layers:
        own = layer.self_attn
        y = layer.input_layernorm(x)
        q, k = (
            rotate(project(y).view(1, T, -1, own.head_dim).transpose(1, 2), cos, sin).float()
            for project in (own.q_proj, own.k_proj)
        )
        k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)  # [1, H, T, d]
        scores = q[:, :, asking] @ k.transpose(2, 3) * own.head_dim**-0.5  # [1, H, A, T]
        seen = mask[:, :, asking]
        found.append(scores.masked_fill(~seen, -torch.inf).softmax(-1)[0])
        x, _ = layer(x, cos, sin, mask, None, Layout())
    return torch.stack(found)


def over_views(weights: Tensor, seen: Sequence[View]) -> list[np.ndarray]:
    """Weights [A, T] -> of each view [A, rows, columns]."""
    values = weights.cpu().numpy()
    return [values[:, view.positions] for view in seen]
