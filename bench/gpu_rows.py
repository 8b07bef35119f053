"""The worker of gpu.py: does one row after another in one process, for starting one takes long.

In: on standard input a line of JSON for each row, `{"work": ..., "words": [...]}`. Out: on standard
output `{"ready": true}`, then a line of JSON for each line of the table as soon as it is known, and
`{"end": ...}` with how the row ended. What else is printed goes to standard error. It ends when its
input does, even in the middle of a row: then gpu.py is gone.

The one idea: after a row that failed, or that left memory of the GPU behind, nobody can be sure of
the next one's figures, so `end` says whether a new process should do it ("fresh").
"""

import argparse
import gc
import json
import os
import queue
import signal
import sys
import threading
import time
import traceback
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator

import encoder
import gpu_checks
import gpu_forms
import profile_step
import roofline
import torch
import train_step
from common import environment, interleaved, median, product_rate, table
from gpu_checks import line

from deepsynth_min.errors import UserError
from deepsynth_min.training.distributed import World, start
from deepsynth_min.training.host_copy import HostCopier

LEFT_BEHIND = 2**28  # bytes of the GPU that a row may leave behind


def machine(world: World, given: Namespace) -> Iterator[dict]:
    """Where this ran, and the rate of a large product."""
    cuda = world.device.type == "cuda"
    found = environment("torch", "triton", "transformers", "peft", "bitsandbytes")
    found["device"] = torch.cuda.get_device_name() if cuda else "CPU"
    if cuda:
        own = torch.cuda.get_device_properties(world.device)
        found |= {"memory": own.total_memory, "capability": f"{own.major}.{own.minor}"}
        found["cuda"] = torch.version.cuda
    side, dtype = (8192, torch.bfloat16) if cuda else (1024, torch.float32)
    product = {"product": product_rate(world.device, dtype, side)}
    seconds = median(interleaved(product, 10, world.device, warmup=3)["product"])
    what = f"product of side {side}, {str(dtype).removeprefix('torch.')}"
    rate = line(what, 2e-12 * side**3 / seconds, "TFLOP/s")
    yield rate | {"machine": found}


def at(world: World) -> list[str]:
    """The options that say where a bench is to run."""
    return ["--device", world.device.type, "--threads", str(torch.get_num_threads())]


def options(words: list[str], world: World) -> Namespace:
    return train_step.parser("").parse_args(words + at(world))


def step(world: World, given: Namespace) -> Iterator[dict]:
    """The trainer's step: samples/s, utilisation, where the time goes, memory."""
    made, found = train_step.measure(given, world)
    rate, batch = given.batch_size / found["step_s"], f"B {given.batch_size}"
    utilisation = made.flops() / found["step_s"] / found["product_rate"]
    split = ", ".join(f"{part} {1e3 * s:.1f}" for part, s in found["split_s"].items())
    note = f"{1e3 * found['step_s']:.1f} ms: {split}; utilisation {utilisation:.0%}"
    yield line(f"{batch}: samples/s", rate, "samples/s", note=note) | {"data": found}
    reserved = found["reserved_bytes"]
    note = f"reserved {reserved / 2**30:.2f} GiB" if reserved else "resident, of the process"
    yield line(f"{batch}: peak memory", found["peak_memory_bytes"] / 2**30, "GiB", note=note)


def peer(world: World, given: Namespace) -> Iterator[dict]:
    """The same step of transformers' class with PEFT, in turn with ours; equal losses first."""
    import whole_step

    given.peers = ["grouped_mm"]
    found = whole_step.measure(given, world)
    times = ", ".join(f"{name} {1e3 * s:.1f} ms" for name, s in found["seconds"].items())
    if given.tune == "decoder":  # transformers 5.23 casts the rows to its experts' weights
        times += "; the peer's experts multiply in float32, the type of its weights"
    yield line(f"B {given.batch_size}: x transformers with PEFT", found["ratio"], "x", note=times)


def forms(world: World, given: Namespace) -> Iterator[dict]:
    """The encoder alone, forward: ours by columns and by a compiled kernel, transformers'."""
    names = ("deepsynth_min", "transformers")
    if world.device.type == "cuda":  # compiled for a CPU, torch 2.13's kernel errs on several pages
        names += ("flex",)
    seconds, _ = encoder.timed(given, world.device, names)
    for name in names:
        form = "ours, columns" if name == "deepsynth_min" else name
        yield line(f"{given.pages} pages, {form}", 1e3 * seconds[name], "ms")
    if world.device.type != "cuda":
        yield line("peak memory", "on a GPU alone")
        return
    for name in (*names, "official"):
        _tidy(world)
        peak = encoder.peak(given, name)["peak"] / 2**30
        yield line(f"{given.pages} pages, {name}: memory beside weights", peak, "GiB")


