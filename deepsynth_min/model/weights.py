"""Official weights in and out: a checkpoint directory <-> the parameters of a module.

In: a directory (or hub id) with config.json and safetensors, in one file or in shards with an
index. Out: the module's parameters, filled; or such a directory, written.

The one idea: a module's parameters are shown under the official names as *views*
(`official_views`): most are the parameter itself, a stacked expert tensor appears as its E x {gate,
up} or E x down slices. Checking, loading and saving are then the same loop over names, and are
strict both ways: a tensor missing, left over or wrongly shaped is an error that names it.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import ExitStack
from functools import reduce
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..errors import UserError, find_file, read_json

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD_BYTES = 5 * 10**9
_TYPES = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "F64": torch.float32,
}  # as stored -> as kept


@runtime_checkable
class PacksWeights(Protocol):
    """A module that packs each weight it is given (tuning/quant.py)."""

    def receive(self, name: str, weight: Tensor) -> None: ...


@runtime_checkable
class PackedWeight(Protocol):
    """What such a module makes of a weight."""

    shape: torch.Size

    def unpack(self, dtype: torch.dtype) -> Tensor: ...


def official_pieces(name: str, parameter: Tensor) -> dict[str, Tensor]:
    """One parameter's official tensors: itself, or the slices of stacked experts."""
    prefix, _, last = name.rpartition(".")
    if last == "gate_up":  # [E, 2I, D]
        inner = parameter.shape[1] // 2
        halves = (("gate_proj", slice(0, inner)), ("up_proj", slice(inner, None)))
        return {
            f"{prefix}.{e}.{half}.weight": expert[rows]
            for e, expert in enumerate(parameter)
            for half, rows in halves
        }
    if last == "down":  # [E, D, I]
        return {f"{prefix}.{e}.down_proj.weight": expert for e, expert in enumerate(parameter)}
    return {name: parameter}


def is_adapter(name: str) -> bool:
    """Whether a parameter of ours belongs to an adapter (lora.py) and not to the model proper."""
    return ".lora" in name


def official_views(module: nn.Module) -> dict[str, Tensor]:
    """Official tensor name -> the parameter, or the slice of a stacked one, that holds it.

    Adapters are left out; what they stand on has its official name.
    """
    views = {}
    for name, parameter in module.named_parameters():
        if not is_adapter(name):
            views |= official_pieces(name.replace(".base.", "."), parameter.detach())
    return views


