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
    return [f"{w.filename}:{w.lineno}" for w in caught if "synchroniz" in str(w.message)]


def gaps(events) -> float:
    """Share of the time from the first kernel to the last in which the GPU had none to run."""
    spans = sorted(
        (e.time_range.start, e.time_range.end)
        for e in events
        if e.device_type == torch.autograd.DeviceType.CUDA
    )
    end, idle = spans[0][1], 0.0
    for began, ended in spans[1:]:
        idle += max(0.0, began - end)
        end = max(end, ended)
    return idle / (end - spans[0][0])


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
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * cuda
    with profile(activities=activities, with_flops=True) as seen:
        step.run()
        step.wait()
    side = 8192 if cuda else 2048
    dtype = torch.bfloat16 if given.precision == "bf16" else torch.float32
    product = {"product": product_rate(world.device, dtype, side)}
    rate = 2 * side**3 / median(interleaved(product, 5, world.device)["product"])
    key = "self_device_time_total" if cuda else "self_cpu_time_total"
    operations = sorted(seen.key_averages(), key=lambda o: -getattr(o, key))
    whole = sum(getattr(o, key) for o in operations)
    found = [
        {
            "name": o.key,
            "calls": o.count,
            "us": getattr(o, key),
            "of_product_rate": o.flops / (getattr(o, key) * 1e-6) / rate if o.flops else None,
        }
        for o in operations[:10]
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
    waits = synchronisations(step) if cuda else None
    idle = gaps(seen.events()) if cuda else None
    if cuda:
        print(f"the GPU had nothing to run for {idle:.1%}; the host waited {len(waits)} times")
        print("\n".join(sorted(set(waits))))
    if given_trace.trace:
        seen.export_chrome_trace(given_trace.trace)
    finish(
        {
            "bench": "profile_step",
            **vars(given),
            "operations": found,
            "product_rate": rate,
            "host_waits": waits,
            "gpu_idle": idle,
            **environment("torch"),
        }
    )
    stop()


if __name__ == "__main__":
    main()
