"""AdamW, the cosine schedule, clipping and the float16 loss scaler.

In: gradients (scaled, summed over micro-steps and ranks). Out: moved parameters, the gradient norm.

The one idea: an optimizer step never asks the device a question. Whether the gradients are finite
is a number on the device; the fused AdamW kernel reads it there and does nothing if it says so, and
the loss scale is halved or doubled there. The host learns of it when it logs. (bitsandbytes' paged
AdamW knows no such number; with it, and only with it, each step waits for the answer.)

Sources: Loshchilov & Hutter 2019 (AdamW), 2017 (cosine), Micikevicius et al. 2018 (loss scaling).
"""

import math

import torch
import torch.distributed as dist
from torch import Tensor

from ..errors import UserError
from ..model.deepseek_ocr import ENCODER, DeepseekOCR, place_of
from ..model.weights import fill, is_adapter, local_part
from ..settings import OptimSettings, Settings
from .adamw import LowBitAdamW


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


def own_rates(model: DeepseekOCR, optim: OptimSettings) -> dict[str, float]:
    """Part of the model -> its peak rate as a multiple of --lr, of the parts that have their own.

    Raises UserError for a rate of something that does not train.
    """
    trains = {place_of(name) for name, p in model.named_parameters() if p.requires_grad}
    factors: dict[str, float] = {}
    for option, rate, parts in (
        ("--lr-projector", optim.lr_projector, {"projector"}),
        ("--lr-encoder", optim.lr_encoder, ENCODER),
    ):
        if rate and not parts & trains:
            raise UserError(f"{option} {rate:g}: none of its parameters trains (--tune)")
        factors |= dict.fromkeys(parts, rate / optim.lr) if rate else {}
    return factors


def parameter_groups(
    model: DeepseekOCR,
    weight_decay: float,
    lora_plus_ratio: float,
    rates: dict[str, float] | None = None,
) -> list[dict]:
    """The trainable parameters by decay and by rate. rates: as `own_rates` gives them.

    Decay on matrices only: norms and biases are vectors; tables (embeddings, positions, class
    token) are looked up rather than multiplied with, so shrinking them shrinks tokens that are
    seldom seen. With LoRA+ an adapter's B, which starts at zero, moves `lora_plus_ratio` times as
    fast as its A.
    """
    tables = (
        "embed_tokens.weight",
        "pos_embed",
        "position_embedding.weight",
        "rel_pos_h",
        "rel_pos_w",
    )
    groups: dict[tuple, list] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            matrix = parameter.ndim >= 2 and not name.endswith(tables)
            is_b = is_adapter(name) and name.endswith(".B")
            factor = rates.get(place_of(name), 1.0) if rates else 1.0
            factor *= lora_plus_ratio if is_b else 1.0
            key = (weight_decay if matrix else 0.0, factor)
            groups.setdefault(key, []).append(parameter)
    return [
        {"params": held, "weight_decay": decay, "rate_factor": factor}
        for (decay, factor), held in groups.items()
    ]


def check(settings: Settings) -> None:
    """Raises UserError for an optimizer that would lose updates."""
    optim = settings.optim
    if optim.optimizer == "paged_adamw8bit" and optim.weights == "bf16":
        raise UserError(
            "--optimizer paged_adamw8bit: rounds bf16 weights to the nearest, and small updates "
            "are lost; with --weights bf16 use adamw8bit"
        )


def make_adamw(
    model: DeepseekOCR,
    betas: tuple[float, float],
    weight_decay: float,
    lora_plus_ratio: float = 1.0,
    kind: str = "adamw",
    seed: int = 0,
    rates: dict[str, float] | None = None,
) -> torch.optim.Optimizer:
    """AdamW over the trainable parameters; the rate is set before each step.

    kind adamw: torch's fused one, or for bf16 parameters `LowBitAdamW`; adamw8bit: that one with
    moments in 8 bits; paged_adamw8bit: bitsandbytes', over float32 parameters alone, with moments
    in 8 bits and in memory that a GPU may push out to the host.
    """
    groups = parameter_groups(model, weight_decay, lora_plus_ratio, rates)
    options = {"lr": 0.0, "betas": tuple(betas), "eps": 1e-8}
    in_bf16 = any(p.dtype == torch.bfloat16 for group in groups for p in group["params"])
    if kind == "paged_adamw8bit":
        import bitsandbytes  # seconds, for which --help need not wait

        return bitsandbytes.optim.PagedAdamW8bit(groups, **options)
    if kind == "adamw8bit" or in_bf16:
        return LowBitAdamW(groups, **options, seed=seed, in_8_bits=kind == "adamw8bit")
    return torch.optim.AdamW(groups, **options, fused=True)


