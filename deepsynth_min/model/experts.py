"""The routed experts of a layer: each token visits K of E small MLPs.

In: token rows [M, D], the experts that each chose and their weights [M, K]. Out: [M, D], the
weighted sum of what they made of it.

The one idea: the E experts of a layer are stacked in two tensors. `mixture_of_experts` is the
definition, a loop over experts that indexes the tokens of each. The model runs one of two faster
forms of it, and the tests hold the three together:

- `mixture_of_experts_grouped`, for GPUs and for quantised and adapted experts: token-expert pairs
  are sorted by expert, so that each expert's rows lie together, and one `grouped_mm` multiplies
  each run of rows with its own matrix. Nothing depends on how many tokens an expert got, so nothing
  is read back to the host, and an expert that got none still has a gradient (of zeros), which
  data-parallel reduction needs.
  (Devices without such a product, GPUs before compute capability 8.0 and MPS, multiply one expert
  after the other, `product_by_expert`, and read back where each one's rows end; so does torch 2.13
  itself on any GPU with types other than bf16.)
- `mixture_of_experts_cpu`, for plain experts of some size on a CPU, where reading back costs
  nothing: the loop again, but an expert's rows stay in the cache from its first product to its
  last, and the gradient is written by hand.

Source: Shazeer et al. 2017 (mixture of experts), Shazeer 2020 (SwiGLU).
"""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from .shape.config import DecoderConfig

GROUPED_SINCE = (8, 0)  # compute capability, which is also that of bf16 products
CPU_LOOP_WORK = 2**22  # multiplications of an expert that are worth a dozen calls from Python


def mixture_of_experts(experts: "Experts", x: Tensor, chosen: Tensor, weight: Tensor) -> Tensor:
    """The plain form: sum over the chosen e of weight_e * down_e(silu(gate_e(x)) * up_e(x)).

    x [M, D]; chosen experts and their weights [M, K] -> [M, D].
    """
    y = torch.zeros_like(x)  # [M, D]
    for e, (gate_up, down) in enumerate(zip(experts.gate_up, experts.down)):
        token, k = (chosen == e).nonzero(as_tuple=True)  # the n tokens that chose expert e
        gate, up = (x[token] @ gate_up.t()).chunk(2, dim=-1)  # [n, I] each
        out = (F.silu(gate) * up) @ down.t()  # [n, D]
        y = y.index_add(0, token, out * weight[token, k, None])
    return y


class Experts(nn.Module):
    """All routed experts of a layer, stacked: gate and up [E, 2I, D], down [E, D, I]."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        E, D, inner = config.n_routed_experts, config.hidden_size, config.moe_intermediate_size
        self.num_experts, self.width, self.inner = E, D, inner
        self.gate_up = nn.Parameter(torch.empty(E, 2 * inner, D))
        self.down = nn.Parameter(torch.empty(E, D, inner))

    def project_in(self, rows: Tensor, ends: Tensor) -> Tensor:
        """rows [M, D], sorted by expert, expert e's ending at ends[e] -> gate and up [M, 2I]."""
        return grouped_product(rows, self.gate_up, ends)

    def project_out(self, inner: Tensor, ends: Tensor) -> Tensor:
        return grouped_product(inner, self.down, ends)  # [M, D]

    def forward(self, x: Tensor, chosen: Tensor, weight: Tensor) -> Tensor:
        """x [M, D]; chosen experts and their weights [M, K] -> [M, D], weighted sum over K."""
        per_expert = chosen.numel() * self.width * self.inner // self.num_experts
        if x.device.type == "cpu" and per_expert >= CPU_LOOP_WORK:
            return mixture_of_experts_cpu(self, x, chosen, weight)
        return mixture_of_experts_grouped(self, x, chosen, weight)


