"""Mixed precision: which numbers are kept in which type.

In: the setting `--precision`. Out: an autocast context, and a model whose parameters have the types
that the setting asks for.

The one idea: what trains is kept in float32 and computed with in 16 bit by autocast (with
`--weights bf16` it is kept in bf16 too, and optim.py rounds its updates at random). What is frozen
needs no float32 copy: with bf16 (the type of the official weights, so nothing is lost) it is stored
as it is computed with. float16 has too narrow a range for that, so there everything stays float32.
"""

import torch
from torch import nn

from ..errors import UserError
from ..model.experts import has_grouped_product
from ..model.weights import is_adapter
from ..settings import Settings
from ..tuning.freeze import freeze

TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Context in which matrix products are computed in `precision`."""
    return torch.autocast(device.type, TYPES[precision], enabled=precision != "fp32")


def check_device(device: torch.device, precision: str) -> None:
    """Raises UserError for a type that the device has no products in; the emulation of bf16 that
    torch has for old GPUs is slower than float32."""
    if precision != "bf16":
        return
    if device.type == "cuda" and not has_grouped_product(device):
        name, (major, minor) = device_name(device), torch.cuda.get_device_capability(device)
        raise UserError(
            f"--precision bf16: {name} has compute capability {major}.{minor}, and bf16 begins at "
            "8.0; use --precision fp16"
        )
    try:
        one = torch.ones(1, 1, device=device, dtype=torch.bfloat16)
        torch.mm(one, one)
    except (RuntimeError, TypeError) as error:  # MPS before macOS 14
        first = str(error).splitlines()[0]
        raise UserError(f"--precision bf16: not on {device.type} ({first}); use fp16") from None


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def kernels(device: torch.device, precision: str, by_flex: bool) -> str:
    """Which kernels a device gets, in a line; by_flex: SAM's attention is one compiled kernel."""
    place = device_name(device)
    if device.type == "cuda":
        place += " (compute capability {}.{})".format(*torch.cuda.get_device_capability(device))
    if device.type == "cpu":
        experts = "one after the other, or small ones in a grouped product"
    else:
        experts = "in a grouped product" if has_grouped_product(device) else "one after the other"
    attention = "flex_attention" if by_flex else "scaled_dot_product_attention"
    return f"{place}: products in {precision}, experts {experts}, SAM's attention by {attention}"


def set_parameter_types(model: nn.Module, precision: str, weights: str = "fp32") -> None:
    """`weights` for what trains; bf16 for what is frozen, if that is the precision.

    Raises UserError for bf16 weights where they make no sense.
    """
    if weights == "bf16" and precision != "bf16":
        raise UserError(f"--weights bf16: cannot compute in {precision}; use --precision bf16")
    if weights == "bf16" and any(is_adapter(name) for name, _ in model.named_parameters()):
        raise UserError("--weights bf16: adapters are float32, and their base is bf16 already")
    trained, frozen = TYPES[weights], TYPES["bf16" if precision == "bf16" else "fp32"]
    for parameter in model.parameters():
        dtype = trained if parameter.requires_grad else frozen
        if parameter.dtype != dtype:
            parameter.data = parameter.data.to(dtype)


def hold_as_base(model: nn.Module) -> None:
    """Whole parameters that came with an adapter (adapter.py) in the type of the base's others."""
    beside = {name: model.get_parameter(name) for name in model.adapter.beside}
    others = ((n, p) for n, p in model.named_parameters() if n not in beside and not is_adapter(n))
    _, first = next(others)
    for parameter in beside.values():
        parameter.data = parameter.data.to(first.dtype)


def hold_as_trained(model: nn.Module, settings: Settings) -> None:
    """The parameters in the types that they had in a run with these settings, however a file holds
    them. Sets requires_grad as the run did."""
    freeze(model, settings.model.tune)
    set_parameter_types(model, settings.optim.precision, settings.optim.weights)
