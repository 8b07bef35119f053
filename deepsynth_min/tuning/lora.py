"""LoRA: a frozen weight W acts as W + scale * B A, and only A [R, in] and B [out, R] train.

In: a model and which of its linears to adapt. Out: the same model, frozen, each of those linears
held as the `base` of a `LoraLinear` and each layer's stacked experts as that of a `LoraExperts`.

The one idea: an adapter is a low-rank path beside a linear, whatever that linear is made of. It
needs the base only as something that multiplies, so the base may be float32, bf16 or quantised
(quant.py), and one class serves them all; both products are fused (adapted_product.py).
The experts of a layer have one A and B each, stacked like the experts themselves ([E, R, in],
[E, out, R]) and multiplied by the same grouped product. B starts at zero, so an adapted model
begins as exactly the base model.

A and B are float32. scale = alpha / R, or alpha / sqrt(R) with rsLoRA. Sources: Hu et al. 2021
(LoRA), Kalajdzievski 2023 (rsLoRA), Hayou et al. 2024 (LoRA+, see optim.py).
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..model.experts import grouped_product, mixture_of_experts_grouped
from .adapted_product import adapted_product
from .targets import PROJECTIONS, STACKED, adaptable, official_paths, peft_fields


@dataclass(frozen=True)
class Base:
    """The checkpoint that an adapter stands on."""

    name: str  # hub id or directory
    revision: str | None
    digest: str  # adapter.base_digest


@dataclass(frozen=True)
class LoraConfig:
    """What one adapter's pairs have in common, and what they stand on."""

    rank: int
    alpha: float
    dropout: float = 0.0  # on what enters A, in training
    rslora: bool = False
    target_modules: str | tuple[str, ...] = ()  # as in adapter_config.json; filled in by `attach`
    exclude_modules: str | tuple[str, ...] = ()  # as there; the same
    modules_to_save: tuple[str, ...] = ()  # as there; of an adapter that is attached: none
    beside: tuple[str, ...] = ()  # whole parameters that came with it, in place of the base's
    base: Base | None = None  # must be known when the adapter is saved

    @property
    def scale(self) -> float:
        return self.alpha / (self.rank**0.5 if self.rslora else self.rank)


class LoraPair(nn.Module):
    """x [..., in] -> scale * B A dropout(x) [..., out].

    leading_shape: (E,) for the pairs of E experts, stacked in one.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        config: LoraConfig,
        device: torch.device | str,
        leading_shape: tuple[int, ...] = (),
    ):
        super().__init__()
        self.scale, self.dropout = config.scale, config.dropout
        size = {"device": device, "dtype": torch.float32}
        self.A = nn.Parameter(torch.empty(*leading_shape, config.rank, in_features, **size))
        self.B = nn.Parameter(torch.zeros(*leading_shape, out_features, config.rank, **size))
        bound = in_features**-0.5  # as torch initialises a Linear
        nn.init.uniform_(self.A, -bound, bound)

    def forward(self, x: Tensor, ends: Tensor | None = None) -> Tensor:
        """ends: row ends of the experts, if x [M, in] holds their rows one after the other."""
        if not torch.is_autocast_enabled(x.device.type):
            x = x.to(self.A.dtype)
        x = F.dropout(x, self.dropout, self.training)
        if ends is None:
            return F.linear(F.linear(x, self.A), self.B) * self.scale
        # grouped_mm wants rows of whole 16 bytes: a narrow rank is filled up with zeros.
        missing = -self.A.shape[1] % 8
        A, B = F.pad(self.A, (0, 0, 0, missing)), F.pad(self.B, (0, missing))
        return grouped_product(grouped_product(x, A, ends), B, ends) * self.scale

    def delta(self) -> Tensor:
        """What the pair adds to the base's weight: [..., out, in], float32."""
        return (self.B.detach() @ self.A.detach()) * self.scale


