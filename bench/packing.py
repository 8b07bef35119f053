"""Packed against padded micro-steps of the embedded corpus: tokens wasted, and the step's time.

    python bench/packing.py                    # preset tiny, in the order that training has
    python bench/packing.py --bucket 0         # without length bucketing

The same samples, forward and backward of one model, in turn; the ratio of the medians counts.
"""

import argparse
import time

import torch
from common import environment, finish, median, table

from deepsynth_min.command_line import parse
from deepsynth_min.data import Loader, SampleBuilder
from deepsynth_min.data.sources import open_rows
from deepsynth_min.data.tokenizer import load_tokenizer
from deepsynth_min.model import PRESETS, DeepseekOCR
from deepsynth_min.training.build import EMBEDDED
from deepsynth_min.tuning import freeze


def batches(given, number: int) -> list:
    """Padded micro-steps, as training would make them."""
    settings = parse(
        [
            "--data",
            "embedded",
            "--no-pack",
            "--batch-size",
            str(given.batch_size),
            "--bucket",
            str(given.bucket),
        ]
    )
    rows, _ = open_rows(settings.data, settings.optim.seed)
    builder = SampleBuilder(settings, PRESETS["tiny"], load_tokenizer(EMBEDDED))
    loader = Loader(rows, builder, settings)
    try:
        return [next(loader)[0] for _ in range(number)]
    finally:
        loader.close()


def timed(model: DeepseekOCR, batch) -> float:
    model.zero_grad(set_to_none=True)
    began = time.perf_counter()
    loss, count = model.loss(batch)
    (loss / count).backward()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--bucket", type=int, default=16, help="as in training")
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    model = DeepseekOCR(PRESETS["tiny"])
    freeze.freeze(model, "decoder")
    padded = batches(given, given.repeats + 3)
    forms = {"padded": padded, "packed": [batch.packed() for batch in padded]}
    times = {name: [] for name in forms}
    for i in range(len(padded)):
        for name in list(forms) if i % 2 else list(forms)[::-1]:
            seconds = timed(model, forms[name][i])
            if i >= 3:
                times[name].append(seconds)
    wasted = {
        name: 1 - sum(b.tokens for b in made) / sum(b.input_ids.numel() for b in made)
        for name, made in forms.items()
    }
    speedup = median(times["padded"]) / median(times["packed"])
    rows = [(n, f"{wasted[n]:.1%}", f"{median(times[n]) * 1e3:.1f} ms") for n in forms]
    print(table(rows, ("micro-steps", "wasted", "forward + backward")))
    print(f"padded / packed: {speedup:.3f}")
    finish(
        {
            "bench": "packing",
            **vars(given),
            "wasted": wasted,
            "speedup": speedup,
            "seconds": {n: median(t) for n, t in times.items()},
            **environment("torch", "deepsynth-min"),
        }
    )


if __name__ == "__main__":
    main()
