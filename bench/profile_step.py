"""One training step profiled: the most expensive kernels, what bounds each, and host waits.

    python bench/profile_step.py                                             # preset tiny, CPU
    python bench/profile_step.py --preset deepseek-ocr --mode base --tune lora --batch-size 16 \\
        --precision bf16 --trace trace.json                                  # on a GPU

Takes train_step.py's options. The table gives, for the ten operations with the most time of their
own, their share of the step and, where torch counts their FLOPs, the share of the measured product
rate that they reach: near 1 they are bound by FLOPs, far below it by bytes or by starting them.
On a GPU one more step runs with `torch.cuda.set_sync_debug_mode`, which names every place where the
host waited for the device, and gaps between kernels are summed.
"""

import argparse
import sys
import warnings

import torch
import train_step
from common import environment, finish, interleaved, median, product_rate, table
from torch.profiler import ProfilerActivity, profile

from deepsynth_min.training.distributed import start, stop


def synchronisations(step) -> list[str]:
    """Places in one step where the host waited for the device."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        step.run()
        torch.cuda.set_sync_debug_mode("default")
    # Not torch's warning that the mode itself misses some.
    waits = [w for w in caught if "called a synchronizing" in str(w.message)]
    return [f"{w.filename}:{w.lineno}" for w in waits]


def on_device(event) -> bool:
    """Whether it is a kernel or a copy of the GPU's: not the operation that started it, nor a span
    that somebody named, which the profiler draws over the kernels as well."""
    return event.device_type == torch.autograd.DeviceType.CUDA and not event.is_user_annotation


def gaps(events) -> float:
    """Share of the time from the first kernel to the last in which the GPU had none to run."""
    spans = sorted((e.time_range.start, e.time_range.end) for e in events if on_device(e))
    end, idle = spans[0][1], 0.0
    for began, ended in spans[1:]:
        idle += max(0.0, began - end)
        end = max(end, ended)
    return idle / (end - spans[0][0])


def profiled(step: train_step.Step, trace: str | None = None) -> dict:
    """One step: its operations by their own time, dearest first, on a GPU its kernels too, where
    the host waited and for what share of the step the GPU had nothing to run.

    Each operation is a dict of name, calls, us and, where torch counts them, flops. trace: a file.
    """
    cuda = step.world.device.type == "cuda"
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * cuda
    with profile(activities=activities, with_flops=True) as seen:
        step.run()
        step.wait()
    averages, key = seen.key_averages(), f"self_{'device' if cuda else 'cpu'}_time_total"

    def dearest(of_device: bool) -> list[dict]:
        found = [o for o in averages if on_device(o) == of_device and getattr(o, key)]
        found = [
            {"name": o.key, "calls": o.count, "us": getattr(o, key), "flops": o.flops}
            for o in found
        ]
        return sorted(found, key=lambda o: -o["us"])

    if trace:
        seen.export_chrome_trace(trace)
    return {
        "operations": dearest(False),
        "kernels": dearest(True),
        "host_waits": synchronisations(step) if cuda else None,
        "gpu_idle": gaps(seen.events()) if cuda else None,
    }


def main() -> None:
    trace = argparse.ArgumentParser(add_help=False)
    trace.add_argument("--trace", help="file for chrome://tracing or ui.perfetto.dev")
    given_trace, rest = trace.parse_known_args()
    sys.argv[1:] = rest
    given = train_step.parser(__doc__.splitlines()[0]).parse_args()
    world = start(given.device, given.threads)
    cuda = world.device.type == "cuda"
    step = train_step.Step(given, world)
    for _ in range(given.warmup):
        step.run()
    seen = profiled(step, given_trace.trace)
    side = 8192 if cuda else 2048
    dtype = torch.bfloat16 if given.precision == "bf16" else torch.float32
    product = {"product": product_rate(world.device, dtype, side)}
    rate = 2 * side**3 / median(interleaved(product, 5, world.device)["product"])
    whole = sum(o["us"] for o in seen["operations"])
    found = [
        o | {"of_product_rate": o["flops"] / (o["us"] * 1e-6) / rate if o["flops"] else None}
        for o in seen["operations"][:10]
    ]
    rows = [
        (
            o["name"][:48],
            o["calls"],
            f"{o['us'] / 1e3:.1f} ms",
            f"{o['us'] / whole:.1%}",
            "" if o["of_product_rate"] is None else f"{o['of_product_rate']:.2f}",
        )
        for o in found
    ]
    print(table(rows, ("own time of", "calls", "time", "of all", "of product rate")))
    if cuda:
        kernels = [
            (o["name"][:80], o["calls"], f"{o['us'] / 1e3:.1f} ms") for o in seen["kernels"][:10]
        ]
        print(table(kernels, ("kernel", "calls", "time")))
        waits = seen["host_waits"]
        print(
            f"the GPU had nothing to run for {seen['gpu_idle']:.1%}; the host waited {len(waits)} "
            "times\n" + "\n".join(sorted(set(waits)))
        )
    finish(
        {
            "bench": "profile_step",
            **vars(given),
            **seen,
            "operations": found,
            "kernels": seen["kernels"][:10],
            "product_rate": rate,
            **environment("torch"),
        }
    )
    stop()


if __name__ == "__main__":
    main()