class LoraLinear(nn.Module):
    """A linear and its adapter."""

    def __init__(self, base: nn.Module, config: LoraConfig):
        super().__init__()
        self.base = base
        self.lora = LoraPair(base.in_features, base.out_features, config, device_of(base))

    def forward(self, x: Tensor) -> Tensor:
        return self.fused(x) if self.fuses(x) else self.plain(x)

    def fuses(self, x: Tensor) -> bool:
        """Whether it can: in one compute type, without dropout between the products."""
        in_one_type = torch.is_autocast_enabled(x.device.type) or x.dtype == self.lora.A.dtype
        return in_one_type and not (self.lora.dropout > 0 and self.training)

    def fused(self, x: Tensor) -> Tensor:
        """The form with fewer passes."""
        pair, base = self.lora, self.base
        return adapted_product(x, base.weight, base.bias, pair.A, pair.B, pair.scale)

    def plain(self, x: Tensor) -> Tensor:
        """The plain form: the linear, the low-rank path beside it, and their sum."""
        out = self.base(x)
        return out + self.lora(x).to(out.dtype)


class LoraExperts(nn.Module):
    """The stacked experts of a layer and their adapters, one pair per expert and projection."""

    def __init__(self, base: nn.Module, config: LoraConfig):
        super().__init__()
        self.base, self.num_experts = base, base.num_experts
        D, I, common = base.width, base.inner, (config, device_of(base), (base.num_experts,))
        self.lora_gate = LoraPair(D, I, *common)
        self.lora_up = LoraPair(D, I, *common)
        self.lora_down = LoraPair(I, D, *common)

    def project_in(self, rows: Tensor, ends: Tensor) -> Tensor:
        out = self.base.project_in(rows, ends)  # [M, 2I]
        added = torch.cat([self.lora_gate(rows, ends), self.lora_up(rows, ends)], dim=-1)
        return out + added.to(out.dtype)

    def project_out(self, inner: Tensor, ends: Tensor) -> Tensor:
        out = self.base.project_out(inner, ends)
        return out + self.lora_down(inner, ends).to(out.dtype)

    def forward(self, x: Tensor, chosen: Tensor, weight: Tensor) -> Tensor:
        return mixture_of_experts_grouped(self, x, chosen, weight)


def device_of(module: nn.Module) -> torch.device:
    return next(iter([*module.parameters(), *module.buffers()])).device


def attach(model: nn.Module, config: LoraConfig, chosen: set[str]) -> None:
    """Freezes the model and puts a fresh pair beside each chosen linear, which alone trains.

    Random numbers: the default generator's.
    """
    assert model.adapter is None, "the model has an adapter already"
    targets, excluded = config.target_modules, config.exclude_modules
    if not targets:
        targets, excluded = peft_fields(official_paths(model), chosen)
    holders = adaptable(model)
    model.requires_grad_(False)
    for holder in dict.fromkeys(holders[path] for path in holders if path in chosen):
        owner, _, last = holder.rpartition(".")
        base = model.get_submodule(holder)
        kind = LoraExperts if isinstance(base, STACKED) else LoraLinear
        setattr(model.get_submodule(owner), last, kind(base, config).train(base.training))
    model.adapter = replace(config, target_modules=targets, exclude_modules=excluded)


def pairs(model: nn.Module) -> dict[str, LoraPair]:
    """Path of the adapted module, and for experts the projection -> its pair, in model order.

    >>> # model.layers.0.self_attn.q_proj, ..., model.layers.1.mlp.experts/gate, ...
    """
    found = {}
    for path, module in model.named_modules():
        if isinstance(module, LoraLinear):
            found[path] = module.lora
        elif isinstance(module, LoraExperts):
            for kind in PROJECTIONS:
                found[f"{path}/{kind}"] = getattr(module, f"lora_{kind}")
    return found


def adapter_views(model: nn.Module) -> dict[str, Tensor]:
    """PEFT's tensor name -> the A or B, or the expert's slice of a stacked one, that holds it."""
    views = {}
    for path, pair in pairs(model).items():
        path, _, kind = path.partition("/")
        for letter, parameter in (("A", pair.A.detach()), ("B", pair.B.detach())):
            if kind:
                for e, own in enumerate(parameter):
                    views[f"base_model.model.{path}.{e}.{kind}_proj.lora_{letter}.weight"] = own
            else:
                views[f"base_model.model.{path}.lora_{letter}.weight"] = parameter
    return views
