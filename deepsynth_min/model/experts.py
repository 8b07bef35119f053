"""The routed experts of a layer: each token visits K of E small MLPs.

In: token rows [M, D], the experts that each chose and their weights [M, K]. Out: [M, D], the
weighted sum of what they made of it.

The one idea: the E experts of a layer are stacked in two tensors, and one grouped matrix product
serves them all. Token-expert pairs are sorted by expert, so that each expert's rows lie together;
`grouped_mm` then multiplies each run of rows with its own matrix. Nothing depends on how many
tokens an expert got, so nothing is read back to the host, and an expert that got none still has a
gradient (of zeros), which data-parallel reduction needs. Between the products memory is what is
dear: a pair's weight scales its inner row, the narrowest there is, and rows are summed by token
without an array of all pairs in between where the device allows it.

On a CPU reading back costs nothing, and plain experts of some size take their turns
(`mix_one_by_one`): an expert's rows then stay in the cache from its first product to its last.
Quantised and adapted ones are grouped there too. `experts_by_loop` stands first: it is what all
forms compute, and the tests hold them to it.

Source: Shazeer et al. 2017 (mixture of experts), Shazeer 2020 (SwiGLU).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import DecoderConfig

MANY = 2**22  # multiplications of an expert that are worth a dozen calls from Python


def experts_by_loop(experts: "Experts", x: Tensor, chosen: Tensor, weight: Tensor) -> Tensor:
    """The plain form: each token's sum over its K experts, one expert after the other.

    experts: gate_up [E, 2I, D] and down [E, D, I]; x [M, D]; chosen experts and their weights
    [M, K] -> [M, D]. Every other form below computes this.
    """
    total = torch.zeros_like(x)
    for e, (gate_up, down) in enumerate(zip(experts.gate_up, experts.down)):
        row, place = (chosen == e).nonzero(as_tuple=True)
        gate, up = (x[row] @ gate_up.t()).chunk(2, dim=-1)
        out = (F.silu(gate) * up) @ down.t()
        total = total.index_add(0, row, out * weight[row, place, None])
    return total


# -- one grouped product for all experts ----------------------------------------------------------


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
        per_expert = chosen.numel() * self.width * self.inner // self.count  # multiplications
        one_by_one = x.device.type == "cpu" and per_expert >= MANY
        return (mix_one_by_one if one_by_one else mix_experts)(self, x, chosen, weight)


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


# -- for a CPU: one expert after the other, with its gradient by hand ------------------------------


class _OneByOne(torch.autograd.Function):
    """What `mix_experts` computes, one expert after the other, with its gradient by hand.

    x [M, D], gate_up [E, 2I, D], down [E, D, I], all of one type; of each pair, sorted by expert,
    its token [M*K] and its share [M*K, 1]; the number of each expert's pairs -> [M, D], float32.
    """

    @staticmethod
    def forward(ctx, x, gate_up, down, token, share, counts: list[int]) -> Tensor:
        both = x.new_empty(len(token), gate_up.shape[1])  # gate and up of each pair [M*K, 2I]
        total = torch.zeros_like(x, dtype=torch.float32)
        pairs = [of_all.split(counts) for of_all in (token, share, both)]
        for places, part, gate_and_up, w_in, w_out in zip(*pairs, gate_up, down):
            if len(places):
                torch.mm(x.index_select(0, places), w_in.t(), out=gate_and_up)
                gate, up = gate_and_up.chunk(2, dim=-1)
                out = F.silu(gate).mul_(up).mul_(part) @ w_out.t()
                total.index_add_(0, places, out.to(total.dtype))
        ctx.save_for_backward(x, gate_up, down, token, share, both)
        ctx.counts = counts
        return total

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, gate_up, down, token, share, both = ctx.saved_tensors
        grad, d_x, d_share = grad.to(x.dtype), torch.zeros_like(x), torch.empty_like(share)
        weights = [
            torch.empty_like(w) if needed else [None] * len(w)
            for w, needed in zip((gate_up, down), ctx.needs_input_grad[1:])
        ]
        buffer = torch.empty_like(both[: max(ctx.counts)])
        pairs = [of_all.split(ctx.counts) for of_all in (token, share, both, d_share)]
        for places, part, gate_and_up, d_part, w_in, w_out, d_in, d_out in zip(
            *pairs, gate_up, down, *weights
        ):
            gate, up = gate_and_up.chunk(2, dim=-1)
            d_both = buffer[: len(places)]
            d_gate, d_up = d_both.chunk(2, dim=-1)
            d_out_rows, activated = grad.index_select(0, places), F.silu(gate)
            d_inner, inner = d_out_rows @ w_out, activated * up
            torch.sum(inner * d_inner, -1, keepdim=True, dtype=share.dtype, out=d_part)
            if d_out is not None:
                torch.mm(d_out_rows.t(), inner.mul_(part), out=d_out)
            torch.mul(d_inner.mul_(part), activated, out=d_up)
            torch.ops.aten.silu_backward(d_inner.mul_(up), gate, grad_input=d_gate)
            if d_in is not None:
                torch.mm(d_both.t(), x.index_select(0, places), out=d_in)
            d_x.index_add_(0, places, d_both @ w_in)
        return d_x, *(d if isinstance(d, Tensor) else None for d in weights), None, d_share, None


def mix_one_by_one(experts: Experts, x: Tensor, chosen: Tensor, weight: Tensor) -> Tensor:
    """`mix_experts` for a CPU, where asking for the number of rows costs nothing.

    An expert's rows stay in the cache from its first product to its last, and no array of all pairs
    is written but one.
    """
    sorted_by_expert, order = chosen.flatten().sort(stable=True)  # [M*K] each
    counts = sorted_by_expert.bincount(minlength=experts.count).tolist()
    share = weight.flatten().gather(0, order)[:, None]  # [M*K, 1]
    kind, token = compute_dtype(experts.gate_up), order // chosen.shape[1]
    matrices = (w.to(kind) for w in (experts.gate_up, experts.down))
    return _OneByOne.apply(x.to(kind), *matrices, token, share, counts).to(x.dtype)


def compute_dtype(x: Tensor) -> torch.dtype:
    """Autocast does not know grouped_mm; this is what it would do."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
