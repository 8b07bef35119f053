"""Export: a run's model in the official layout, or its adapter alone, written and checked.

In: a run directory and a checkpoint of it. Out: a directory that servers and loaders of
DeepSeek-OCR take: config, tokenizer and processor files of the base byte for byte, every tensor
under its official name, in bf16 as the official files or in float32, in shards with an index. Of a
run that trained an adapter: such a model with the adapter merged, or the adapter's own files, as
PEFT and servers read them. Beside them README.md (model_card.py) and deepsynth_min.toml, from which
our own commands learn how to ask (runs/recorded.py).
`python -m deepsynth_min.export` is its command; a training run that uploads its model calls
`stage_for_hub`.

The one idea: nothing is taken on trust. What was written is read back strictly, tensor by tensor,
and the model that it makes must give the logits of the model in memory for a rendered page, but for
what rounding to bf16 explains. Only then the directory gets its name; else nothing remains of it.
What trained in float32 loses digits in bf16, and some answers with them: in float32 a whole model
is written to the bit; a merged one adds W + scale * B A before, not after, it is multiplied, which
rounds otherwise in the last digits.

Merging computes W + scale * B A in float32 for one tensor at a time, and a shard is written as soon
as it is full: beside the model itself, memory holds one shard and one layer's stacked weight. A
quantised base is dequantised on the way; with --base the original weights take its place.
"""

import gc
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor, nn

from ..corpus import documents as corpus
from ..data.row import Row
from ..data.samples import SampleBuilder, collate
from ..data.tokenizer import load_tokenizer
from ..errors import UserError
from ..files.disk import whole_directory
from ..model.batch import Batch
from ..model.deepseek_ocr import DeepseekOCR
from ..model.weights import (
    SHARD_BYTES,
    official_pieces,
    official_views,
    open_tensors,
    tensor_digest,
    write_shards,
)
from ..runs import recorded
from ..settings import Settings
from ..training.build import load_run_model
from ..training.checkpoint import copy_base_files
from ..training.precision import autocast, hold_as_trained
from ..tuning import adapter, lora
from ..tuning.lora import LoraExperts, LoraLinear
from ..tuning.quant import Packed
from ..tuning.targets import in_encoder
from .model_card import model_card

TOLERANCE = 0.05  # of the logits' norm; rounding weights to bf16 alone changes them by about 0.005


# -- merging --------------------------------------------------------------------------------------


def _value(weight: Tensor | Packed) -> Tensor:
    """The weight itself; of a quantised one what it stands for, in bf16."""
    return weight.unpack(torch.bfloat16) if isinstance(weight, Packed) else weight.detach()


def _expert_updates(experts: LoraExperts, name: str) -> dict[str, Tensor]:
    """Official name -> scale * B A of each expert's adapter, float32, for one stacked weight."""
    projections = ("gate", "up") if name.endswith("gate_up") else ("down",)
    prefix, updates = name.rpartition(".")[0], {}
    for projection in projections:
        pair = getattr(experts, f"lora_{projection}")
        for e in range(experts.num_experts):
            update = pair.B[e].detach() @ pair.A[e].detach() * pair.scale
            updates[f"{prefix}.{e}.{projection}_proj.weight"] = update
    return updates


def merged_tensors(
    model: nn.Module, dtype: torch.dtype = torch.bfloat16
) -> Iterator[tuple[str, Tensor]]:
    """(official name, value) of every weight, its adapter added, one at a time, in order."""
    modules = dict(model.named_modules())
    for path, module in modules.items():
        if ".base" in path or ".lora" in path:
            continue  # comes with the module that holds it
        updates = {}
        if isinstance(module, LoraLinear):
            weights = {f"{path}.weight": module.base.weight}
            if (bias := getattr(module.base, "bias", None)) is not None:  # of an encoder's
                weights[f"{path}.bias"] = bias
            updates[f"{path}.weight"] = module.lora.delta()
        elif isinstance(module, LoraExperts):
            weights = {f"{path}.gate_up": module.base.gate_up, f"{path}.down": module.base.down}
        elif isinstance(module, Packed):
            weights = {path: module}
        else:
            weights = {f"{path}.{name}": p for name, p in module._parameters.items()}
        for name, weight in weights.items():
            if weight is None:
                continue  # a linear without bias
            if isinstance(module, LoraExperts):
                updates = _expert_updates(module, name)
            for piece, value in official_pieces(name, _value(weight)).items():
                if piece in updates:
                    value = value.float() + updates[piece]
                yield piece, value.to(dtype)


def write_model(
    model: DeepseekOCR,
    directory: Path,
    base: Path,
    shard_bytes: int,
    dtype: torch.dtype = torch.bfloat16,
) -> dict[str, bytes]:
    """Fills `directory` with the official layout; returns {name: digest of its bytes}.

    base: directory whose config, tokenizer and processor files are copied; dtype: of all weights.
    """
    copy_base_files(model, directory, base)
    with torch.device("meta"):
        shapes = official_views(DeepseekOCR(model.config))
    sizes = {name: dtype.itemsize * view.numel() for name, view in shapes.items()}
    digests = {}

    def with_digests() -> Iterator[tuple[str, Tensor]]:
        for name, tensor in merged_tensors(model, dtype):
            digests[name] = tensor_digest(tensor)
            yield name, tensor

    write_shards(with_digests(), sizes, directory, shard_bytes, always_index=True)
    return digests


# -- checking -------------------------------------------------------------------------------------


def rendered_page(builder: SampleBuilder) -> Batch:
    """One document of the embedded corpus, drawn with the run's page settings, and its answer."""
    document = corpus.documents("val")[0]
    row = Row("the embedded corpus", document.summary, text=document.text)
    return collate([builder(row)], builder.special)


