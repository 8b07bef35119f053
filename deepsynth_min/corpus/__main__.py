"""`python -m deepsynth_min.corpus --out FILE.jsonl`: writes embedded documents.

In: a family, a split and a seed. Out: a file of JSON lines, one for each document (documents.py,
needles.py).
"""

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

from ..errors import UserError, exit_code
from ..files.disk import check_name, write_text, writing
from ..options import OneLineParser
from .documents import SIZES
from .families import EMBEDDED, documents, family_of


def run(arguments: list[str]) -> None:
    parser = OneLineParser(
        "python -m deepsynth_min.corpus",
        description="Writes embedded documents as JSON lines: text, summary and more.",
    )
    text = "reports: what tiny-reader has learned from, in four languages; notices: what a run "
    text += "without --data trains on, new to it; needles: a question about a fact in a long "
    text += "document, needles@500,2000: in one of so many characters (default: reports)"
    parser.add_argument("--family", metavar="NAME", default="reports", help=text)
    parser.add_argument(
        "--split", choices=list(SIZES), default="train", help="which part (default: train)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="0: the documents that training uses (default: 0)"
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="a file that does not exist yet"
    )
    given = parser.parse_args(arguments)
    if not (family := family_of(f"{EMBEDDED}:{given.family}")):
        raise UserError("--family: names none")
    check_name("--out", given.out)
    if os.path.lexists(given.out):
        raise UserError(f"--out {given.out}: File exists")
    found = (asdict(document) for document in documents(family, given.split, given.seed))
    with writing("--out", given.out):
        write_text(given.out, "".join(json.dumps(d, ensure_ascii=False) + "\n" for d in found))


def main(arguments: list[str] | None = None) -> int:
    return exit_code(run, arguments)


if __name__ == "__main__":
    sys.exit(main())
