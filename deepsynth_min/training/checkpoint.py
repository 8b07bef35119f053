"""Training state, out and in again: a checkpoint is a model directory plus what training needs.

In: model, optimizer, scaler, step. Out: `checkpoints/step-NNNNNN/` with
    config.json, tokenizer files    as the base model had them, byte for byte
    model.safetensors (or shards)   every parameter under its official name, in its type
    optimizer.safetensors           PARAMETER/exp_avg, /exp_avg_sq and /step, scaler/...
    deepsynth_min.toml              what answers depend on besides (recorded.py)
    training.json                   step, best loss, and what the sample sequence depends on
    manifest.json                   size and SHA-256 of every other file
With an adapter, its files (adapter.py) stand in place of the first two: the base is not copied.

The one idea: it can be given to `--model` (or `--adapter`) like any other, since the first two are
complete. It is written under a temporary name, flushed to the disk and renamed, so what has the
final name is whole; from a copy in host memory (`Snapshot`), so training need not wait for the disk
(runs/storage/saving.py). Nothing that is read back is ever unpickled.

No generator's state is kept: dropout, augmentation and the order of samples are functions of (seed,
step, rank or place in the run), on every rank; only bf16's random rounding has a generator, and its
state is with the optimizer's.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from ..errors import UserError, read_json
from ..files.disk import whole_directory
from ..model.shape.official import config_from_file, config_to_dict, with_attention
from ..model.weights import (
    check_names,
    fill,
    load_weights,
    official_views,
    on_host,
    read_tensors,
    save_weights,
    stored,
    write_weights,
)
from ..tuning.adapter import restore_adapter, trained_beside, write_adapter
from ..tuning.lora import adapter_views
from .host_copy import HostCopier
from .optim import LossScaler, prepare_state, restore_state, state_tensors

MANIFEST = "manifest.json"
_STEP = re.compile(r"step-([0-9]{6,12})$")


def optimizer_tensors(
    model: nn.Module, optimizer: torch.optim.Optimizer, scaler: LossScaler
) -> dict[str, torch.Tensor]:
    """Every state tensor of the optimizer and the scaler, by name."""
    tensors = {f"scaler/{name}": value for name, value in scaler.state().items()}
    return tensors | state_tensors(optimizer, dict(model.named_parameters()))


@dataclass(frozen=True)
class Snapshot:
    """What a checkpoint will hold, as it is at one step; nothing in it looks at the run again."""

    weights: dict[str, torch.Tensor]  # by official names; of an adapter, by PEFT's
    trained_beside: dict[str, torch.Tensor]  # what trained beside an adapter
    state: dict[str, torch.Tensor]  # of optimizer and scaler
    facts: dict  # training.json
    arrived: torch.cuda.Event | None = None  # the copies are whole from then on; None: already


def take_snapshot(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: LossScaler,
    facts: dict,
    copied: bool = True,
    copier: HostCopier = HostCopier(),
) -> Snapshot:
    """The training state of this moment. `copied`: to the host, so that training may go on while
    it is written; otherwise it must not, for the tensors are the run's own."""
    adapted = model.adapter is not None
    parts = (
        adapter_views(model) if adapted else official_views(model),
        trained_beside(model) if adapted else {},
        optimizer_tensors(model, optimizer, scaler),
    )
    if copied:
        parts = copier(list(parts))
    return Snapshot(*parts, facts, copier.arrived)


def save(
    checkpoints: Path, snapshot: Snapshot, model: nn.Module, base: Path, notes: dict | None = None
) -> Path:
    """Writes checkpoints/step-NNNNNN and returns it. Of the model only its configuration is read.

    base: where config and tokenizer files lie; notes: texts of further files, by name.
    """
    if snapshot.arrived is not None:
        snapshot.arrived.synchronize()
    final = checkpoints / f"step-{snapshot.facts['step']:06}"
    with whole_directory(final) as partial:
        if model.adapter is None:
            copy_base_files(model, partial, base)
            write_weights(snapshot.weights, partial)
        else:
            write_adapter(model.adapter, snapshot.weights, snapshot.trained_beside, partial)
        save_file(
            {name: on_host(tensor) for name, tensor in snapshot.state.items()},
            partial / "optimizer.safetensors",
        )
        for name, text in (notes or {}).items():
            (partial / name).write_text(text, encoding="utf-8")
        (partial / "training.json").write_text(json.dumps(snapshot.facts, indent=2))
        write_manifest(partial)
    return final


def write_manifest(directory: Path) -> None:
    listed = {file.name: _described(file) for file in sorted(directory.iterdir())}
    (directory / MANIFEST).write_text(json.dumps(listed, indent=2))


