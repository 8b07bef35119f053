"""`python -m deepsynth_min.tiny_reader --out DIR`: the recipe of tiny-reader, from random
weights."""

import sys
from pathlib import Path

from ..errors import exit_code
from ..options import OneLineParser
from ..training.distributed import stop
from .recipe import Training


def run(arguments: list[str]) -> None:
    parser = OneLineParser(
        prog="python -m deepsynth_min.tiny_reader",
        description="Teach the preset tiny-reader to read.",
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="directory; goes on with what is there"
    )
    parser.add_argument("--seed", type=int, default=0, help="of weights and words (default: 0)")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (default: all)")
    parser.add_argument(
        "--evaluate-every",
        type=int,
        default=300,
        help="steps between error rates, each with a checkpoint",
    )
    given = parser.parse_args(arguments)
    given.out.mkdir(parents=True, exist_ok=True)
    Training(given.out, given.seed, given.threads).run(given.evaluate_every)


def main(arguments: list[str] | None = None) -> int:
    return exit_code(run, arguments, stop)


if __name__ == "__main__":
    sys.exit(main())
