"""Adapter files, as PEFT writes and reads them: adapter_config.json and adapter_model.safetensors.

In: a model with an adapter (lora.py); out: a directory that PEFT and servers load. And back: such a
directory, ours or PEFT's, becomes an adapter on a model.

The one idea: the file decides which linears are adapted. Its tensor names give the modules, its
configuration the rank and scale; the two must agree with each other and with the model, or nothing
is loaded. What would change the computation in a way that lora.py does not know (DoRA, biases,
other ranks for some modules) is refused by name.

Whole weights beside the pairs (a projector that trained too) are in a file of ours alone; PEFT's
are among the pairs, of the modules that its modules_to_save names. They replace the base's and stay
with the adapter from then on, whether they go on training or not.

Our files also carry, as metadata of the safetensors file that other readers pass over, a digest of
the base checkpoint: an adapter is a difference, and means nothing over another base.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from ..errors import UserError, read_json
from ..model.weights import is_adapter, official_views, on_host, open_tensors, read_tensors, stored
from .lora import Base, LoraConfig, adapter_views, attach
from .targets import STACKED, adaptable, check_whole_layers, official_paths, selected

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
OTHERS = "trained.safetensors"  # ours alone: what trained beside the adapter, e.g. the projector
_PREFIX = "base_model.model."
# Fields that must have one of these values: any other would be another computation.
_ONLY = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "use_dora": (False,),
    "lora_bias": (False,),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "fan_in_fan_out": (False,),
    "layer_replication": (None,),
    "target_parameters": (None, []),
    "trainable_token_indices": (None,),
    "use_qalora": (False,),
    "init_lora_weights": (True, False, "gaussian"),  # others (pissa, olora, ...) change the base
}


def base_digest(directory: Path) -> str:
    """Identifies a checkpoint by its names, shapes and first values, whatever type they are in."""
    digest = hashlib.sha256()
    with ExitStack() as stack:
        source = open_tensors(directory, stack)
        for name in sorted(source):
            part = source[name].get_slice(name)
            shape = part.get_shape()
            row = part[:1] if len(shape) > 1 else part[:]
            values = row.flatten()[:64].to(torch.bfloat16).view(torch.int16)
            digest.update(f"{name} {shape} {values.tolist()}\n".encode())
    return digest.hexdigest()


def peft_config(config: LoraConfig) -> dict:
    """adapter_config.json: all fields that servers and PEFT look at, and no other."""
    alpha, targets, excluded = config.alpha, config.target_modules, config.exclude_modules
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": config.base.name,
        "revision": config.base.revision,
        "r": config.rank,
        "lora_alpha": int(alpha) if float(alpha).is_integer() else alpha,
        "lora_dropout": config.dropout,
        "target_modules": targets if isinstance(targets, str) else list(targets),
        "exclude_modules": (excluded if isinstance(excluded, str) else list(excluded)) or None,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "use_rslora": config.rslora,
        "use_dora": False,
        "modules_to_save": None,
        "rank_pattern": {},
        "alpha_pattern": {},
        "inference_mode": True,
    }


def trained_beside(model: nn.Module) -> dict[str, torch.Tensor]:
    """Name -> parameter, of those that train, or came with the adapter, and belong to none."""
    return {
        name: parameter.detach()
        for name, parameter in model.named_parameters()
        if (parameter.requires_grad or name in model.adapter.beside) and not is_adapter(name)
    }


def save_adapter(model: nn.Module, directory: Path) -> None:
    """Writes the files into `directory`; the caller gives it its final name."""
    write_adapter(model.adapter, adapter_views(model), trained_beside(model), directory)


def write_adapter(config: LoraConfig, tensors: dict, others: dict, directory: Path) -> None:
    """The files of an adapter. `tensors` by PEFT's names, `others` by ours."""
    text = json.dumps(peft_config(config), indent=2)
    (directory / CONFIG).write_text(text + "\n", encoding="utf-8")
    metadata = {"format": "pt", "base_digest": config.base.digest}
    save_file(
        {name: on_host(tensor) for name, tensor in tensors.items()},
        directory / TENSORS,
        metadata=metadata,
    )
    if others:
        save_file(
            {name: on_host(tensor) for name, tensor in others.items()},
            directory / OTHERS,
            metadata={"format": "pt"},
        )


