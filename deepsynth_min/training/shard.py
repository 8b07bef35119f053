"""Sharded mode (`--shard`): parameters, gradients and moments are divided among the ranks.

In: a model that every rank has built alike. Out: the same model, of which each rank holds a part;
checkpoints written from the parts.

The one idea: PyTorch's fully_shard (FSDP2) gathers a decoder layer when it runs and lets go of it
afterwards; the loop does not know. The layers are what is large. What lies outside of them and
trains (embedding, head, norm, projector, encoder) forms one group, whole from the start of a step
to its end: how often a rank runs the encoder depends on its pages, so gathering there would wait
for ranks that have none. What lies outside and is frozen stays whole on every rank. As without
shards, gradients are summed, not averaged, and parameters that a rank had no gradient for count as
zeros.

Evaluation and generation run another number of forwards on each rank. They use a plain copy of the
model, which is filled with whole tensors for as long as it takes (`filled`) and empty otherwise.

A checkpoint's tensors are dealt to the ranks: each is put together once and kept by one rank only,
so that none ever holds more than its share of the file and one tensor. Rank r writes file r, from
that copy, while training goes on. The directory is as any other, readable at any number of
processes.
"""

import copy
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from ..errors import UserError
from ..files.disk import WriteError, flush, partial_name, whole_directory
from ..model.weights import INDEX, fill, official_pieces, on_host
from ..settings import Settings
from ..tuning.adapter import restore_adapter, trained_beside, write_adapter
from ..tuning.lora import adapter_views
from .checkpoint import copy_base_files, optimizer_tensors, write_manifest
from .distributed import World
from .optim import LossScaler
from .precision import set_parameter_types


def check(settings: Settings) -> None:
    """Raises UserError for what cannot be divided."""
    if not settings.optim.shard:
        return
    if not settings.optim.batch_size:
        raise UserError("--batch-size auto: not with --shard; give a number")
    if "qlora" in settings.model.tune:
        raise UserError(
            f"--shard: --tune {settings.model.tune} packs its base in blocks, which "
            "cannot be divided; use --tune lora"
        )
    if settings.optim.optimizer != "adamw":
        raise UserError(
            f"--shard: --optimizer {settings.optim.optimizer} keeps its moments in "
            "blocks, which cannot be divided; use adamw"
        )


def shard(model: nn.Module, world: World, settings: Settings) -> nn.Module:
    """Divides a model on the CPU among the ranks' devices; returns an empty copy to evaluate with.

    requires_grad must be set. A device never holds more than its shards and one whole layer.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import (
        FSDPModule,
        MixedPrecisionPolicy,
        fully_shard,
        register_fsdp_forward_method,
    )

    if not hasattr(FSDPModule, "set_reduce_scatter_unused_params"):
        raise UserError(f"--shard: needs PyTorch 2.13 or newer, this is {torch.__version__}")
    optim = settings.optim
    copies = {
        id(p): nn.Parameter(p.detach().to("meta"), p.requires_grad) for p in model.parameters()
    }
    eval_model = copy.deepcopy(
        model, copies
    )  # modules only: the parameters are known to have copies
    options = {
        "mesh": init_device_mesh(world.device.type, (world.size,)),
        "mp_policy": MixedPrecisionPolicy(
            reduce_dtype=torch.bfloat16 if optim.reduce == "bf16" else None
        ),
    }
    types = (optim.precision, optim.weights)
    for layer in model.model.layers:
        set_parameter_types(layer, *types)
        fully_shard(layer, **options)
    set_parameter_types(model, *types)
    whole = {p for p in model.parameters() if not hasattr(p, "to_local") and not p.requires_grad}
    for parameter in whole:
        parameter.data = parameter.data.to(world.device)
    fully_shard(model, reshard_after_forward=False, ignored_params=whole, **options)
    for part in (model, *model.model.layers):
        part.set_gradient_divide_factor(1.0)
        part.set_force_sum_reduction_for_comms(True)  # Gloo knows no other
    model.set_reduce_scatter_unused_params(True)
    register_fsdp_forward_method(model, "loss_terms")
    return eval_model


def whole(tensor: Tensor) -> Tensor:
    """The whole of a shard; all ranks must ask for it."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def _put(module: nn.Module, name: str, value: Tensor) -> None:
    owner, _, last = name.rpartition(".")
    old = module.get_parameter(name)
    setattr(module.get_submodule(owner), last, nn.Parameter(value, old.requires_grad))


@contextmanager
@torch.no_grad()
def filled(
    eval_model: nn.Module, model: nn.Module, trained_only: bool = False
) -> Iterator[nn.Module]:
    """`eval_model` with the model's values; nothing to do where it is the model. For all ranks."""
    if eval_model is model:
        yield eval_model
        return
    eval_model.adapter, names = model.adapter, []
    for name, parameter in model.named_parameters():
        if not trained_only or parameter.requires_grad or name in model.adapter.beside:
            names.append(name)
            _put(eval_model, name, whole(parameter.detach()))
    try:
        yield eval_model
    finally:
        for name in names:
            _put(eval_model, name, eval_model.get_parameter(name).detach().to("meta"))


