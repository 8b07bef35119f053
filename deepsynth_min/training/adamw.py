"""AdamW in little memory: weights in bf16, moments in 8 bits, or both.

In: gradients. Out: moved weights; bf16 ones rounded at random.

The one idea: what a step does to a number depends on nothing but the numbers of its block of 256,
so the whole step is arithmetic on one flat piece of memory, `move`. On a GPU torch.compile makes
one kernel of it, which reads and writes each number once: with both, 10 bytes where float32 has 28.
Elsewhere it runs as it stands, a piece at a time. Like torch's fused kernel it scales the gradients
on the way, reads on the device whether they are finite, and changes nothing where they are not.

bf16 has 8 binary digits: an update below 1/512 of its weight would be rounded away each time. So
the arithmetic is float32, and the new weight is rounded at random.

A block's first moments are kept as its largest magnitude and, of each, the root of its share of
that in 127 levels; second moments as the fourth root in 255, for it is their square root that
counts. They are rounded at random too: the share that a step forgets of them is less than half the
distance of two levels, and rounded to the nearest they would never fall. bench/NOTES.md compares
the updates with those of bitsandbytes' tables of levels.

Sources: Loshchilov & Hutter 2019 (AdamW), Dettmers et al. 2022 (8-bit moments by blocks).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ..model.weights import local_part, local_rows
from .compile import has_compiler
from .rounding import mixed, random_bits, round_at_random

BLOCK = 256  # numbers that share a scale
SMALL = 4096  # a parameter of fewer numbers keeps float32 moments: norms, biases
PIECE = 2**22  # numbers at a time where nothing is compiled; a multiple of BLOCK
TINY = torch.finfo(torch.float32).tiny


def first_to_8_bits(moments: Tensor) -> tuple[Tensor, Tensor]:
    """[N] float32 -> levels -127..127 [N] int8, scales [N / BLOCK] float32."""
    blocks = moments.view(-1, BLOCK)
    scale = blocks.abs().amax(1)
    share = blocks.abs() / scale.clamp(min=TINY)[:, None]
    levels = (share.sqrt() * 127).round().copysign(blocks)
    return levels.to(torch.int8).view(-1), scale


def first_from_8_bits(levels: Tensor, scale: Tensor) -> Tensor:
    root = levels.view(-1, BLOCK).float() / 127
    return (root * root.abs() * scale[:, None]).view(-1)


def second_to_8_bits(moments: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """[N] float32 >= 0, [N] in 0..1 -> levels 0..255 [N] uint8, scales [N / BLOCK] float32.

    Level 0 is 0 alone: a moment that is small for its block is kept too large, so that its number
    moves less, and never by a division by nothing.
    """
    blocks = moments.view(-1, BLOCK)
    scale = blocks.amax(1)
    share = blocks / scale.clamp(min=TINY)[:, None]
    levels = (share.sqrt().sqrt() * 255 + noise.view(-1, BLOCK)).floor().clamp(1, 255)
    return torch.where(blocks > 0, levels, 0).to(torch.uint8).view(-1), scale


def second_from_8_bits(levels: Tensor, scale: Tensor) -> Tensor:
    square = (levels.view(-1, BLOCK).float() / 255).square()
    return (square.square() * scale[:, None]).view(-1)


def move(
    weight: Tensor,
    gradient: Tensor,
    kept: list[Tensor],
    begin: int,
    key: Tensor,
    step: Tensor,
    bad: Tensor,
    factor: Tensor,
    rate: Tensor,
    decay: Tensor,
    betas: tuple[float, float],
    eps: float,
) -> None:
    """One step of AdamW, in place, on N numbers that begin at the place `begin` of their parameter.

    weight, gradient: [N]; kept: both moments [N] float32, or levels and scale of the first and of
    the second. Scalars: key (of the random bits), step (counts from 1), bad (bool: change nothing),
    factor (of the gradients), rate, decay (what a weight loses in this step).
    """
    bits = random_bits(key, begin, len(weight))
    in_8_bits = len(kept) == 4
    first = first_from_8_bits(*kept[:2]) if in_8_bits else kept[0]
    second = second_from_8_bits(*kept[2:]) if in_8_bits else kept[1]
    gradient = torch.where(bad, 0.0, gradient.float() * factor)
    first = first.lerp(gradient, 1 - betas[0])
    second = second.lerp(gradient.square(), 1 - betas[1])
    spread = (second / (1 - betas[1] ** step)).sqrt() + eps
    new = weight.float() * (1 - decay) - rate * (first / (1 - betas[0] ** step)) / spread
    if weight.dtype == torch.bfloat16:
        new = round_at_random(new, bits)
    found = [first, second]
    if in_8_bits:
        noise = ((bits >> 24) + 0.5) / 256  # 8 bits that rounding the weight does not use
        found = [*first_to_8_bits(first), *second_to_8_bits(second, noise)]
    for held, changed in zip((weight, *kept), (new, *found), strict=True):
        held.copy_(torch.where(bad, held, changed))


def kernel(device: torch.device) -> Callable[..., None] | None:
    """`move` in one kernel, for any number of numbers; None where there is no compiler."""
    return torch.compile(move, dynamic=True) if has_compiler(device) else None


class LowBitAdamW(torch.optim.Optimizer):
    """AdamW over bf16 or float32 parameters, with moments in float32 or 8 bits.

    The seed must be the same on every rank: then they round alike and stay equal. As torch's fused
    kernel it reads, on the device, grad_scale (by which gradients are divided) and found_inf (1:
    change nothing), which are set before a step.
    """

    def __init__(
        self, groups: list[dict], lr: float, betas: tuple, eps: float, seed: int, in_8_bits: bool
    ):
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})
        self.parameters = [p for group in self.param_groups for p in group["params"]]
        self.in_8_bits, device = in_8_bits, self.parameters[0].device
        self.grad_scale = torch.ones((), device=device)
        self.found_inf = torch.zeros((), device=device)
        numbers = torch.arange(len(self.parameters), device=device)
        self.keys = mixed(numbers + 2654435761 * seed % 2**32)  # mixed again with each step
        self.kernel = kernel(device)

    def init_state(self, group: dict, parameter: Tensor, *_: int) -> None:
        """What is kept of a parameter, before its first step."""
        state = {"step": torch.zeros((), device=parameter.device)}
        if self.in_8_bits and parameter.numel() >= SMALL and parameter.numel() % BLOCK == 0:
            types = {"exp_avg": torch.int8, "exp_avg_sq": torch.uint8}
            for name, dtype in types.items():
                state[name] = torch.zeros_like(parameter, dtype=dtype)
                scale = parameter.new_zeros(parameter.numel() // BLOCK, dtype=torch.float32)
                state[f"{name}_scale"] = scale
        else:
            for name in ("exp_avg", "exp_avg_sq"):
                state[name] = torch.zeros_like(parameter, dtype=torch.float32)
        self.state[parameter] = state

    @torch.no_grad()
    def step(self, closure: Callable | None = None) -> None:
        for parameter in self.parameters:
            if not self.state[parameter]:
                self.init_state({}, parameter)
        moved = [p for p in self.parameters if p.grad is not None]
        good = [1 - self.found_inf] * len(moved)
        torch._foreach_add_([self.state[p]["step"] for p in moved], good)
        steps = torch.stack([self.state[p]["step"] for p in self.parameters])
        keys = dict(zip(self.parameters, mixed(self.keys + steps.long())))
        bad, factor = self.found_inf > 0, 1 / self.grad_scale
        for group in self.param_groups:
            rate = torch.full_like(factor, group["lr"])
            rates = rate, rate * group["weight_decay"], group["betas"], group["eps"]
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, keys[parameter], bad, factor, *rates)

    def _move(self, parameter: Tensor, key: Tensor, *scalars: object) -> None:
        step, *kept = (local_part(value) for value in self.state[parameter].values())
        begin = (local_rows(parameter).start or 0) * parameter.shape[1:].numel()
        weight, gradient = local_part(parameter).view(-1), local_part(parameter.grad).reshape(-1)
        kept = [value.view(-1) for value in kept]
        if self.kernel is not None:
            # Detached, a view knows no more of what it is a view: of each number of dimensions
            # torch would write a kernel of its own, and of the ninth none.
            weight, gradient, *kept = (value.detach() for value in (weight, gradient, *kept))
            self.kernel(weight, gradient, kept, begin, key, step, *scalars)
            return
        for start in range(0, len(weight), PIECE):
            numbers = slice(start, start + PIECE)
            blocks = slice(start // BLOCK, (start + PIECE) // BLOCK)
            of_block = [len(value) < len(weight) for value in kept]
            parts = [value[blocks if its else numbers] for value, its in zip(kept, of_block)]
            move(weight[numbers], gradient[numbers], parts, begin + start, key, step, *scalars)