def trace(world: World, given: Namespace, file: str) -> Iterator[dict]:
    """One step in the profiler: idle share, host waits, the ten dearest operations and kernels,
    and the same operations on paper."""
    made = train_step.Step(given, world)
    for _ in range(max(1, given.warmup)):
        made.run()
    seen = profile_step.profiled(made, file)
    cuda = world.device.type == "cuda"
    idle, waits = seen["gpu_idle"], seen["host_waits"]
    yield line("idle share of the GPU", 100 * idle if cuda else "on a GPU alone", "%" * cuda)
    where = Counter(waits or ())
    note = "; ".join(f"{place} x {n}" for place, n in where.most_common(6))
    yield line("host waits in a step", len(waits) if cuda else "on a GPU alone", note=note)
    for o in seen["kernels"][:10]:
        yield line(f"kernel {o['name'][:60]}", o["us"] / 1e3, "ms", note=f"{o['calls']} calls")
    del made
    measured = {o["name"].removeprefix("aten::"): o for o in seen["operations"]}
    for o in seen["operations"][:10]:
        yield line(f"operation {o['name'][:60]}", o["us"] / 1e3, "ms", note=f"{o['calls']} calls")
    yield from _paper(world, given, measured)


def _paper(world: World, given: Namespace, measured: dict) -> Iterator[dict]:
    """What the step takes by arithmetic, on this GPU or, where it is not in the list, on an H100;
    its ten dearest operations beside what the profiler saw under the same name."""
    device = torch.cuda.get_device_name().lower() if world.device.type == "cuda" else ""
    name = next((gpu for gpu in roofline.GPUS if gpu in device.replace(" ", "")), "h100")
    gpu = roofline.GPUS[name]
    paper = roofline.our_paper(given)
    yield line(f"on paper ({name}): step", 1e3 * paper.step(gpu), "ms")
    rows = roofline.by_operation(paper, gpu, 10)
    print(table(rows, ("operation", "kernels", "time", "GB", "TFLOP")))
    for operation, kernels, took, *_ in rows:
        seen = measured.get(operation.partition(" (")[0])
        note = f"{kernels} kernels" + (f"; measured {seen['us'] / 1e3:.1f} ms" if seen else "")
        yield line(f"on paper: {operation}", float(took.removesuffix(" ms")), "ms", note=note)


def copies(world: World, dry: bool) -> Iterator[dict]:
    """Copies for a checkpoint while the tensors are changed at once: as they were; and how long the
    host waited for them."""
    count, side = (4, 64) if dry else (8, 8192)  # 2 GiB in float32
    tensors = {str(i): torch.randn(side, side, device=world.device) for i in range(count)}
    before = {name: tensor.to("cpu", copy=True) for name, tensor in tensors.items()}
    copier = HostCopier(world.device)
    for number in ("first", "second"):  # the first allocates page-locked memory
        began = time.perf_counter()
        (found,), arrived = copier([tensors]), copier.arrived
        asked = time.perf_counter() - began
        copier.before_change()
        for tensor in tensors.values():
            tensor.add_(1)
        if arrived is not None:
            arrived.synchronize()
        wrong = sum(not found[name].equal(before[name]) for name in before)
        seconds = time.perf_counter() - began
        note = f"the host waited {1e3 * asked:.1f} ms, the copies took {1e3 * seconds:.0f} ms"
        what = f"{number} copies of {count} tensors: other than they were"
        yield line(what, wrong, "tensors", ("<=", 0, "right"), note)
        before = {name: tensor.to("cpu", copy=True) for name, tensor in tensors.items()}
        del found


def lines_of(request: dict, world: World, dry: bool) -> Iterator[dict]:
    """The row's lines."""
    work, words = request["work"], request["words"]
    if work == "machine":
        yield from machine(world, Namespace())
    elif work in ("step", "peer"):
        yield from {"step": step, "peer": peer}[work](world, options(words, world))
    elif work == "copies":
        yield from copies(world, dry)
    elif work == "forms":
        yield from forms(world, encoder.parser().parse_args(words + at(world)))
    elif work == "trace":
        yield from trace(world, options(words, world), request["file"])
    else:
        check = getattr(gpu_forms, work, None) or getattr(gpu_checks, work)
        yield from check(world.device, dry, *words)


def _tidy(world: World) -> int:
    """Frees what nobody holds; bytes of the GPU that are held still."""
    gc.collect()
    if world.device.type != "cuda":
        return 0
    torch.cuda.empty_cache()
    return torch.cuda.memory_allocated()


def done(request: dict, world: World, dry: bool, tell) -> dict:
    """Does a row; how it ended."""
    torch._dynamo.reset()  # of a function that was compiled eight times no more kernels are written
    try:
        for found in lines_of(request, world, dry):
            tell(found)
    except UserError as error:
        return {"end": "refused", "error": str(error), "fresh": True}
    except Exception as error:
        traceback.print_exc()
        said = (str(error).strip() or "no message").splitlines()[0]
        return {"end": "failed", "error": f"{type(error).__name__}: {said}"[:300], "fresh": True}
    return {"end": "done", "fresh": _tidy(world) > LEFT_BEHIND}


def requests() -> Iterator[dict]:
    """Rows to do. The end of the input ends the process, and what it has started, at once."""
    given: queue.Queue[str] = queue.Queue()

    def read() -> None:
        for text in sys.stdin:
            given.put(text)
        if os.getpgrp() == os.getpid():  # as gpu.py starts it
            os.killpg(0, signal.SIGKILL)
        os._exit(1)

    threading.Thread(target=read, daemon=True).start()
    while True:
        yield json.loads(given.get())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", required=True)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--dry-run", action="store_true")
    given = parser.parse_args()
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def tell(found: dict) -> None:
        print(json.dumps(found), file=channel, flush=True)

    world = start(given.device, given.threads)
    tell({"ready": True})
    for request in requests():
        tell(done(request, world, given.dry_run, tell))


if __name__ == "__main__":
    main()
