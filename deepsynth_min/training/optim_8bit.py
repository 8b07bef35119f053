"""AdamW with moments in 8 bits over bf16 weights: full tuning in the least memory.

In: gradients in bf16. Out: moved bf16 weights. Beside weight and gradient, 2 bytes each, a number
that trains takes 2 bytes and a 32nd of moments.

The one idea: bitsandbytes' block-wise kernel moves a float32 copy of a piece of the weights, and
what it made is rounded to bf16 at random, as `RoundingAdamW` does; rounded to the nearest, most
updates would be lost. A piece is at most PIECE numbers, so that the copies take little memory
whatever the size of a parameter (the experts of a layer are one of 147 million numbers).

Source: Dettmers et al. 2022 (8-bit optimizers). This module imports bitsandbytes, which takes
seconds: `make_adamw` imports it where it is asked for.
"""

import torch
from bitsandbytes import functional, optim

from . import rounding

BLOCK = 256  # numbers that share a scale in bitsandbytes' states
PIECE = 2**24  # a multiple of BLOCK; 64 MiB in float32


class RoundingAdamW8bit(optim.AdamW8bit):
    """bitsandbytes' AdamW8bit, or with is_paged its PagedAdamW8bit, over bf16 parameters."""

    def __init__(self, groups: list[dict], seed: int, **options: object):
        super().__init__(groups, **options)
        device = self.param_groups[0]["params"][0].device
        self.generator = rounding.generator_on(device, seed)

    @torch.no_grad()
    def update_step(self, group: dict, p: torch.Tensor, gindex: int, pindex: int) -> None:
        """bitsandbytes calls it for each parameter that has a gradient."""
        state, config = self.state[p], self.get_config(gindex, pindex, group)
        state["step"] += 1
        weight, gradient = p.detach().view(-1), p.grad.reshape(-1)
        moments = [state[name].view(-1) for name in ("state1", "state2")]
        for begin in range(0, len(weight), PIECE):
            piece = slice(begin, begin + PIECE)
            moved, pushed = weight[piece].float(), gradient[piece].float()
            parts = [moment[piece] for moment in moments]
            if moments[0].dtype == torch.uint8:
                blocks = slice(begin // BLOCK, (begin + PIECE) // BLOCK)
                self._move_8bit(moved, pushed, parts, state, blocks, config)
            else:  # a small parameter
                self._move_32bit(moved, pushed, parts, state, config)
            weight[piece] = rounding.round_at_random(moved, self.generator)

    def _move_8bit(
        self,
        weight: torch.Tensor,
        gradient: torch.Tensor,
        moments: list[torch.Tensor],
        state: dict,
        blocks: slice,
        config: dict,
    ) -> None:
        functional.optimizer_update_8bit_blockwise(
            self.optimizer_name,
            gradient,
            weight,
            *moments,
            *config["betas"],
            0.0,  # a third beta, and alpha, of other optimizers
            0.0,
            config["eps"],
            state["step"],
            config["lr"],
            state["qmap1"],
            state["qmap2"],
            state["absmax1"][blocks],
            state["absmax2"][blocks],
            weight_decay=config["weight_decay"],
        )

    def _move_32bit(
        self,
        weight: torch.Tensor,
        gradient: torch.Tensor,
        moments: list[torch.Tensor],
        state: dict,
        config: dict,
    ) -> None:
        first, second = config["betas"]
        functional.optimizer_update_32bit(
            self.optimizer_name,
            gradient,
            weight,
            moments[0],
            first,
            config["eps"],
            state["step"],
            config["lr"],
            moments[1],
            second,
            weight_decay=config["weight_decay"],
        )