def compute_dtype(x: Tensor) -> torch.dtype:
    """Autocast does not know grouped_mm; this is what it would do."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


# -- grouped: one product for all experts ---------------------------------------------------------


class GroupedExperts(Protocol):
    """What `mixture_of_experts_grouped` needs: plain, quantised and adapted experts have it."""

    num_experts: int

    def project_in(self, rows: Tensor, ends: Tensor) -> Tensor: ...

    def project_out(self, inner: Tensor, ends: Tensor) -> Tensor: ...


def mixture_of_experts_grouped(
    experts: GroupedExperts, x: Tensor, chosen: Tensor, weight: Tensor
) -> Tensor:
    """`mixture_of_experts` by one grouped product for all experts, without reading back."""
    K = chosen.shape[1]
    sorted_experts, order = chosen.flatten().sort(stable=True)  # [M*K] each
    numbers = torch.arange(experts.num_experts, device=x.device)
    ends = torch.searchsorted(sorted_experts, numbers, right=True).int()  # [E] row ends
    rows = _Dispatch.apply(x.to(compute_dtype(x)), order, K)  # [M*K, D]
    gate_up = experts.project_in(rows, ends)  # [M*K, 2I]
    # Memory is what is dear here, so the weight of a pair is applied where rows are narrowest; the
    # product that follows is linear.
    pair_weight = weight.flatten().gather(0, order)[:, None]  # [M*K, 1]
    plain = x.device.type == "cpu" or torch.compiler.is_compiling()
    swiglu = weighted_swiglu if plain else WeightedSwiGLU.apply
    inner = swiglu(gate_up, pair_weight)  # [M*K, I]
    return _Combine.apply(experts.project_out(inner, ends), order, K).to(x.dtype)  # [M, D]


def weighted_swiglu(gate_up: Tensor, weight: Tensor) -> Tensor:
    """silu(gate) * up * weight: gate_up [M, 2I] of the compute type, weight [M, 1] -> [M, I]."""
    gate, up = gate_up.chunk(2, dim=-1)  # [M, I] each
    return (F.silu(gate) * up * weight).to(gate_up.dtype)


class WeightedSwiGLU(torch.autograd.Function):
    """`weighted_swiglu` in fewer passes, for a GPU: none is in float32, though each is computed in
    it, and nothing of that size is kept but what came in. (A compiler does as well by itself, and
    cannot read what writes into every other column.)"""

    @staticmethod
    def forward(ctx: FunctionCtx, gate_up: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up, weight)
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate).mul_(up).mul_(weight)

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, Tensor]:
        gate_up, weight = ctx.saved_tensors
        d_gate_up = torch.empty_like(gate_up)
        (gate, up), (d_gate, d_up) = gate_up.chunk(2, dim=-1), d_gate_up.chunk(2, dim=-1)
        activated = F.silu(gate)
        d_weight = (activated * up).mul_(grad).sum(-1, keepdim=True, dtype=weight.dtype)
        d_inner = torch.mul(grad, weight, out=torch.empty_like(grad))
        torch.mul(activated, d_inner, out=d_up)
        torch.ops.aten.silu_backward(d_inner.mul_(up), gate, grad_input=d_gate)
        return d_gate_up, d_weight


def grouped_product(rows: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """Each run of rows [M, D] times its expert's own matrix of weight [E, O, D] -> [M, O]."""
    weight = weight.to(compute_dtype(weight))
    return product_by_group(rows.to(weight.dtype), weight.transpose(1, 2), ends)


def product_by_group(rows: Tensor, matrices: Tensor, ends: Tensor) -> Tensor:
    """rows [M, D], group e's ending at ends[e], times matrices [E, D, O] -> [M, O]."""
    if has_grouped_product(rows.device):
        return F.grouped_mm(rows, matrices, offs=ends)
    return product_by_expert(rows, matrices, ends)


def product_by_expert(rows: Tensor, matrices: Tensor, ends: Tensor) -> Tensor:
    """The plain form of `product_by_group`; waits for the device to know the ends."""
    pieces = rows.tensor_split(ends[:-1].tolist())
    return torch.cat([piece @ matrix for piece, matrix in zip(pieces, matrices)])


def has_grouped_product(device: torch.device) -> bool:
    """Whether torch has a grouped product for it: not for MPS, nor for GPUs before Ampere."""
    if device.type == "cuda" and torch.cuda.is_available():
        return torch.cuda.get_device_capability(device) >= GROUPED_SINCE
    return device.type != "mps"


