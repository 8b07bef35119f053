"""`python -m deepsynth_min.tokenizer --out DIR`: the files of the embedded tokenizer again."""

import os
import sys
from pathlib import Path

from .data.tokenizer import FILES, tokenizer_files, train_tokenizer
from .errors import UserError, one_line
from .options import OneLineParser


def main() -> int:
    parser = OneLineParser(description="Make the files of the embedded tokenizer.")
    parser.add_argument("--out", type=Path, required=True, help="a directory without such files")
    try:
        out = parser.parse_args().out
        for name in FILES:  # all of them, before one is written
            if os.path.lexists(out / name):
                raise UserError(f"--out {out}: {name} exists")
        out.mkdir(parents=True, exist_ok=True)
        for name, content in tokenizer_files(train_tokenizer()).items():
            with (out / name).open("x", encoding="utf-8", newline="\n") as file:
                file.write(content)
    except UserError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL
        print(f"error: {one_line(f'--out {out}: {error}')}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