@torch.no_grad()
def page_logits(model: DeepseekOCR, batch: Batch, precision: str) -> Tensor:
    """float32 [T, V], on the CPU, of a batch of one sample."""
    device = model.lm_head.weight.device
    model.eval()
    with autocast(device, precision):
        return model(batch.to(device))[0].float().cpu()


def compare(written: Tensor, expected: Tensor, where: Path) -> str:
    """A sentence for the user about two logits [T, V]. Raises UserError if they differ by more than
    rounding explains.

    where: the directory that was written, for the message.
    """
    error = ((written - expected).norm() / expected.norm()).item()
    agree = (written.argmax(-1) == expected.argmax(-1)).float().mean().item()
    text = (
        f"logits on a rendered page differ from the model in memory by {error:.2%} of their norm; "
        f"the most probable token is the same at {agree:.1%} of {len(expected)} positions"
    )
    if not error <= TOLERANCE:  # also where it is not a number
        raise UserError(f"{where}: {text}; more than {TOLERANCE:.0%}, so the export is withdrawn")
    return text


def check_tensors(directory: Path, digests: dict[str, bytes]) -> None:
    """Reads every tensor back. Raises UserError naming one whose bytes are not what was written."""
    with ExitStack() as stack:
        source = open_tensors(directory, stack)
        for name, digest in digests.items():
            if tensor_digest(source[name].get_tensor(name)) != digest:
                raise UserError(f"{directory}: {name} was not read back as written")


# -- a run's model or adapter, as a directory ------------------------------------------------------


def export_model(
    settings: Settings,
    run: Path,
    checkpoint: Path,
    to: Path,
    *,
    device: torch.device,
    base: Path | None = None,
    shard_bytes: int = SHARD_BYTES,
    dtype: torch.dtype = torch.bfloat16,
) -> str:
    """Writes a run's model (its adapter merged) to `to`; returns what the check found.

    base: a checkpoint to merge the adapter into, in place of the run's quantised one; shard_bytes:
    largest file; dtype: of the weights written. Raises UserError if the check fails; then nothing
    is left at `to`.
    """
    model, directory = load_run_model(settings, run, checkpoint, device, base=base)
    builder = SampleBuilder(settings, model.config, load_tokenizer(directory))
    batch = rendered_page(builder)
    precision, held = settings.optim.precision, model.lm_head.weight.dtype
    expected = page_logits(model, batch, precision)
    with whole_directory(to) as partial:
        digests = write_model(model, partial, directory, shard_bytes, dtype)
        describe(builder, run, checkpoint, partial)
        rounded = dtype == torch.bfloat16 and (held != dtype or model.adapter is not None)
        del model  # two models need not fit
        gc.collect()
        check_tensors(partial, digests)
        written = DeepseekOCR.from_pretrained(partial, device=device)
        hold_as_trained(written, settings)
        text = compare(page_logits(written, batch, precision), expected, to)
    return text + ("; the weights are rounded to bf16 (--dtype float32: they are not)" * rounded)


def export_adapter(
    settings: Settings, run: Path, checkpoint: Path, to: Path, *, device: torch.device
) -> str:
    """Copies a run's adapter to `to` and reads it back; returns what the check found. Raises
    UserError if the check fails; then nothing is left at `to`."""
    model, directory = load_run_model(settings, run, checkpoint, device)
    builder = SampleBuilder(settings, model.config, load_tokenizer(directory))
    batch, precision = rendered_page(builder), settings.optim.precision
    expected = page_logits(model, batch, precision)
    with whole_directory(to) as partial:
        copy_adapter(checkpoint, partial)
        describe(builder, run, checkpoint, partial)
        adapter.restore_adapter(model, partial)
        text = compare(page_logits(model, batch, precision), expected, to)
    if any(map(in_encoder, lora.pairs(model))):
        text += (
            "\nnote: the adapter has linears of the encoder, under official names: PEFT reads it "
            "over the official modules, not over transformers' own classes, which cut some in "
            "three, and servers adapt the decoder alone; --merge makes a model for all of them"
        )
    if (to / adapter.OTHERS).exists():
        text += (
            f"\nnote: {adapter.OTHERS} holds what trained beside the adapter, which other "
            "programs do not read; --merge makes a model that has it"
        )
    return text


def copy_adapter(checkpoint: Path, directory: Path) -> None:
    """Those files of a checkpoint that are its adapter, and what trained beside it."""
    for name in (adapter.CONFIG, adapter.TENSORS, adapter.OTHERS):
        if (checkpoint / name).exists():
            shutil.copyfile(checkpoint / name, directory / name)


def describe(builder: SampleBuilder, run: Path, checkpoint: Path, directory: Path) -> None:
    """How to ask what `directory` holds: for people as README.md, for our commands as TOML."""
    card = model_card(builder, run, checkpoint, (directory / adapter.CONFIG).exists())
    (directory / "README.md").write_text(card, encoding="utf-8")
    text = recorded.as_toml(builder.settings)
    (directory / recorded.FILE).write_text(text, encoding="utf-8")


def stage_for_hub(
    model: DeepseekOCR, base: Path, settings: Settings, run: Path, checkpoint: Path
) -> Path:
    """RUN/hub: what a training run uploads when it ends, from the model that is still in memory.

    base: directory of the model that the run began with.
    """
    with whole_directory(run / "hub") as partial:
        if model.adapter is not None:
            copy_adapter(checkpoint, partial)
        else:
            check_tensors(partial, write_model(model, partial, base, SHARD_BYTES))
        builder = SampleBuilder(settings, model.config, load_tokenizer(base))
        describe(builder, run, checkpoint, partial)
    return run / "hub"