@torch.no_grad()
def restore_shards(eval_model: nn.Module, model: nn.Module, path: Path) -> None:
    """restore_adapter for a model in shards."""
    with filled(eval_model, model, trained_only=True):
        restore_adapter(eval_model, path)
        for name, parameter in model.named_parameters():
            if parameter.requires_grad or name in model.adapter.beside:
                fill(parameter, eval_model.get_parameter(name))


# -- checkpoints ----------------------------------------------------------------------------------


def together(world: World, action: Callable) -> None:
    """Runs an action on every rank; if the system refuses it to one, all raise WriteError."""
    wrong = None
    try:
        action()
    except (OSError, SafetensorError, WriteError) as error:
        wrong = error if isinstance(error, WriteError) else WriteError(str(error))
    (failed,) = world.sum(wrong is not None)
    if failed:
        raise wrong or WriteError("another process could not write its part")


@torch.no_grad()
def deal(tensors: dict[str, Tensor], world: World) -> tuple[dict[str, Tensor], dict[str, int]]:
    """(the whole tensors that fall to this rank, on the host; name -> rank that has it)."""
    mine, owners, load = {}, {}, [0] * world.size
    for name, tensor in tensors.items():
        owners[name] = load.index(min(load))
        load[owners[name]] += tensor.numel() * tensor.element_size()
        value = whole(tensor.detach())
        if owners[name] == world.rank:
            mine[name] = value.to("cpu", copy=True).contiguous()
    return mine, owners


@dataclass(frozen=True)
class Part:
    """What one rank will write of a checkpoint: copies on the host, of one step."""

    weights: dict[str, Tensor]  # by official names; of an adapter, by PEFT's, all on rank 0
    trained_beside: dict[str, Tensor]  # what trained beside an adapter, on rank 0
    state: dict[str, Tensor]  # of optimizer and scaler
    index: str  # which rank's file has which weight, as JSON; "" of an adapter
    facts: dict  # training.json


@torch.no_grad()
def take_part(
    model: nn.Module,
    eval_model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: LossScaler,
    facts: dict,
    world: World,
) -> Part:
    """This rank's part of the training state of this moment; all ranks must ask for theirs."""
    if model.adapter is None:
        mine, owners = deal(dict(model.named_parameters()), world)
        weights = {
            piece: on_host(value)
            for name, tensor in mine.items()
            for piece, value in official_pieces(name, tensor).items()
        }
        beside, index = {}, _index(model, owners, world)
    else:
        weights, beside, index = {}, {}, ""
        with filled(eval_model, model, trained_only=True):
            if world.is_main:
                views = adapter_views(eval_model), trained_beside(eval_model)
                weights, beside = (
                    {name: view.detach().to("cpu", copy=True) for name, view in part.items()}
                    for part in views
                )
    state, _ = deal(optimizer_tensors(model, optimizer, scaler), world)
    return Part(weights, beside, state, index, facts)


def _index(model: nn.Module, owners: dict[str, int], world: World) -> str:
    shapes = {
        name: torch.empty(p.shape, dtype=p.dtype, device="meta")
        for name, p in model.named_parameters()
    }
    index = {
        "metadata": {"total_size": sum(shape.nbytes for shape in shapes.values())},
        "weight_map": {
            piece: _file("model", owners[name], world)
            for name, shape in shapes.items()
            for piece in official_pieces(name, shape)
        },
    }
    return json.dumps(index, indent=2, sort_keys=True)


def _file(kind: str, rank: int, world: World) -> str:
    return f"{kind}-{rank + 1:05}-of-{world.size:06}.safetensors"


def _write(tensors: dict[str, Tensor], file: Path) -> None:
    if tensors:
        save_file(tensors, file, metadata={"format": "pt"})
        flush(file)


def save(
    checkpoints: Path, part: Part, model: nn.Module, base: Path, notes: dict[str, str], world: World
) -> Path:
    """Writes checkpoints/step-NNNNNN from the parts of all ranks, on a file system that all see,
    and returns it. Of the model only its configuration is read.

    world: with a group that nobody else uses meanwhile (`World.apart`). Raises WriteError on every
    rank if one could not write.
    """
    final = checkpoints / f"step-{part.facts['step']:06}"
    partial = partial_name(final)

    def write() -> None:
        if model.adapter is None:
            _write(part.weights, partial / _file("model", world.rank, world))
        elif world.is_main:
            write_adapter(model.adapter, part.weights, part.trained_beside, partial)
        _write(part.state, partial / _file("optimizer", world.rank, world))

    def complete() -> None:
        if not world.is_main:
            return
        if model.adapter is None:
            (partial / INDEX).write_text(part.index)
            copy_base_files(model, partial, base)
        for name, text in notes.items():
            (partial / name).write_text(text, encoding="utf-8")
        (partial / "training.json").write_text(json.dumps(part.facts, indent=2))
        write_manifest(partial)

    with ExitStack() as stack:
        together(world, lambda: world.is_main and stack.enter_context(whole_directory(final)))
        together(world, write)
        together(world, complete)
        together(world, stack.close)  # flushes, and gives it its name
    return final
