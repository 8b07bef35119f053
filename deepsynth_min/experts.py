"""The routed experts of a layer: each token visits K of E small MLPs.

In: token rows [M, D], the experts that each chose and their weights [M, K]. Out: [M, D], the
weighted sum of what they made of it.

The one idea: the E experts of a layer are stacked in two tensors, and token-expert pairs are sorted
by expert, so that each expert's rows lie together. What follows depends on the machine:

- On a GPU one grouped matrix product (`grouped_mm`) multiplies each run of rows with its own
  matrix. Nothing depends on how many tokens an expert got, so nothing is read back to the host.
- On a CPU the row counts are at hand, and what is dear is memory: every array of [M*K, D] is
  written, page by page, and read back. `_OneByOne` takes one expert after the other through its MLP
  while its few rows are in the cache, and keeps one array, the gate and up values, for backward.

Either way an expert that got no token has a gradient (of zeros), which data-parallel reduction
needs. `experts_by_loop` is the readable twin of both; the tests hold the three together.

Source: Shazeer et al. 2017 (mixture of experts), Shazeer 2020 (SwiGLU).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

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


class _OneByOne(torch.autograd.Function):
    """x [M, D], chosen and weight [M, K], gate_up [E, 2I, D], down [E, D, I] -> [M, D].

    Written out by hand for two reasons: the products write straight into their places, and the
    gradient of a pair's weight, g . (down h), is taken as (g down) . h, so that what an expert made
    of a row need not be kept. Sums run in the order of experts: equal steps are equal to the bit.
    """

    @staticmethod
    def forward(ctx, x, chosen, weight, gate_up, down):
        (M, D), (K, E) = x.shape, (chosen.shape[1], len(down))
        order = chosen.flatten().argsort(stable=True)  # [M*K] pairs, sorted by expert
        tokens, ends = order // K, chosen.flatten().bincount(minlength=E).cumsum(0).tolist()
        share = weight.flatten()[order, None]  # [M*K, 1]
        inner = x.new_empty(M * K, gate_up.shape[1])  # [M*K, 2I]
        out = torch.zeros(M, D)
        for e, own in enumerate(map(slice, [0, *ends], ends)):
            rows = x.index_select(0, tokens[own])  # [n, D]
            gate, up = torch.mm(rows, gate_up[e].t(), out=inner[own]).chunk(2, dim=-1)
            h = F.silu(gate).mul_(up).mul_(share[own])  # [n, I]
            out.index_add_(0, tokens[own], (h @ down[e].t()).to(out.dtype))
        ctx.save_for_backward(x, gate_up, down, inner, share, order, tokens)
        ctx.ends, ctx.shape = ends, chosen.shape
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        x, gate_up, down, inner, share, order, tokens = ctx.saved_tensors
        trained_in, trained_out = ctx.needs_input_grad[3:]
        d_gate_up = torch.empty_like(gate_up) if trained_in else None
        d_down = torch.empty_like(down) if trained_out else None
        d_x, d_share = torch.zeros_like(x), torch.empty_like(share)
        grad = grad.to(x.dtype)
        for e, own in enumerate(map(slice, [0, *ctx.ends], ctx.ends)):
            gate, up = inner[own].chunk(2, dim=-1)
            g = grad.index_select(0, tokens[own])  # [n, D]
            silu, d_h = F.silu(gate), g @ down[e]  # [n, I]
            h = silu * up
            torch.sum(d_h * h, -1, keepdim=True, dtype=share.dtype, out=d_share[own])
            if trained_out:
                torch.mm(g.t(), h.mul_(share[own]), out=d_down[e])
            d_h.mul_(share[own])
            d_gate = torch.ops.aten.silu_backward(d_h * up, gate)
            d_inner = torch.cat([d_gate, d_h.mul_(silu)], dim=-1)  # [n, 2I]
            if trained_in:
                torch.mm(d_inner.t(), x.index_select(0, tokens[own]), out=d_gate_up[e])
            d_x.index_add_(0, tokens[own], d_inner @ gate_up[e])
        d_weight = torch.empty_like(share).index_copy_(0, order, d_share).view(ctx.shape)
        return d_x, None, d_weight, d_gate_up, d_down


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
        if x.device.type != "cpu":
            return mix_experts(self, x, chosen, weight)
        kind = compute_dtype(x)
        stacks = self.gate_up.to(kind), self.down.to(kind)
        return _OneByOne.apply(x.to(kind), chosen, weight, *stacks).to(x.dtype)


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
