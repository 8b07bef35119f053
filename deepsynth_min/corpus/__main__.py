"""`python -m deepsynth_min.corpus --split train --out FILE.jsonl`: the embedded corpus as JSON
lines."""

import json
import sys
from dataclasses import asdict
from pathlib import Path

from ..errors import UserError, one_line
from ..options import OneLineParser
from .documents import SIZES, documents


def main() -> int:
    parser = OneLineParser(description="Write the embedded corpus as JSONL.")
    parser.add_argument("--split", choices=list(SIZES), default="train")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="a file that does not exist yet")
    try:
        args = parser.parse_args()
        with args.out.open("x", encoding="utf-8", newline="\n") as file:
            for document in documents(args.split, args.seed):
                file.write(json.dumps(asdict(document), ensure_ascii=False) + "\n")
    except UserError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL
        print(f"error: {one_line(f'--out {args.out}: {error}')}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