def local_part(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor, in the same memory: of a shard (--shard) some rows."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def local_rows(tensor: Tensor) -> slice:
    """Which rows of the whole tensor `local_part` is: as torch.chunk divides them."""
    if not hasattr(tensor, "to_local"):
        return slice(None)
    mesh, size = tensor.device_mesh, tensor.shape[0]
    rows = -(-size // mesh.size())
    start = min(size, rows * mesh.get_local_rank())
    return slice(start, min(size, start + rows))


def fill(tensor: Tensor, whole: Tensor) -> None:
    """tensor = whole, or of a shard this rank's rows of it."""
    local_part(tensor).copy_(whole if whole.ndim == 0 else whole[local_rows(tensor)])


def tensor_digest(tensor: Tensor) -> bytes:
    """SHA-256 of a tensor's bytes; of a shard, of those that lie here."""
    data = local_part(tensor.detach()).contiguous().cpu().flatten().view(torch.uint8)
    return hashlib.sha256(data.numpy()).digest()


def _tensor_files(directory: Path) -> list[Path]:
    """The safetensors files of a checkpoint, each known to exist."""
    index = directory / INDEX
    if os.path.isfile(directory / SINGLE):
        return [directory / SINGLE]
    if not os.path.isfile(index):
        raise UserError(f"{directory}: neither {SINGLE} nor {INDEX}")
    listed = read_json(index)
    try:
        names = sorted(set(listed["weight_map"].values()))
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{index}: not a weight index ({error})") from None
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise UserError(f"{index}: {name!r:.100} is not a file name in this directory")
        if not os.path.isfile(directory / name):
            raise UserError(f"{index} names {name!r:.100}, which is not there")
    return [directory / name for name in names]


def _list(names: list[str], most: int = 20) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def check_names(found: dict[str, tuple], expected: dict[str, tuple], where: str) -> None:
    """Compares {name: shape} both ways. Raises UserError naming every difference."""
    missing = [name for name in expected if name not in found]
    extra = [name for name in found if name not in expected]
    wrong = [
        f"{name} is {list(found[name])}, not {list(expected[name])}"
        for name in expected
        if name in found and tuple(found[name]) != tuple(expected[name])
    ]
    problems = [
        f"{len(names)} {what}: {_list(names)}"
        for what, names in (("missing", missing), ("unknown", extra), ("wrongly shaped", wrong))
        if names
    ]
    if problems:
        raise UserError(f"{where}: tensors do not fit the model; " + "; ".join(problems))


def _open(path: Path) -> safe_open:
    try:
        find_file(path)
        open(path, "rb").close()  # safetensors calls a file that may not be read absent
        return safe_open(path, framework="pt")
    except (SafetensorError, RuntimeError) as error:  # Runtime: more than can be mapped
        raise UserError(f"{path}: not a safetensors file ({error})") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from None


def open_tensors(directory: Path, stack: ExitStack) -> dict[str, safe_open]:
    """Tensor name -> the opened file that holds it; nothing is read yet. Raises UserError."""
    source = {}
    for path in _tensor_files(directory):
        file = stack.enter_context(_open(path))
        source |= {name: file for name in file.keys()}
    return source


def stored(path: Path) -> tuple[dict[str, tuple], dict[str, str]]:
    """({tensor name: shape}, metadata) of a safetensors file; no tensor is read. Raises
    UserError."""
    with _open(path) as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
        return shapes, file.metadata() or {}


def read_tensors(
    path: Path, expected: dict[str, tuple], whole: tuple[str, ...] = ()
) -> dict[str, Tensor]:
    """Tensors of these names and shapes, and no others; floating point but for those in `whole`.

    All is compared before anything is read. Raises UserError, for values that are not finite too.
    """
    check_names(stored(path)[0], expected, str(path))
    tensors = {}
    with _open(path) as file:
        for name in expected:
            kind = file.get_slice(name).get_dtype()
            if (kind in _TYPES) == (name in whole):
                raise UserError(f"{path}: {name} is of type {kind}, which it cannot be")
            tensor = file.get_tensor(name)
            tensors[name] = tensor if name in whole else tensor.to(_TYPES[kind])
            _check_finite(tensors[name], name, path)
    return tensors


def _check_finite(tensor: Tensor, name: str, path: Path) -> None:
    if tensor.is_floating_point() and tensor.numel():
        low, high = torch.aminmax(tensor)  # NaN if there is one
        if not (low.isfinite() and high.isfinite()):
            raise UserError(f"{path}: {name} holds values that are not finite")


def _read_pieces(views: dict[str, Tensor], places: dict[str, Path], at_once: int = 16) -> None:
    """Fills each view with the tensor of its name. Raises UserError for values that are not finite.

    Files are opened anew for every few: what was read of a mapped file counts as this process's
    memory until it is closed.
    """
    names = list(views)
    for start in range(0, len(names), at_once):
        group = names[start : start + at_once]
        for path in dict.fromkeys(places[name] for name in group):
            with _open(path) as file:
                for name in group:
                    if places[name] == path:
                        views[name].copy_(file.get_tensor(name))
                        _check_finite(views[name], name, path)


@torch.no_grad()
def load_weights(
    module: nn.Module,
    directory: Path,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> None:
    """Fills a module that was built on the meta device, one parameter at a time.

    dtype None keeps what the file holds. Raises UserError on anything that does not fit.
    """
    places, shapes, types = {}, {}, {}
    for path in _tensor_files(directory):
        with _open(path) as file:
            for name in file.keys():
                part = file.get_slice(name)
                places[name], shapes[name] = path, tuple(part.get_shape())
                if part.get_dtype() not in _TYPES:
                    raise UserError(
                        f"{path}: {name} is of type {part.get_dtype()}, not one of "
                        + ", ".join(_TYPES)
                    )
                types[name] = _TYPES[part.get_dtype()]
    expected = {name: tuple(view.shape) for name, view in official_views(module).items()}
    check_names(shapes, expected, str(directory))
    for name, parameter in list(module.named_parameters()):
        held = [types[piece] for piece in official_pieces(name, parameter)]
        kind = dtype or reduce(torch.promote_types, held)
        filled = torch.empty(parameter.shape, dtype=kind, device=device)
        _read_pieces(official_pieces(name, filled), places)
        owner, _, last = name.rpartition(".")
        owner = module.get_submodule(owner)
        if isinstance(owner, PacksWeights):
            owner.receive(last, filled)
        else:
            setattr(owner, last, nn.Parameter(filled, requires_grad=parameter.requires_grad))


def save_weights(module: nn.Module, directory: Path, shard_bytes: int = SHARD_BYTES) -> None:
    """Writes a module's parameters under their official names, unfused, as they are."""
    write_weights(official_views(module), directory, shard_bytes)


def write_weights(
    tensors: dict[str, Tensor], directory: Path, shard_bytes: int = SHARD_BYTES
) -> None:
    """Writes tensors under their names, in one file or in shards with an index."""
    sizes = {name: tensor.nbytes for name, tensor in tensors.items()}
    write_shards(iter(tensors.items()), sizes, directory, shard_bytes)


def on_host(tensor: Tensor) -> Tensor:
    """The tensor on the CPU, in memory that it shares with no other: safetensors insists on it."""
    tensor = tensor.detach().cpu().contiguous()
    alone = tensor.untyped_storage().nbytes() == tensor.nbytes
    return tensor if alone else tensor.clone()


def write_shards(
    tensors: Iterator[tuple[str, Tensor]],
    sizes: dict[str, int],
    directory: Path,
    shard_bytes: int,
    always_index: bool = False,
) -> None:
    """Writes tensors as they come, in shards of at most `shard_bytes` (or one tensor) each.

    sizes: name -> bytes of all of them, in the order in which they will come. No more than one
    shard is held at a time. A single shard is called model.safetensors and has no index, unless
    `always_index`: the official one has.
    """
    shards: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if shards[-1] and filled + size > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    weight_map, indexed = {}, always_index or len(shards) > 1
    for i, names in enumerate(shards):
        file = f"model-{i + 1:05}-of-{len(shards):06}.safetensors" if indexed else SINGLE
        held = {}
        for name in names:
            came, tensor = next(tensors)
            assert came == name and tensor.nbytes == sizes[name], (came, name)
            held[name] = on_host(tensor)
        save_file(held, directory / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(names, file)
    if indexed:
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
        (directory / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True))
