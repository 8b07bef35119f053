"""A reference sliding window: memory and time of long answers, in training and in generation.

    python bench/window.py                     # preset tiny; prompt 300, answers 2048, 4096, 8192
    python bench/window.py --preset unlimited-ocr --device cuda --precision bf16   # on a GPU

Training: forward and backward of the decoder on one sample, in a process each: with the window in
chunks (model/attention.py), on a GPU also in one kernel (model/window_blocks.py; a step before the
one that is measured compiles it), with the same window as a dense mask, and without a window. Peak
is what the step needs above what was held before. Generation: the cache's bytes, the process's
memory and seconds per token when 200 and when `--generated` tokens have been decoded.
"""

import argparse
import json
import time
from dataclasses import replace

import torch
from common import SIZES, child, environment, finish, resident, table

from deepsynth_min.model.attention import KVCache
from deepsynth_min.model.decoder import Layout
from deepsynth_min.model.deepseek_ocr import DeepseekOCR
from deepsynth_min.training.compile import has_compiler
from deepsynth_min.training.distributed import start

FORMS = ("window", "window, one kernel", "dense mask", "no window")
FIRST = 200  # tokens


def device_of(given) -> torch.device:
    return start(given.device, given.threads).device


def build(given, windowed: bool) -> DeepseekOCR:
    config = SIZES[given.preset]
    window = given.window if windowed else 0
    decoder = replace(config.decoder, sliding_window=window, max_position_embeddings=2**17)
    torch.manual_seed(0)
    device = device_of(given)
    dtype = torch.bfloat16 if given.precision == "bf16" else torch.float32
    with torch.device("meta"):
        model = DeepseekOCR(replace(config, decoder=decoder))
    model.model.sam_model = model.model.vision_model = None  # the decoder alone is measured
    model.to_empty(device=device).to(dtype)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    return model


def memory(device: torch.device, peak: bool) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()
    return resident("VmHWM" if peak else "VmRSS")


def train(given, form: str, answer: int) -> dict:
    model = build(given, windowed=form != "no window")
    weight, T = model.lm_head.weight, given.prompt + answer
    x = torch.randn(1, T, weight.shape[1], device=weight.device, dtype=weight.dtype)
    every = torch.ones(1, T, dtype=torch.bool, device=weight.device)
    packed = Layout(lengths=(T,), prompts=(given.prompt,))
    layout = {
        "window": packed,
        "window, one kernel": packed,
        "dense mask": Layout(valid=every, prompts=(given.prompt,)),
        "no window": Layout(lengths=(T,)),
    }[form]
    model.window_in_blocks = form == "window, one kernel"

    def step() -> torch.Tensor:
        out, _ = model.hidden(x, layout)
        out[:, given.prompt :].float().square().mean().backward()
        return out

    if model.window_in_blocks:
        step()  # compiles it
        model.zero_grad(set_to_none=True)
    if weight.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    before, began = memory(weight.device, False), time.perf_counter()
    out = step()
    peak = memory(weight.device, True) - before  # waits for the device
    return {"peak": peak, "seconds": time.perf_counter() - began, "norm": out.float().norm().item()}


@torch.no_grad()
def decode(given, form: str) -> list[dict]:
    model, found = build(given, windowed=form == "window"), []
    weight, config = model.lm_head.weight, model.config.decoder
    x = torch.randn(1, given.prompt, weight.shape[1], device=weight.device, dtype=weight.dtype)
    capacity = given.prompt + FIRST
    cache = KVCache(config, 1, capacity, weight.dtype, weight.device, prompt=given.prompt)
    model.hidden(x, Layout(), cache)
    began = time.perf_counter()
    for t in range(1, given.generated + 1):
        model.hidden(x[:, :1], Layout(), cache)
        if t in (FIRST, given.generated):
            used = memory(weight.device, False)
            seconds = (time.perf_counter() - began) / (FIRST if t == FIRST else t - FIRST)
            found.append({"cache": cache.store.nbytes, "memory": used, "seconds": seconds})
            began = time.perf_counter()
    return found


def mib(value: int) -> str:
    return f"{value / 2**20:,.0f} MiB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--preset", choices=SIZES, default="tiny")
    add("--window", type=int, default=128)
    add("--prompt", type=int, default=300, help="tokens that all others see")
    add("--answers", type=int, nargs="+", default=[2048, 4096, 8192])
    add("--generated", type=int, default=4000)
    add("--precision", choices=("fp32", "bf16"), default="fp32")
    add("--device", default="auto")
    add("--threads", type=int, default=0)
    add("--row", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.row:
        kind, form, answer = json.loads(given.row)
        print(json.dumps(train(given, form, answer) if kind == "train" else decode(given, form)))
        return
    forms = [f for f in FORMS if f != "window, one kernel" or has_compiler(device_of(given))]
    trained = {
        (form, answer): child(json.dumps(["train", form, answer]))
        for answer in given.answers
        for form in forms
    }
    for answer in given.answers:
        norms = [trained[form, answer]["norm"] for form in forms if form != "no window"]
        assert max(norms) - min(norms) <= 1e-3 * max(norms), "forms of the window differ"
    rows = [
        (f"{answer:,}", form, mib(row["peak"]), f"{row['seconds']:.2f} s")
        for (form, answer), row in trained.items()
    ]
    print(table(rows, ("answer", "training", "peak", "forward and backward")))
    generated = {f: child(json.dumps(["decode", f, 0])) for f in ("window", "no window")}
    rows = [
        (f"{n:,}", form, mib(r["cache"]), mib(r["memory"]), f"{1000 * r['seconds']:.2f} ms")
        for form, found in generated.items()
        for n, r in zip((FIRST, given.generated), found)
    ]
    print()
    print(table(rows, ("tokens", "generation", "cache", "process", "per token")))
    results = [{"form": f, "answer": a, **row} for (f, a), row in trained.items()]
    finish(
        {
            "bench": "window",
            "preset": given.preset,
            "window": given.window,
            "training": results,
            "generation": generated,
            **environment("torch"),
        }
    )


if __name__ == "__main__":
    main()
