"""Two epochs of real training with the feature cache: the second against the first.

    python bench/feature_cache.py        # preset tiny with 448 px pages: encoder half the step

The runs are the trainer's own, without and with the cache; what their metrics.jsonl say is
compared. Rows are not bucketed, which would mix the epochs. Epochs follow each other, so that only
an idle machine gives a figure that means anything.
"""

import argparse
import json
import tempfile
from pathlib import Path

from common import environment, finish, median, table

from deepsynth_min import train
from deepsynth_min.corpus import documents as corpus


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mode", default="448")
    parser.add_argument("--tune", default="decoder")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.jsonl"
        chosen = corpus.documents("train")[: given.rows + 1]
        rows.write_text(
            "".join(json.dumps({"text": d.text, "summary": d.summary}) + "\n" for d in chosen),
            "utf-8",
        )
        rates = {}
        for cache in ("off", "memory"):
            out = Path(folder) / cache
            options = [
                *("--data", rows, "--out", out, "--feature-cache", cache, "--model", "tiny"),
                *("--mode", given.mode, "--tune", given.tune, "--epochs", 3),
                *("--batch-size", given.batch_size, "--threads", given.threads),
                *("--val-fraction", 0, "--val-samples", 1, "--answer-samples", 0),
                *("--ablation-samples", 0, "--eval-every", 0, "--save-every", 0),
                *("--bucket", 0, "--log-every", 1),
            ]
            code = train.main([str(option) for option in options])
            assert code == 0
            lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
            steps = [line for line in lines if line["kind"] == "train"]
            epochs = [
                [s["samples_per_s"] for s in steps if e < s["epoch"] <= e + 1] for e in range(3)
            ]
            rates[cache] = [median(epoch) for epoch in epochs]
    table_rows = [
        (f"cache {name}", *(f"{rate:.2f}" for rate in by_epoch)) for name, by_epoch in rates.items()
    ]
    print(table(table_rows, ("samples/s", "epoch 1", "epoch 2", "epoch 3")))
    first, second, third = rates["memory"]
    share = 1 - rates["off"][1] / second
    print(f"epoch 2 / epoch 1: {second / first:.2f}; the encoder is {share:.0%} of the step")
    finish(
        {
            "bench": "feature_cache",
            **vars(given),
            "samples_per_s": rates,
            "speedup": second / first,
            "encoder_share": share,
            **environment("torch", "deepsynth-min"),
        }
    )


if __name__ == "__main__":
    main()