def prepare_state(optimizer: torch.optim.Optimizer) -> None:
    """Makes what the optimizer keeps of each parameter, as its first step would: for resuming."""
    for g, group in enumerate(optimizer.param_groups):
        for p, parameter in enumerate(group["params"]):
            if len(optimizer.state[parameter]):
                continue
            if hasattr(optimizer, "init_state"):  # all but torch's
                optimizer.init_state(group, parameter, g, p)
                continue
            optimizer.state[parameter] = {
                "step": torch.zeros((), device=parameter.device),
                "exp_avg": torch.zeros_like(parameter, dtype=torch.float32),
                "exp_avg_sq": torch.zeros_like(parameter, dtype=torch.float32),
            }


def state_tensors(optimizer: torch.optim.Optimizer, named: dict[str, Tensor]) -> dict[str, Tensor]:
    """PARAMETER/KEY -> what the optimizer keeps; a copy where it is no tensor (a step count)."""
    tensors = {}
    for name, parameter in named.items():
        for key, value in optimizer.state.get(parameter, {}).items():
            if not key.startswith("qmap"):  # bitsandbytes' table of levels, the same for all
                tensors[f"{name}/{key}"] = torch.as_tensor(value)
    return tensors


def restore_state(
    optimizer: torch.optim.Optimizer, named: dict[str, Tensor], tensors: dict[str, Tensor]
) -> None:
    """Puts back what `state_tensors` gave; names and shapes have been checked."""
    for name, parameter in named.items():
        for key, value in optimizer.state.get(parameter, {}).items():
            stored = tensors.get(f"{name}/{key}")
            if torch.is_tensor(value) and stored is not None:
                fill(value, stored)
            elif stored is not None:
                optimizer.state[parameter][key] = stored.item()


class LossScaler:
    """Dynamic loss scale for float16: halved on overflow, doubled after `interval` good steps.

    For the other precisions the scale stays 1, and only the skipping of bad steps is used. All
    state is in device tensors: scale, good (steps since the last change), skipped (steps in all),
    streak (steps skipped one after the other until now).
    """

    def __init__(
        self, enabled: bool, device: torch.device, initial: float = 2.0**16, interval: int = 2000
    ):
        self.enabled, self.interval = enabled, interval
        self.scale = torch.tensor(initial if enabled else 1.0, device=device)
        self.good = torch.zeros((), device=device)
        self.skipped = torch.zeros((), device=device)
        self.streak = torch.zeros((), device=device)

    def update(self, overflow: Tensor) -> None:
        """overflow: float32 scalar, 1 if the step was skipped, else 0."""
        self.skipped += overflow
        self.streak = (self.streak + 1) * overflow
        if not self.enabled:
            return
        self.good = (self.good + 1) * (1 - overflow)
        grow = self.good >= self.interval
        self.scale = torch.where(overflow > 0, self.scale * 0.5, self.scale).clamp(min=2.0**-14)
        self.scale = torch.where(grow, self.scale * 2, self.scale)
        self.good = torch.where(grow, torch.zeros_like(self.good), self.good)

    def state(self) -> dict[str, Tensor]:
        return {"scale": self.scale, "good": self.good, "skipped": self.skipped, "row": self.streak}

    def load_state(self, state: dict[str, Tensor]) -> None:
        for name, value in self.state().items():
            value.copy_(state[name])


def total_norm(gradients: list[Tensor]) -> Tensor:
    """Euclidean norm of all of them together; of shards, over all ranks. Float32 throughout: the
    norm of a bf16 gradient rounded to bf16 would be off by up to 0.4 %, and of each shard anew."""
    parts = [local_part(gradient) for gradient in gradients]
    square = torch.stack(torch._foreach_norm(parts, 2, torch.float32)).square().sum()
    if parts[0] is not gradients[0]:  # shards
        dist.all_reduce(square)
    return square.sqrt()


def _scales_in_kernel(optimizer: torch.optim.Optimizer, gradients: list[Tensor]) -> bool:
    """Whether the optimizer's own kernel scales gradients, so that no pass is needed for it."""
    whole = local_part(gradients[0]) is gradients[0]
    return isinstance(optimizer, LowBitAdamW) or isinstance(optimizer, torch.optim.AdamW) and whole


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
    norm = total_norm(gradients) / scaler.scale
    overflow = (~norm.isfinite()).float()
    factor = (clip / (norm + 1e-6)).clamp(max=1.0) if clip else torch.ones_like(norm)
    if _scales_in_kernel(optimizer, gradients):
        optimizer.grad_scale = scaler.scale / factor  # the gradients are divided by it
    else:
        torch._foreach_mul_(gradients, factor / scaler.scale)
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("rate_factor", 1.0)
    if isinstance(optimizer, torch.optim.AdamW | LowBitAdamW):
        optimizer.found_inf = overflow  # read on the device: skip the step where it is 1
        optimizer.step()
    elif not overflow.item():  # bitsandbytes cannot be told there: the host waits for the gradients
        optimizer.step()
    scaler.update(overflow)
    return norm
