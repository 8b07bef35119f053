"""`python -m deepsynth_min.report RUN [RUN ...]`: one HTML page about one run or several.

In: run directories. Out: report.html in the run, or comparison.html here (reports/page.py makes
the page).
"""

import json
import os
import sys
import tomllib
from pathlib import Path

from .errors import UserError, exit_code
from .files.disk import check_file, write_text, writing
from .options import OneLineParser
from .reports.page import page


def run(arguments: list[str]) -> None:
    parser = OneLineParser(
        "python -m deepsynth_min.report",
        description="Writes one HTML page about a run, or about several side by side: curves, "
        "figures, answers, settings.",
    )
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", type=Path, help="run directory of a training"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="default: report.html in the run; for several, comparison.html in this folder",
    )
    given = parser.parse_args(arguments)
    for directory in given.runs:
        if not os.path.isfile(directory / "metrics.jsonl"):
            raise UserError(f"{directory}: not a run directory (no metrics.jsonl)")
    usual = given.runs[0] / "report.html" if len(given.runs) == 1 else Path("comparison.html")
    out = given.out or usual
    check_file("--out", out)
    try:
        text = page(*given.runs)
    except (json.JSONDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"{given.runs[0]}: damaged metrics or settings ({error})") from None
    except OSError as error:
        raise UserError(f"{error.filename or given.runs[0]}: {error.strerror}") from None
    with writing("--out", out):
        write_text(out, text)
    print(out)


def main(arguments: list[str] | None = None) -> int:
    return exit_code(run, arguments)


if __name__ == "__main__":
    sys.exit(main())
