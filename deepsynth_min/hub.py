"""`python -m deepsynth_min.hub --directory DIR --repo OWNER/NAME`: uploads a finished directory.

In: a directory that an export or a training run has written. Out: a commit on the hub that holds it
(publish/upload.py).
"""

import sys
from pathlib import Path

from .errors import UserError, exit_code
from .options import OneLineParser
from .publish.upload import push


def run(arguments: list[str]) -> None:
    parser = OneLineParser(
        "python -m deepsynth_min.hub",
        description="Uploads a directory that an export or a training run has written to the hub. "
        "The token is that of HF_TOKEN or of `hf auth login`.",
    )
    add = parser.add_argument
    add("--directory", required=True, metavar="DIR", help="holds a model or an adapter")
    add("--repo", required=True, metavar="OWNER/NAME", help="repository to upload it to")
    add("--private", action="store_true", help="make the repository private, if it is new")
    given = parser.parse_args(arguments)
    directory = Path(given.directory)
    if not any(directory.glob("*.safetensors")):
        raise UserError(f"--directory {directory}: no model or adapter in it")
    push(directory, given.repo, given.private)


def main(arguments: list[str] | None = None) -> int:
    return exit_code(run, arguments)


if __name__ == "__main__":
    sys.exit(main())
