"""The size of a micro-batch where memory decides it: a step that did not fit is made again.

In: a step's forward and backward. Out: its loss, or the word that it is to be made again; settings
with smaller micro-batches and as many more of them.

The one idea: what a step gives does not depend on how it is divided, so where memory ends, half the
micro-batch and twice the accumulation go on with the same run. A step of which a part failed
leaves nothing behind: its gradients are dropped, and its dropout is seeded anew.

Several processes must divide alike, and none may wait for a reduction that another will never
start. So a rank that ran out first frees what it held and joins the reductions that are left, with
zeros (`GradientReducer.abandon`); every rank thus ends the step having started the same reductions
in the same order, and only then do all ask each other, with one number, whether it is to be made
again. Nothing of the optimizer has moved by then. Memory that ends elsewhere (in the optimizer's
step, or in those zeros) ends the run. So does what ends within --shard, whose collectives are
within forward and backward, where a rank that fails leaves the others waiting: the one that failed
says with which micro-batch to go on.
"""

import gc
from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import UserError, is_out_of_memory
from ..options import change
from ..settings import OptimSettings, Settings
from .distributed import GradientReducer, World

AUTO_ON_CPU = 8  # more is hardly faster there, and a system that is out of memory kills


def largest(samples: int, most: int) -> int:
    """The largest micro-batch of at most `most` samples that divides a process's `samples`."""
    return next(size for size in range(min(samples, most), 0, -1) if samples % size == 0)


def with_auto(optim: OptimSettings, processes: int, device_type: str) -> int:
    """Where --batch-size auto begins: a process's whole share of the step, of which memory leaves
    what it can; on a CPU at most AUTO_ON_CPU. Another --batch-size is as it is.

    Raises UserError for auto without a --global-batch, or with one that cannot be divided.
    """
    if optim.batch_size:
        return optim.batch_size
    if not optim.global_batch:
        raise UserError("--batch-size auto: give --global-batch, the samples of an optimizer step")
    if optim.global_batch % processes:
        raise UserError(
            f"--global-batch {optim.global_batch}: not a multiple of {processes} processes"
        )
    samples = optim.global_batch // processes
    return largest(samples, AUTO_ON_CPU if device_type == "cpu" else samples)


def smaller(settings: Settings) -> Settings:
    """Half the micro-batch, or less where that does not divide the step, and as many more."""
    size, accumulate = _halved(settings.optim)
    return change(settings, batch_size=size, accumulate=accumulate)


def _halved(optim: OptimSettings) -> tuple[int, int]:
    size = largest(optim.batch_size * optim.accumulate, optim.batch_size // 2)
    return size, optim.batch_size * optim.accumulate // size


def _in_shards(optim: OptimSettings, error: Exception) -> UserError:
    """What to do about a step in shards for which memory did not last."""
    size, accumulate = _halved(optim)
    first = (str(error).splitlines() or [type(error).__name__])[0]
    return UserError(
        f"--batch-size {optim.batch_size}: out of memory, and with --shard no step is divided by "
        f"itself; go on with --resume auto --batch-size {size} --accumulate {accumulate}, which "
        f"changes no result ({first})"
    )


def attempt(
    world: World, reducer: GradientReducer, optim: OptimSettings, backward: Callable[[], Tensor]
) -> Tensor | None:
    """What `backward` returns, with the gradients reduced; None, on all ranks, if the step is to be
    made again in smaller micro-batches.

    Raises torch.OutOfMemoryError, on all ranks, if they cannot be smaller; with --shard UserError,
    on the rank that ran out.
    """
    result, failed = None, None
    try:
        result = backward()
        reducer.finish()
    except (RuntimeError, MemoryError) as error:
        in_shards = optim.shard and world.size > 1
        if not is_out_of_memory(error) or (in_shards and optim.batch_size == 1):
            raise
        if in_shards:
            raise _in_shards(optim, error) from None
        failed = error.with_traceback(None)  # which held the tensors of all its frames
    if failed is not None:
        result = None
        gc.collect()
        reducer.abandon()
    (ranks,) = world.sum(failed is not None)
    if not ranks:
        return result
    for parameter in reducer.parameters:
        parameter.grad = None
    if world.device.type == "cuda":
        torch.cuda.empty_cache()  # blocks of sizes that will not be asked for again
    if optim.batch_size == 1:
        raise torch.OutOfMemoryError(str(failed or "in another process"))
    return None
