"""`python -m deepsynth_min.report RUN [RUN ...] [--out FILE]`: one HTML page about one run or
several.

In: run directories. Out: report.html, or comparison.html (reports/page.py draws it).
"""

import json
import os
import sys
import tomllib
from pathlib import Path

from .errors import UserError, exit_code
from .files.disk import write_text
from .options import OneLineParser
from .reports.page import page


def write(arguments: list[str]) -> None:
    parser = OneLineParser(
        "python -m deepsynth_min.report",
        description="One HTML page about one run, or about several.",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", type=Path, help="run directory")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="default: report.html in the run; comparison.html for several",
    )
    given = parser.parse_args(arguments)
    for run in given.runs:
        if not os.path.isfile(run / "metrics.jsonl"):
            raise UserError(f"{run}: not a run directory (no metrics.jsonl)")
    one = given.runs[0] / "report.html"
    out = given.out or (one if len(given.runs) == 1 else Path("comparison.html"))
    try:
        write_text(out, page(*given.runs))
    except (json.JSONDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"{given.runs[0]}: damaged metrics or settings ({error})") from None
    except OSError as error:
        raise UserError(f"{out}: {error.strerror}") from None
    print(out)


def main(arguments: list[str] | None = None) -> int:
    return exit_code(write, arguments)


if __name__ == "__main__":
    sys.exit(main())
