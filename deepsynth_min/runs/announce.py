"""What a run says of itself, at its start and at its end, and what it says when it fails.

In: what train.py has set up, or an error. Out: lines on stdout, for people; an error that says what
to do about it. Nothing here computes anything.
"""

from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from textwrap import shorten

from torch import nn

from ..data.augment import MIRRORED
from ..data.order import Mixture
from ..data.row import Row
from ..data.rows import View
from ..errors import UserError, is_out_of_memory, number_of, one_line
from ..evaluation import ablations, needles
from ..evaluation.figures import best_beside_last
from ..model.deepseek_ocr import summary_table
from ..model.shape.presets import PRESETS, find_checkpoint
from ..pages.scripts import complaints, kerning_complaint
from ..pages.style import PageStyle
from ..reports.answers import pairs
from ..reports.runs import Run, best_evaluation
from ..settings import OptimSettings, PageSettings, Settings
from ..training.distributed import World, with_lost_ranks
from ..training.precision import kernels
from . import recorded
from .same_run import difference
from .storage.run_directory import RunDirectory

SHOWN = 400  # characters of a text that is printed


def announce(
    settings: Settings,
    model: nn.Module,
    rows: int,
    held_out: int,
    page_side: int,
    global_batch: int,
    world: World,
    directory: RunDirectory,
    rate: float,
    space: str,
) -> None:
    """Prints the data, the parameters by part, how far the run will go, by which kernels,
    and what it will store.

    rate: FLOP/s of this rank's device. space: a line about what is stored, "" for a run that is
    finished.
    """
    name = settings.model.model
    print(
        f"{name} on {', '.join(settings.data.data)}: {number_of(rows, 'training row')}, "
        f"{number_of(held_out, 'held-out row')} scored; pages of {page_side} px"
    )
    if name in PRESETS:
        print("the weights are random: a preset is for trying out, not a trained model")
    if settings.augment.augment and settings.augment.augment_flip:
        print(f"warning: {MIRRORED}")
    print(
        f"\n{summary_table(model)}\ntrained: {settings.model.tune}; {rates_text(settings.optim)}\n"
    )
    where = f"{number_of(world.size, 'process')} on {world.device.type}"
    print(
        f"{number_of(settings.optim.max_steps, 'step')} of {number_of(global_batch, 'sample')}, "
        f"{where}; run directory: {directory.path}"
    )
    by_flex = any(block.attn.by_score for block in model.model.sam_model.blocks)
    print(kernels(world.device, settings.optim.precision, by_flex))
    print(f"MFU is counted by the rate of a large product: {rate / 1e9:,.0f} GFLOP/s")
    if global_batch > rows:
        print(
            f"warning: a step has {number_of(global_batch, 'sample')}, the data "
            f"{number_of(rows, 'row')}: each comes {global_batch / rows:.3g} times in a step "
            "(--batch-size, --accumulate)"
        )
    if space:
        print(space)


def rates_text(optim: OptimSettings) -> str:
    """The peak learning rate, and those of the parts that have their own."""
    own = {"projector": optim.lr_projector, "encoder": optim.lr_encoder}
    text = "".join(f", of the {part} {rate:g}" for part, rate in own.items() if rate)
    return f"peak learning rate {optim.lr:g}{text}"


