"""SAM's attention: patches of a window or page attend to each other, with a bias by distance.

In: queries, keys and values of a grid of h x w patches, and the tables of relative positions. Out:
what each patch gathered.

SAM adds to its attention logits rel_h[q_row - k_row] . q + rel_w[q_col - k_col] . q. Written as a
mask that is [heads, P, P] numbers per page, 0.8 GB in float32 at 1024 px. `attention_with_bias` is
the formula; nothing below it ever stores anything of size P x P:

- `attend_with_columns`, for any fused kernel, with gradients too: the bias is part of the dot
  product. Each query gets h + w extra columns that hold its dot products with the tables, each key
  the one-hot columns of its row and its column.
- `attend_in_pieces`, for a CPU without gradients: a mask for a few rows at a time.
- `attend_by_score`, for a GPU without gradients: a kernel that torch.compile writes looks the bias
  up for each score (flex_attention). It takes no columns, which at 1024 px are two thirds of the
  work, and reads queries, keys and values where the linear left them.

Sources: Kirillov et al. 2023 (SAM), Li et al. 2022 (decomposed relative positions).
"""

from collections.abc import Callable
from functools import cache
from types import FunctionType

import torch
import torch.nn.functional as F
from torch import Tensor

PIECE = 2**24  # numbers of a mask that are alive at a time on a CPU: 64 MiB in float32


def relative_table(table: Tensor, side: int) -> Tensor:
    """Relative table -> [2*side-1, d], row q - k + side - 1 for the distance q - k.

    A table made for another side is interpolated linearly, in float32.
    """
    if table.shape[0] == 2 * side - 1:
        return table
    resized = F.interpolate(table.t()[None].float(), 2 * side - 1, mode="linear")
    return resized[0].t().to(table.dtype)


def relative_positions(table: Tensor, side: int) -> Tensor:
    """Relative table -> [side, side, d], entry [q, k] for the distance q - k."""
    table = relative_table(table, side)
    position = torch.arange(side, device=table.device)
    return table[position[:, None] - position[None, :] + side - 1]  # [side, side, d]


def relative_position_bias(bias_h: Tensor, bias_w: Tensor) -> Tensor:
    """The plain form of SAM's bias: each query's dot products with the tables of rows
    [N, H, h, w, h] and of columns [N, H, h, w, w], added up for every key -> [N, H, P, P].

    At 1024 px that is 0.8 GB a page in float32; the other forms never hold it.
    """
    bias = bias_h[..., :, None] + bias_w[..., None, :]  # [N, H, h, w, h, w]
    return bias.flatten(4, 5).flatten(2, 3)


def attention_with_bias(q: Tensor, k: Tensor, v: Tensor, bias_h: Tensor, bias_w: Tensor) -> Tensor:
    """The plain form: softmax(q k^T / sqrt(d) + bias) v; q, k, v and the result [N, H, h, w, d]."""
    shape, d = q.shape, q.shape[-1]
    q, k, v = (part.flatten(2, 3) for part in (q, k, v))  # [N, H, P, d]
    scores = q @ k.transpose(-1, -2) * d**-0.5 + relative_position_bias(bias_h, bias_w)
    return (scores.softmax(dim=-1) @ v).view(shape)


def attend_with_columns(q: Tensor, k: Tensor, v: Tensor, bias_h: Tensor, bias_w: Tensor) -> Tensor:
    """`attention_with_bias` for any fused kernel: the bias as h + w further columns of q and k."""
    n, H, h, w, d = q.shape
    q = torch.cat([q * d**-0.5, bias_h, bias_w], dim=-1).flatten(2, 3)  # [N, H, P, d+h+w]
    rows = torch.eye(h, dtype=k.dtype, device=k.device)[:, None].expand(h, w, h)
    cols = torch.eye(w, dtype=k.dtype, device=k.device)[None].expand(h, w, w)
    place = torch.cat([rows, cols], dim=-1).expand(n, H, h, w, h + w)
    k = torch.cat([k, place], dim=-1).flatten(2, 3)  # [N, H, P, d+h+w]
    # Fused kernels want values as wide as keys; the padding costs less than a mask would.
    v = F.pad(v.flatten(2, 3), (0, h + w))
    return F.scaled_dot_product_attention(q, k, v, scale=1.0)[..., :d].view(n, H, h, w, d)


