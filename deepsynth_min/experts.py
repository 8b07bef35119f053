"""The routed experts of a layer: each token visits K of E small MLPs.

In: token rows [M, D], the experts that each chose and their weights [M, K]. Out: [M, D], the
weighted sum of what they made of it.

The one idea: the E experts of a layer are stacked in two tensors, and one grouped matrix product
serves them all. Token-expert pairs are sorted by expert, so that each expert's rows lie together;
`grouped_mm` then multiplies each run of rows with its own matrix. Nothing depends on how many tokens
an expert got, so nothing is read back to the host, and an expert that got none still has a gradient
(of zeros), which data-parallel reduction needs. Between the products memory is what is dear: a
pair's weight scales its inner row, the narrowest there is, and rows are summed by token without an
array of all pairs in between where the device allows it.

`experts_by_loop` is the readable twin: one expert after the other. The tests hold the two together.

Source: Shazeer et al. 2017 (mixture of experts), Shazeer 2020 (SwiGLU).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import DecoderConfig


def _sum_by_token(rows: Tensor, order: Tensor, k: int) -> Tensor:
    """Rows of pairs, sorted by expert [M*K, D] -> the sum of each token's K rows [M, D], float32.

    Always in the same order, which is why a GPU, where additions race, takes the longer way.
    """
    if rows.device.type == "cpu":
        total = torch.zeros(len(rows) // k, rows.shape[1])
        return total.index_add_(0, order // k, rows.to(total.dtype))
    back = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    return rows.index_select(0, back).view(-1, k, rows.shape[1]).sum(1, dtype=torch.float32)


class _Dispatch(torch.autograd.Function):
    """Token rows [M, D] -> a row for each token-expert pair, sorted by expert, [M*K, D].

    Autograd's own gradient of an index adds rows up in an order that threads decide.
    """

    @staticmethod
    def forward(ctx, x: Tensor, order: Tensor, k: int) -> Tensor:
        ctx.save_for_backward(order)
        ctx.k = k
        return x.index_select(0, order // k)

    @staticmethod
    def backward(ctx, grad: Tensor):
        return _sum_by_token(grad, ctx.saved_tensors[0], ctx.k).to(grad.dtype), None, None


class _Combine(torch.autograd.Function):
    """The way back: rows of pairs [M*K, D] -> their sums by token [M, D], float32."""

    @staticmethod
    def forward(ctx, rows: Tensor, order: Tensor, k: int) -> Tensor:
        ctx.save_for_backward(order)
        ctx.k, ctx.kind = k, rows.dtype
        return _sum_by_token(rows, order, k)

    @staticmethod
    def backward(ctx, grad: Tensor):
        (order,) = ctx.saved_tensors
        return grad.to(ctx.kind).index_select(0, order // ctx.k), None, None


class Experts(nn.Module):
    """All routed experts of a layer, stacked: gate and up [E, 2I, D], down [E, D, I]."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        E, D, inner = config.n_routed_experts, config.hidden_size, config.moe_intermediate_size
        self.count, self.width, self.inner = E, D, inner
        self.gate_up = nn.Parameter(torch.empty(E, 2 * inner, D))
        self.down = nn.Parameter(torch.empty(E, D, inner))

    def project_in(self, rows: Tensor, ends: Tensor) -> Tensor:
        """rows [M, D], sorted by expert, expert e's ending at ends[e] -> gate and up [M, 2I]."""
        return grouped_product(rows, self.gate_up, ends)

    def project_out(self, inner: Tensor, ends: Tensor) -> Tensor:
        return grouped_product(inner, self.down, ends)  # [M, D]

    def forward(self, x: Tensor, chosen: Tensor, weight: Tensor) -> Tensor:
        """x [M, D]; chosen experts and their weights [M, K] -> [M, D], weighted sum over K."""
        return mix_experts(self, x, chosen, weight)


def grouped_product(rows: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """Each run of rows [M, D] times its expert's own matrix of weight [E, O, D] -> [M, O]."""
    weight = weight.to(compute_dtype(weight))
    return F.grouped_mm(rows.to(weight.dtype), weight.transpose(1, 2), offs=ends)


def mix_experts(experts, x: Tensor, chosen: Tensor, weight: Tensor) -> Tensor:
    """x [M, D]; chosen experts and their weights [M, K] -> [M, D], weighted sum over K.

    One grouped product for all; experts: anything with `count`, `project_in` and `project_out`
    (plain, quantised, adapted).
    """
    K = chosen.shape[1]
    sorted_by_expert, order = chosen.flatten().sort(stable=True)  # [M*K] each
    numbers = torch.arange(experts.count, device=x.device)
    ends = torch.searchsorted(sorted_by_expert, numbers, right=True).int()  # [E] row ends
    rows = _Dispatch.apply(x.to(compute_dtype(x)), order, K)  # [M*K, D]
    gate, up = experts.project_in(rows, ends).chunk(2, dim=-1)
    # The weight of a pair is applied here, where rows are narrowest; the product is linear.
    share = weight.flatten().gather(0, order)[:, None]  # [M*K, 1]
    inner = (F.silu(gate) * up * share).to(rows.dtype)  # [M*K, I]
    return _Combine.apply(experts.project_out(inner, ends), order, K).to(x.dtype)


def experts_by_loop(experts: Experts, x: Tensor, chosen: Tensor, weight: Tensor) -> Tensor:
    """The readable twin of `Experts.forward`: the same sum, one expert after the other."""
    total = torch.zeros_like(x)
    for e, (gate_up, down) in enumerate(zip(experts.gate_up, experts.down)):
        row, place = (chosen == e).nonzero(as_tuple=True)
        gate, up = (x[row] @ gate_up.t()).chunk(2, dim=-1)
        out = (F.silu(gate) * up) @ down.t()
        total = total.index_add(0, row, out * weight[row, place, None])
    return total


def compute_dtype(x: Tensor) -> torch.dtype:
    """Autocast does not know grouped_mm; this is what it would do."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
