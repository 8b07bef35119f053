"""`python -m deepsynth_min.tiny_reader --out DIR`: trains tiny-reader anew, from random weights.

In: a seed. Out: DIR/model, the model as it comes with the package (recipe.py).
"""

import sys
from pathlib import Path

from ..errors import exit_code
from ..files.disk import writing
from ..options import OneLineParser
from ..training.distributed import stop
from .recipe import Training


def run(arguments: list[str]) -> None:
    parser = OneLineParser(
        "python -m deepsynth_min.tiny_reader",
        description="Trains tiny-reader, the model that comes with the package, from random "
        "weights: hours on a CPU. Stopped, it goes on where it was.",
    )
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="DIR", help="new, or that of a stopped run")
    add("--seed", type=int, default=0, help="of weights and random words (default: 0)")
    add("--threads", type=int, default=0, help="CPU threads; 0: all cores (default: 0)")
    add(
        "--evaluate-every",
        type=int,
        default=300,
        metavar="STEPS",
        help="steps between error rates, each with a checkpoint (default: 300)",
    )
    given = parser.parse_args(arguments)
    with writing("--out", given.out):
        given.out.mkdir(parents=True, exist_ok=True)
    Training(given.out, given.seed, given.threads).run(given.evaluate_every)


def main(arguments: list[str] | None = None) -> int:
    return exit_code(run, arguments, stop)


if __name__ == "__main__":
    sys.exit(main())