def read_config(directory: Path) -> LoraConfig:
    """What adapter_config.json says. Raises UserError naming the field that cannot be honoured."""
    path = directory / CONFIG
    if not os.path.lexists(path):
        raise UserError(f"{directory}: no {CONFIG} in it; not an adapter")
    fields = read_json(path)
    if not isinstance(fields, dict):
        raise UserError(f"{path}: not a JSON object")
    for name, allowed in _ONLY.items():
        if fields.get(name, allowed[0]) not in allowed:
            raise UserError(f"{path}: {name} = {fields[name]!r:.100} is not supported")
    kinds = {
        "r": int,
        "lora_alpha": (int, float),
        "target_modules": (str, list),
        "lora_dropout": (int, float),
        "use_rslora": bool,
        "exclude_modules": (str, list),
        "modules_to_save": list,
    }
    defaults = {"lora_dropout": 0.0, "use_rslora": False}
    values = {name: fields.get(name, defaults.get(name)) for name in kinds}
    for name in ("exclude_modules", "modules_to_save"):
        values[name] = [] if values[name] is None else values[name]
    for name, value in values.items():
        sensible = isinstance(value, kinds[name]) and (kinds[name] is bool or value is not True)
        if name in ("r", "lora_alpha"):
            sensible = sensible and 0 < value < 2**31
        elif kinds[name] == (int, float):
            sensible = sensible and 0 <= value < 1
        elif isinstance(value, list):
            sensible = all(isinstance(target, str) for target in value)
        if not sensible:
            raise UserError(f"{path}: {name} = {value!r:.100} makes no sense")
    named = {
        name: values[name] if isinstance(values[name], str) else tuple(values[name])
        for name in ("target_modules", "exclude_modules", "modules_to_save")
    }
    return LoraConfig(
        rank=values["r"],
        alpha=float(values["lora_alpha"]),
        dropout=float(values["lora_dropout"]),
        rslora=values["use_rslora"],
        **named,
    )


def expected_shapes(model: nn.Module, rank: int, chosen: set[str]) -> dict[str, tuple]:
    """PEFT's tensor name -> shape, for an adapter on the linears `chosen` of a base model."""
    shapes, holders = {}, adaptable(model)
    for path in chosen:
        module = model.get_submodule(holders[path])
        if isinstance(module, STACKED):
            inner, outer = module.width, module.inner
            if path.endswith("down_proj"):
                inner, outer = outer, inner
        else:
            inner, outer = module.in_features, module.out_features
        shapes[f"{_PREFIX}{path}.lora_A.weight"] = (rank, inner)
        shapes[f"{_PREFIX}{path}.lora_B.weight"] = (outer, rank)
    return shapes


def _shapes(tensors: dict[str, torch.Tensor]) -> dict[str, tuple]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _adapted_paths(
    model: nn.Module, config: LoraConfig, names: Iterable[str], directory: Path
) -> set[str]:
    """The linears that the tensor names speak of, if they are what the configuration selects."""
    chosen = {re.sub(r"\.lora_[AB]\.weight$", "", name.removeprefix(_PREFIX)) for name in names}
    path, holders = directory / TENSORS, adaptable(model)
    if strange := sorted(chosen - holders.keys()):
        more = f", nor are {len(strange) - 1} more" if len(strange) > 1 else ""
        raise UserError(f"{path}: {strange[0]} is no linear of decoder or encoder{more}")
    check_whole_layers(holders, chosen, str(path))
    paths, where = official_paths(model), str(directory / CONFIG)
    meant = selected(paths, config.target_modules, where)
    meant -= selected(paths, config.exclude_modules, where)
    meant = {p for p in meant if not any(f".{m}." in f".{p}." for m in config.modules_to_save)}
    if meant != chosen:
        example = sorted(meant ^ chosen)[0]
        raise UserError(
            f"{directory}: target_modules does not select the linears in {TENSORS}, e.g. {example}"
        )
    return chosen


