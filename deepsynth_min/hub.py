"""`python -m deepsynth_min.hub --directory DIR --repo OWNER/NAME [--private]`: uploads what is
finished.

In: a directory that export or a training run has written. Out: a commit on the hub that holds it.
"""

import sys
from pathlib import Path

from .errors import UserError, exit_code
from .options import OneLineParser
from .publish.upload import push


def run(arguments: list[str]) -> None:
    parser = OneLineParser(
        "python -m deepsynth_min.hub", description="Uploads a finished directory to the hub."
    )
    parser.add_argument("--directory", required=True, metavar="DIR", help="what to upload")
    parser.add_argument("--repo", required=True, metavar="OWNER/NAME", help="where to")
    parser.add_argument("--private", action="store_true", help="if the repository is new")
    given = parser.parse_args(arguments)
    directory = Path(given.directory)
    if not any(directory.glob("*.safetensors")):
        raise UserError(f"--directory {directory}: no model or adapter in it")
    push(directory, given.repo, given.private)


def main(arguments: list[str] | None = None) -> int:
    return exit_code(run, arguments)


if __name__ == "__main__":
    sys.exit(main())
