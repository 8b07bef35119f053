"""AdamW, the cosine schedule, clipping and the float16 loss scaler.

In: gradients (scaled, summed over micro-steps and ranks). Out: moved parameters, the gradient norm.

The one idea: an optimizer step never asks the device a question. Whether the gradients are finite is
a number on the device; the fused AdamW kernel reads it there and does nothing if it says so, and the
loss scale is halved or doubled there. The host learns of it when it logs.

Sources: Loshchilov & Hutter 2019 (AdamW), 2017 (cosine), Micikevicius et al. 2018 (loss scaling).
"""

import math

import torch
from torch import Tensor, nn

from .model import DeepseekOCR
from .weights import is_adapter


def cosine_rate(step: int, steps: int, peak: float, warmup_ratio: float, min_ratio: float) -> float:
    """Learning rate of optimizer step `step` (0-based) of `steps`: a pure function, no state.

    Linear from 0 over the first `warmup_ratio` of the steps, then a half cosine from `peak` down to
    `peak * min_ratio`, reached at the last step.
    """
    warmup = round(steps * warmup_ratio)
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - 1 - warmup)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return peak * (min_ratio + (1 - min_ratio) * cosine)


def parameter_groups(model: DeepseekOCR, weight_decay: float, lora_plus_ratio: float) -> list[dict]:
    """The trainable parameters by decay and by rate.

    Decay on matrices only: norms and biases are vectors; tables (embeddings, positions, class
    token) are looked up rather than multiplied with, so shrinking them shrinks tokens that are
    seldom seen. With LoRA+ an adapter's B, which starts at zero, moves `lora_plus_ratio` times as
    fast as its A.
    """
    tables = ("embed_tokens.weight", "pos_embed", "position_embedding.weight", "rel_pos_h",
              "rel_pos_w")  # fmt: skip
    groups: dict[tuple, list] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            matrix = parameter.ndim >= 2 and not name.endswith(tables)
            is_b = is_adapter(name) and name.endswith(".B")
            key = (weight_decay if matrix else 0.0, lora_plus_ratio if is_b else 1.0)
            groups.setdefault(key, []).append(parameter)
    return [
        {"params": held, "weight_decay": decay, "rate_factor": factor}
        for (decay, factor), held in groups.items()
    ]


def make_adamw(
    model: DeepseekOCR, betas, weight_decay: float, lora_plus_ratio: float = 1.0
) -> torch.optim.AdamW:
    """Fused AdamW over the trainable parameters; the rate is set before each step."""
    groups = parameter_groups(model, weight_decay, lora_plus_ratio)
    return torch.optim.AdamW(groups, lr=0.0, betas=tuple(betas), eps=1e-8, fused=True)


class LossScaler:
    """Dynamic loss scale for float16: halved on overflow, doubled after `interval` good steps.

    For the other precisions the scale stays 1, and only the skipping of bad steps is used. All
    state is in device tensors: scale, good (steps since the last change), skipped (steps in all).
    """

    def __init__(self, enabled: bool, device, initial: float = 2.0**16, interval: int = 2000):
        self.enabled, self.interval = enabled, interval
        self.scale = torch.tensor(initial if enabled else 1.0, device=device)
        self.good = torch.zeros((), device=device)
        self.skipped = torch.zeros((), device=device)

    def update(self, overflow: Tensor) -> None:
        """overflow: float32 scalar, 1 if the step was skipped, else 0."""
        self.skipped += overflow
        if not self.enabled:
            return
        self.good = (self.good + 1) * (1 - overflow)
        grow = self.good >= self.interval
        self.scale = torch.where(overflow > 0, self.scale * 0.5, self.scale).clamp(min=2.0**-14)
        self.scale = torch.where(grow, self.scale * 2, self.scale)
        self.good = torch.where(grow, torch.zeros_like(self.good), self.good)

    def state(self) -> dict[str, Tensor]:
        return {"scale": self.scale, "good": self.good, "skipped": self.skipped}

    def load_state(self, state: dict[str, Tensor]) -> None:
        for name, value in self.state().items():
            value.copy_(state[name])


@torch.no_grad()
def clip_and_step(
    optimizer: torch.optim.Optimizer, scaler: LossScaler, rate: float, clip: float
) -> Tensor:
    """Unscales, clips to the norm `clip` (0: not at all), steps; returns the norm before clipping.

    A step whose gradients are not all finite changes nothing but the scaler.
    """
    gradients = [
        p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None
    ]
    norm = nn.utils.get_total_norm(gradients) / scaler.scale
    overflow = (~norm.isfinite()).float()
    factor = (clip / (norm + 1e-6)).clamp(max=1.0) if clip else torch.ones_like(norm)
    torch._foreach_mul_(gradients, factor / scaler.scale)
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("rate_factor", 1.0)
    optimizer.found_inf = overflow  # read by the fused kernel: skip the step where it is 1
    optimizer.step()
    scaler.update(overflow)
    return norm