def _whole_weights(
    model: nn.Module, config: LoraConfig, names: Iterable[str], directory: Path
) -> dict[str, str]:
    """Tensor name, as PEFT writes it -> the parameter that it replaces, of all that
    modules_to_save means: everything in each module whose path ends so.

    Raises UserError naming what cannot be loaded. Some versions of PEFT write
    base_model.model.lm_head.modules_to_save.weight, others leave the third word out.
    """
    written = {
        re.sub(r"\.modules_to_save(\.default)?\.", ".", name.removeprefix(_PREFIX)): name
        for name in names
        if ".lora_" not in name
    }
    official = [*official_views(model), *(f"{path}.weight" for path in adaptable(model))]
    parameters, found = dict(model.named_parameters()), {}
    for module in config.modules_to_save:
        inside = [name for name in official if f"{module}." in name]
        if not inside:
            raise UserError(f"{directory / CONFIG}: modules_to_save: the model has no {module!r}")
        for name in inside:
            if name not in parameters:  # one of stacked experts, or quantised
                raise UserError(
                    f"{directory / CONFIG}: modules_to_save = {module!r}: {name} cannot be replaced"
                )
            found[written.get(name, _PREFIX + name)] = name
    return found


@torch.no_grad()
def load_adapter(model: nn.Module, directory: Path, base: Base, dropout: float = 0.0) -> None:
    """Attaches the adapter in `directory` to a base model, made from `base`.

    Raises UserError, and leaves the model untouched, if file, configuration, model and base do not
    fit together.
    """
    config, (shapes, metadata) = read_config(directory), stored(directory / TENSORS)
    if metadata.get("base_digest", base.digest) != base.digest:
        raise UserError(
            f"{directory / TENSORS}: this adapter was trained over another base model "
            f"than {base.name}"
        )
    whole = _whole_weights(model, config, shapes, directory)
    chosen = _adapted_paths(model, config, shapes.keys() - whole.keys(), directory)
    expected = expected_shapes(model, config.rank, chosen)
    expected |= {name: tuple(model.get_parameter(own).shape) for name, own in whole.items()}
    tensors = read_tensors(directory / TENSORS, expected)
    others = {own: tensors[name] for name, own in whole.items()} | _read_others(model, directory)
    if whole:  # what we write says it without modules_to_save
        config = replace(config, target_modules=(), exclude_modules=(), modules_to_save=())
    config = replace(config, dropout=dropout, base=base, beside=tuple(sorted(others)))
    attach(model, config, chosen)
    _fill(model, tensors, others)


@torch.no_grad()
def restore_adapter(model: nn.Module, directory: Path) -> None:
    """Fills the adapter that the model has from one that was saved of the same kind."""
    config = read_config(directory)
    for field in ("rank", "alpha", "rslora"):
        then, now = getattr(config, field), getattr(model.adapter, field)
        if then != now:
            raise UserError(f"{directory}: was made with LoRA {field} {then}, now {now}")
    tensors = read_tensors(directory / TENSORS, _shapes(adapter_views(model)))
    _fill(model, tensors, _read_others(model, directory))


def _read_others(model: nn.Module, directory: Path) -> dict[str, torch.Tensor]:
    """Parameters that were trained beside the adapter, if there are any."""
    path = directory / OTHERS
    if not os.path.lexists(path):
        return {}
    names = stored(path)[0]
    return read_tensors(path, _shapes({n: p for n, p in model.named_parameters() if n in names}))


def _fill(
    model: nn.Module, adapter: dict[str, torch.Tensor], others: dict[str, torch.Tensor]
) -> None:
    for name, view in adapter_views(model).items():
        view.copy_(adapter[name])
    for name, tensor in others.items():
        parameter = model.get_parameter(name)
        parameter.data = tensor.to(parameter.device)  # in the type that it was held in
