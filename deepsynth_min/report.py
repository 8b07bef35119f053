"""`python -m deepsynth_min.report RUN [RUN ...]`: one HTML page about one run or several.

In: run directories. Out: report.html in the run, or comparison.html here (reports/page.py makes
the page).
"""

import sys
from pathlib import Path

from .errors import exit_code
from .files.disk import check_page, write_text, writing
from .options import OneLineParser
from .reports.page import page_of_any


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
    text = page_of_any(*given.runs)
    usual = given.runs[0] / "report.html" if len(given.runs) == 1 else Path("comparison.html")
    out = given.out or usual
    check_page("--out", out)
    with writing("--out", out):
        write_text(out, text)
    print(out)


def main(arguments: list[str] | None = None) -> int:
    return exit_code(run, arguments)


if __name__ == "__main__":
    sys.exit(main())