def first_texts(rows: Sequence[Row], count: int) -> Iterator[str]:
    """Texts of the first rows of the data's files, in their own order: a permutation of a large
    Parquet file would be read all over."""
    if isinstance(rows, Mixture):
        for source in rows.sources:
            yield from first_texts(source, -(-count // len(rows.sources)))
        return
    while isinstance(rows, View):
        rows = rows.rows
    for i in range(min(count, len(rows))):
        yield rows[i].text or ""


def drawing_faults(rows: Sequence[Row], style: PageStyle, count: int = 1000) -> list[str]:
    """What cannot be drawn as it should, judged by the first rows; a line for each script."""
    kerning = kerning_complaint(style)
    return complaints(first_texts(rows, count), style) + ([kerning] if kerning else [])


def refuse_missing(rows: Sequence[Row], settings: Settings, style: PageStyle) -> None:
    """With --on-missing error, unless such rows are left out: raises UserError before training."""
    if settings.page.on_missing != "error" or settings.data.on_bad_row != "error":
        return
    if faults := [line for line in drawing_faults(rows, style) if not line.startswith("--")]:
        raise UserError(f"--on-missing error: {'; '.join(faults)}")


def asked_otherwise(settings: Settings, base: Path) -> list[str]:
    """A line for the model and one for the adapter that a run starts from, if it was trained with
    other pages or another instruction than this run's: its own are not taken over."""
    names = {"mode", "instruction", *(f.name for f in fields(PageSettings))} - {*recorded.FONTS}
    now, lines = recorded.values(settings), []
    starts = {settings.model.model: base}
    if settings.adapter.adapter:
        starts[settings.adapter.adapter] = find_checkpoint(settings.adapter.adapter)
    for name, directory in starts.items():
        try:
            found = recorded.read(directory)
        except UserError as error:
            lines.append(f"{error} (training does not need this file)")
            continue
        changed = [n for n in found if n in names and found[n] != now[n]]
        if changed:
            what = "; ".join(difference(n, found[n], now[n]) for n in changed)
            lines.append(f"{name} was trained with {what}")
    return lines


def cautions(
    settings: Settings, base: Path, step: int, rows: Sequence[Row], style: PageStyle
) -> list[str]:
    """Lines to warn with at the start of a run, after `step` steps."""
    otherwise = [] if step else asked_otherwise(settings, base)
    return otherwise + drawing_faults(rows, style)


def conclude(directory: RunDirectory, step: int, last: dict | None, metric: str) -> None:
    """Prints what a finished run has reached. last: its newest evaluation, if it made one; metric:
    the figure by which a checkpoint is the best."""
    if last is None:
        print(f"nothing left to do: --max-steps {step} are done")
        return
    if scored := directory.evaluations():
        first, best = scored[0], best_evaluation(directory.path, scored)
        reached = f"held-out loss {first['loss']:.4f} -> {last['loss']:.4f} nats per token"
        beside = best and best_beside_last(best, scored[-1], metric)
        print(f"{reached}; {beside}" if beside else reached)
    if found := needles.table(last):
        print(found)
    if note := ablations.warning(last):
        print(f"warning: {note}")


def show_answers(directory: RunDirectory, rows: Sequence[Row]) -> None:
    """Prints three held-out documents with the answers before and after training."""
    run = Run(directory.path, 0)
    if not run.last:
        return
    for before, after in pairs(run.first_answers(), run.answers(run.last["step"], "last")):
        number = after["number"]
        picture = directory.path / "pages" / f"held-out-{number}.png"
        print(f"\nheld-out row {number}" + (f": {picture}" if picture.exists() else ""))
        texts = {
            "document": " / ".join(filter(None, (rows[number].text or "").splitlines())),
            "question": after.get("instruction", ""),
            "before": before["answer"],
            "after": after["answer"],
            "reference": after["reference"],
        }
        for name, text in texts.items():
            if text:
                print(f"  {name + ':':<10} {one_line(shorten(text, SHOWN, placeholder=' ...'))}")
    print()


def retried(step: int, before: OptimSettings, now: OptimSettings) -> str:
    """What is said of a step (counted from 0) that did not fit into memory."""
    return (
        f"step {step + 1}: out of memory with micro-batches of {before.batch_size}; goes on with "
        f"--batch-size {now.batch_size} --accumulate {now.accumulate}, which changes no result"
    )


def explained(error: RuntimeError | MemoryError) -> Exception:
    """The error to raise in place of one that ended a run: it names the processes that were lost,
    or, if memory was, what to lower."""
    if not is_out_of_memory(error):
        return with_lost_ranks(error)
    first = (str(error).splitlines() or [type(error).__name__])[0]
    return UserError(
        "out of memory: lower --mode or --max-pages (with --shard also --batch-size), or use "
        f"--precision bf16, --checkpoint-layers, --tune lora or qlora ({first})"
    )