def attend_in_pieces(q: Tensor, k: Tensor, v: Tensor, bias_h: Tensor, bias_w: Tensor) -> Tensor:
    """The same for a CPU: there three times the columns are three times the work, so the bias is a
    mask, but only for a few rows or windows at a time, `PIECE` numbers. Without gradients, for
    which each piece of the mask would have to be kept.
    """
    n, H, h, w, d = q.shape
    out = q.new_empty(n, h, w, H, d).permute(0, 3, 1, 2, 4)
    whole = H * (h * w) ** 2  # numbers in the bias of one window or page
    several, rows = max(1, PIECE // whole), max(1, PIECE * h // whole)
    for start in range(0, n, several):
        own = slice(start, start + several)
        keys, values = k[own].flatten(2, 3), v[own].flatten(2, 3)  # [n, H, P, d]
        for first in range(0, h, rows):
            part = own, slice(None), slice(first, first + rows)
            by_row, by_column = bias_h[part][..., None], bias_w[part][..., None, :]
            mask = q.new_empty(*by_row.shape[:5], w)  # [n, H, rows, w, h, w]
            torch.add(by_row, by_column, out=mask)
            mask = mask.flatten(4, 5).flatten(2, 3)  # [n, H, rows*w, P]
            queries = q[part].flatten(2, 3)  # [n, H, rows*w, d]
            attended = F.scaled_dot_product_attention(queries, keys, values, mask)
            out[part] = attended.view(q[part].shape)
    return out


def distance_products(q: Tensor, table_h: Tensor, table_w: Tensor, h: int, w: int) -> Tensor:
    """Dot products of queries [N, H, P, d] with both tables' rows, whatever keys they belong to:
    [N, H, P, C]. First the 2h-1 of rows, then the 2w-1 of columns; C is a multiple of 8.

    One product for all, which reads the queries where they lie.
    """
    n, H, P, d = q.shape
    tables = torch.cat([relative_table(table_h, h), relative_table(table_w, w)]).to(q.dtype)
    tables = F.pad(tables, (0, 0, 0, -len(tables) % 8)).t().expand(H, d, -1)  # [H, d, C]
    products = torch.bmm(q.transpose(0, 1).reshape(H, n * P, d), tables)  # [H, N*P, C]
    return products.view(H, n, P, -1).transpose(0, 1)


@cache
def _kernel(h: int, w: int) -> Callable[..., Tensor]:
    """flex_attention, compiled for a grid when first called. Each grid has a function of its own,
    of a name of its own: of one that has seen two grids torch makes h and w variables, and every
    score then waits for four divisions by them."""
    from torch.nn.attention.flex_attention import flex_attention

    def attend(q: Tensor, k: Tensor, v: Tensor, score_mod: Callable) -> Tensor:
        return flex_attention(q, k, v, score_mod=score_mod)

    code = attend.__code__.replace(co_name=f"attend_on_{h}_by_{w}")
    return torch.compile(FunctionType(code, globals(), closure=attend.__closure__))


def attend_by_score(q: Tensor, k: Tensor, v: Tensor, products: Tensor, h: int, w: int) -> Tensor:
    """softmax(q k^T / sqrt(d) + bias) v; q, k, v and the result [N, H, P, d], products as
    `distance_products` gives them."""

    def biased(score: Tensor, n: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        row = query // w - key // w + h - 1
        column = query % w - key % w + 2 * h - 1 + w - 1
        return score + products[n, head, query, row] + products[n, head, query, column]

    return _kernel(h, w)(q, k, v, score_mod=biased)
