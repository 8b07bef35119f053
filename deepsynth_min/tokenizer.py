"""`python -m deepsynth_min.tokenizer --out DIR`: the files of the embedded tokenizer again."""

import os
import sys
from pathlib import Path

from .data.tokenizer import FILES, tokenizer_files, train_tokenizer
from .errors import UserError, exit_code
from .files.disk import check_name, write_text, writing
from .options import OneLineParser


def run(arguments: list[str]) -> None:
    parser = OneLineParser(
        "python -m deepsynth_min.tokenizer", description="Make the files of the embedded tokenizer."
    )
    parser.add_argument("--out", type=Path, required=True, help="a directory without such files")
    out = parser.parse_args(arguments).out
    check_name("--out", out)
    for name in FILES:  # all of them, before one is written
        if os.path.lexists(out / name):
            raise UserError(f"--out {out}: {name} exists")
    files = tokenizer_files(train_tokenizer())
    with writing("--out", out):
        out.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            write_text(out / name, content)


def main(arguments: list[str] | None = None) -> int:
    return exit_code(run, arguments)


if __name__ == "__main__":
    sys.exit(main())
