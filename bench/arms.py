"""What a page is worth: the same training with something else in the pages' place (--page-as).

    python bench/arms.py                      # six runs on the embedded notices, then the table
    python bench/arms.py --steps 120 --seeds 0 1 2

In: how many steps, which seeds, whatever else `train` takes (after --). Out: a table of the runs'
last evaluations, and one JSON line.

The one idea: all runs have the same weights to start from, the same rows in the same order and as
many steps; they differ in --page-as alone. `head`, `tail` and `mean` take the positions that the
page takes. The default model, tiny-reader, has been trained on pages and never on text in their
place, so `rendered` starts ahead; `--model tiny` starts all of them from random weights.
"""

import argparse
import contextlib
import sys
import tempfile
from pathlib import Path
from statistics import mean

from common import environment, finish, table

from deepsynth_min import train
from deepsynth_min.reports.runs import read_metrics

ARMS = ("rendered", "text", "head", "tail", "mean", "none")
SHOWN = ("prompt_tokens", "loss", "rougeL", "exact_match")


def trained(arm: str, steps: int, seed: int, more: list[str], out: Path) -> list[dict]:
    """The evaluations of one run, before the first step and after the last."""
    given = ["--page-as", arm, "--max-steps", str(steps), "--seed", str(seed), "--eval-every", "0"]
    given += ["--beams", "1", "--ablation-samples", "0", "--out", str(out), *more]
    with contextlib.redirect_stdout(sys.stderr):
        if train.main(given):
            raise SystemExit(f"the run --page-as {arm} failed")
    return read_metrics(out)["eval"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=200, help="optimizer steps of each run (200)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="a run of each (0)")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS, help="which (all)")
    parser.add_argument("--out", type=Path, help="keep the run directories in this folder")
    parser.add_argument("more", nargs="*", help="after --: further settings of `train`")
    given = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.out or Path(scratch)
        for arm in given.arms:
            for seed in given.seeds:
                scored = trained(arm, given.steps, seed, given.more, folder / f"{arm}-{seed}")
                results.append({"arm": arm, "seed": seed, "first": scored[0], "last": scored[-1]})
                print(f"{arm}, seed {seed}: {scored[-1]['loss']:.4f}", file=sys.stderr, flush=True)
    rows = []
    for arm in given.arms:
        of_arm = [result for result in results if result["arm"] == arm]
        cells = [mean(result["first"]["loss"] for result in of_arm)]
        for name in SHOWN:
            cells.append(mean(result["last"].get(name, float("nan")) for result in of_arm))
        rows.append((arm, f"{cells[1]:.0f}", f"{cells[0]:.3f}", *(f"{c:.3f}" for c in cells[2:])))
    head = ("in the page's place", "tokens before the answer", "loss before", "loss after")
    print("\n" + table(rows, (*head, "ROUGE-L", "exact match")))
    finish({"bench": "arms", **environment("torch"), "steps": given.steps, "results": results})


if __name__ == "__main__":
    main()