def _described(file: Path) -> dict:
    with open(file, "rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    return {"bytes": file.stat().st_size, "sha256": digest}


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint's files, in words; None if they are as they were written."""
    try:
        listed = read_json(path / MANIFEST)
        for name, expected in listed.items():
            if Path(name).name != name:
                return f"{MANIFEST} names {name!r}"
            if not (path / name).is_file():
                return f"{name} is missing"
            if _described(path / name) != expected:
                return f"{name} is not as it was written"
        # What stands beside them would be read, too, by its name.
        ours = {f.name for f in path.iterdir() if f.suffix in (".safetensors", ".json", ".toml")}
        if more := sorted(ours - {MANIFEST} - listed.keys()):
            return f"{more[0]} is not in {MANIFEST}"
    except (OSError, ValueError, AttributeError) as error:
        return f"{MANIFEST} cannot be read ({error})"
    return None


def newest_whole(
    checkpoints: Path,
    report: Callable[[str], None] = print,
    elsewhere: Callable[[Path | None, Path], Path | None] | None = None,
) -> Path | None:
    """The newest checkpoint whose files are as written; `report` is told of every damaged one.

    elsewhere(older, damaged): brings one of a mirror that is newer than `older` (None: any) and not
    newer than the damaged one, if it can. Returns None if there is no checkpoint; a UserError if
    there are some, but none is whole.
    """
    paths = all_checkpoints(checkpoints)
    for older, path in zip([*paths[-2::-1], None], reversed(paths)):
        wrong = damage(path)
        if wrong is None:
            return path
        report(f"{path} is damaged ({wrong}); trying the one before it")
        if elsewhere and (brought := elsewhere(older, path)):
            return brought
    if paths:
        raise UserError(
            f"{checkpoints}: no whole checkpoint among {len(paths)}; remove what is there "
            "to start afresh, or give another --out"
        )
    return None


def save_model(model: nn.Module, directory: Path, base: Path) -> None:
    """A complete model directory: files of `base`, and weights in the types they have here."""
    copy_base_files(model, directory, base)
    save_weights(model, directory)


def copy_base_files(model: nn.Module, directory: Path, base: Path) -> None:
    """Configuration and tokenizer byte for byte; but a preset has no configuration to copy, and one
    that --attention-window or --context changed says so."""
    for file in base_files(base):
        shutil.copyfile(file, directory / file.name)
    path = directory / "config.json"
    if not path.exists():
        official = config_to_dict(model.config)
    elif config_from_file(path) != model.config:
        official = with_attention(read_json(path), model.config)
    else:
        return
    path.write_text(json.dumps(official, indent=2), encoding="utf-8")


def base_files(base: Path) -> list[Path]:
    """Configuration, tokenizer and processor files of a model directory, in no way interpreted."""
    names = [p for p in sorted(base.iterdir()) if p.suffix in (".json", ".txt", ".jinja", ".model")]
    names = [p for p in names if p.is_file() and p.stat().st_size < 2**28]  # no data, no dead link
    ours = ("training.json", MANIFEST)
    return [p for p in names if not p.name.endswith(".index.json") and p.name not in ours]


def all_checkpoints(checkpoints: Path) -> list[Path]:
    """Complete checkpoints, oldest step first."""
    if not checkpoints.is_dir():
        return []
    found = [p for p in checkpoints.iterdir() if _STEP.match(p.name) and p.is_dir()]
    return sorted(found, key=lambda path: int(_STEP.match(path.name)[1]))


def prune(checkpoints: Path, keep: int, *others: str | None) -> None:
    """Removes all but the newest `keep` checkpoints and those named."""
    for path in all_checkpoints(checkpoints)[:-keep]:
        if path.name not in others:
            shutil.rmtree(path)


def read_facts(path: Path) -> dict:
    """What training.json says. Raises UserError."""
    file = path / "training.json"
    if not os.path.lexists(file):
        raise UserError(f"{path}: not a training checkpoint (no training.json)")
    training = read_json(file)
    if not isinstance(training, dict):
        raise UserError(f"{file}: not a JSON object")
    for name, fits in _FACTS.items():
        if name not in training or not fits(training[name]):
            raise UserError(f"{file}: {name} is missing or not as it was written")
    return training


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _count(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**53


_FACTS = {  # what every training.json holds, beside what load() compares
    "step": _count,
    "best": lambda value: value is None or _number(value),
    "best_metric": lambda value: isinstance(value, str),
    "stale": _count,
    "score": lambda value: value is None or _number(value),
    "unlogged": lambda value: (
        isinstance(value, list)
        and all(
            isinstance(step, list) and len(step) == 2 and all(map(_number, step)) for step in value
        )
    ),
}


def load(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: LossScaler,
    facts: dict,
    restore: Callable | None = restore_adapter,
) -> dict:
    """Restores weights, optimizer and scaler in place; returns what training.json says.

    `facts`: what the sample sequence depends on; a difference is a UserError, for it would be
    another run. So is anything missing, left over or wrongly shaped.
    """
    training = read_facts(path)
    for name, value in facts.items():
        if training.get(name) != value:
            raise UserError(f"{path}: was made with {name} {training.get(name)!r}, now {value!r}")
    prepare_state(optimizer)
    held = optimizer_tensors(model, optimizer, scaler)
    integers = tuple(name for name, tensor in held.items() if not tensor.is_floating_point())
    state = _read_state(path, {n: tuple(tensor.shape) for n, tensor in held.items()}, integers)
    if model.adapter is None:
        load_into(model, path)
    else:
        restore(model, path)
    scaler.load_state({name: state[f"scaler/{name}"] for name in scaler.state()})
    restore_state(optimizer, dict(model.named_parameters()), state)
    return training


def _read_state(path: Path, expected: dict[str, tuple], whole: tuple[str, ...]) -> dict:
    """The optimizer's tensors, of one file or of the parts that the ranks of --shard wrote."""
    parts = sorted(path.glob("optimizer-*-of-*.safetensors"))
    if not parts:
        return read_tensors(path / "optimizer.safetensors", expected, whole)
    held = {part: stored(part)[0] for part in parts}
    found = {name: shape for shapes in held.values() for name, shape in shapes.items()}
    check_names(found, expected, f"{path}/{parts[0].name} and the others")
    state = {}
    for part, shapes in held.items():
        state |= read_tensors(part, {name: expected[name] for name in shapes}, whole)
    return state


def load_into(model: nn.Module, path: Path) -> None:
    """Copies the weights of a model directory into an existing model's parameters."""
    with torch.device("meta"):
        read_back = type(model)(model.config)
    load_weights(read_back, path)
    with torch.no_grad():
        for mine, read in zip(model.parameters(), read_back.parameters()):
            fill(mine, read)