def _sum_by_token(rows: Tensor, order: Tensor, k: int) -> Tensor:
    """Rows of pairs, sorted by expert [M*K, D] -> the sum of each token's K rows [M, D], added up
    in float32; float32 on a CPU, elsewhere the rows' type.

    Always in the same order, which is why a GPU, where additions race, takes the longer way.
    """
    if rows.device.type == "cpu":
        total = torch.zeros(len(rows) // k, rows.shape[1])
        return total.index_add_(0, order // k, rows.to(total.dtype))
    return _sum_by_look_up(rows, order, k)


def _sum_by_look_up(rows: Tensor, order: Tensor, k: int) -> Tensor:
    pairs = torch.arange(len(order), device=order.device)
    inverse = torch.empty_like(order).scatter_(0, order, pairs)  # [M*K]
    by_token = rows.index_select(0, inverse).view(-1, k, rows.shape[1])  # [M, K, D]
    return by_token.sum(1)


class _Dispatch(torch.autograd.Function):
    """Token rows [M, D] -> a row for each token-expert pair, sorted by expert, [M*K, D].

    Autograd's own gradient of an index adds rows up in an order that threads decide.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, order: Tensor, k: int) -> Tensor:
        ctx.save_for_backward(order)
        ctx.k = k
        return x.index_select(0, order // k)

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, None, None]:
        return _sum_by_token(grad, ctx.saved_tensors[0], ctx.k).to(grad.dtype), None, None


class _Combine(torch.autograd.Function):
    """The way back: rows of pairs [M*K, D] -> their sums by token [M, D], as `_sum_by_token`."""

    @staticmethod
    def forward(ctx: FunctionCtx, rows: Tensor, order: Tensor, k: int) -> Tensor:
        ctx.save_for_backward(order)
        ctx.k, ctx.dtype = k, rows.dtype
        return _sum_by_token(rows, order, k)

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, None, None]:
        (order,) = ctx.saved_tensors
        return grad.to(ctx.dtype).index_select(0, order // ctx.k), None, None


# -- CPU: one expert after the other ---------------------------------------------------------------


def mixture_of_experts_cpu(experts: Experts, x: Tensor, chosen: Tensor, weight: Tensor) -> Tensor:
    """`mixture_of_experts` for a CPU: an expert's rows stay in the cache, and no array of all pairs
    is written but one."""
    sorted_experts, order = chosen.flatten().sort(stable=True)  # [M*K] each
    counts = sorted_experts.bincount(minlength=experts.num_experts).tolist()
    pair_weight = weight.flatten().gather(0, order)[:, None]  # [M*K, 1]
    dtype, token = compute_dtype(experts.gate_up), order // chosen.shape[1]
    matrices = (w.to(dtype) for w in (experts.gate_up, experts.down))
    return _ExpertLoop.apply(x.to(dtype), *matrices, token, pair_weight, counts).to(x.dtype)


class _ExpertLoop(torch.autograd.Function):
    """The loop over experts with its gradient by hand.

    x [M, D], gate_up [E, 2I, D], down [E, D, I], all of one type; of each pair, sorted by expert,
    its token [M*K] and its weight [M*K, 1]; the number of each expert's pairs -> [M, D], float32.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        x: Tensor,
        gate_up: Tensor,
        down: Tensor,
        token: Tensor,
        pair_weight: Tensor,
        counts: list[int],
    ) -> Tensor:
        hidden = x.new_empty(len(token), gate_up.shape[1])  # gate and up of each pair [M*K, 2I]
        total = torch.zeros_like(x, dtype=torch.float32)
        by_expert = [pairs.split(counts) for pairs in (token, pair_weight, hidden)]
        for tokens, weights, gate_and_up, w_in, w_out in zip(*by_expert, gate_up, down):
            if len(tokens):
                torch.mm(x.index_select(0, tokens), w_in.t(), out=gate_and_up)
                gate, up = gate_and_up.chunk(2, dim=-1)
                out = F.silu(gate).mul_(up).mul_(weights) @ w_out.t()
                total.index_add_(0, tokens, out.to(total.dtype))
        ctx.save_for_backward(x, gate_up, down, token, pair_weight, hidden)
        ctx.counts = counts
        return total

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, gate_up, down, token, pair_weight, hidden = ctx.saved_tensors
        grad, d_x = grad.to(x.dtype), torch.zeros_like(x)
        d_pair_weight = torch.empty_like(pair_weight)
        d_matrices = [
            torch.empty_like(w) if needed else [None] * len(w)
            for w, needed in zip((gate_up, down), ctx.needs_input_grad[1:])
        ]
        buffer = torch.empty_like(hidden[: max(ctx.counts)])
        pairs = (token, pair_weight, hidden, d_pair_weight)
        by_expert = [of_all.split(ctx.counts) for of_all in pairs]
        for tokens, weights, gate_and_up, d_weights, w_in, w_out, d_w_in, d_w_out in zip(
            *by_expert, gate_up, down, *d_matrices
        ):
            gate, up = gate_and_up.chunk(2, dim=-1)
            d_gate_and_up = buffer[: len(tokens)]
            d_gate, d_up = d_gate_and_up.chunk(2, dim=-1)
            d_out, activated = grad.index_select(0, tokens), F.silu(gate)
            d_inner, inner = d_out @ w_out, activated * up
            torch.sum(inner * d_inner, -1, keepdim=True, dtype=pair_weight.dtype, out=d_weights)
            if d_w_out is not None:
                torch.mm(d_out.t(), inner.mul_(weights), out=d_w_out)
            torch.mul(d_inner.mul_(weights), activated, out=d_up)
            torch.ops.aten.silu_backward(d_inner.mul_(up), gate, grad_input=d_gate)
            if d_w_in is not None:
                torch.mm(d_gate_and_up.t(), x.index_select(0, tokens), out=d_w_in)
            d_x.index_add_(0, tokens, d_gate_and_up @ w_in)
        d_gate_up, d_down = (d if isinstance(d, Tensor) else None for d in d_matrices)
        return d_x, d_gate_up, d_down, None, d_pair_weight, None
