"""What lies on the hub: a model or a data set by its id -> a folder on this machine.

In: owner/name and a revision. Out: the folder of that commit in huggingface_hub's cache.

The one idea: the cache first, so that a run that has its files needs no network, and only complete
downloads count: of a data set we list which files there are once all of them have come, since an
interrupted download looks like a smaller data set. The folder is named after the commit, which a
run writes down, so that it reads the same rows when it is resumed. The token is HF_TOKEN's (or that
of `hf auth login`), read by huggingface_hub, which also honours HF_ENDPOINT; what is reported never
shows it.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path

from ..errors import UserError
from .index import cache_folder

IMAGES = ("png", "jpg", "jpeg", "tif", "tiff", "webp", "bmp", "gif", "jp2", "avif", "heic", "pdf")
_ROWS = ("jsonl", "ndjson", "json", "csv", "tsv")
_PACKED = [f"{rows}.{packed}" for rows in _ROWS for packed in ("gz", "bz2", "xz", "zst")]
DATA = [f"*.{end}" for end in (*_ROWS, *_PACKED, "parquet", *IMAGES)] + ["README.md"]


def without_token(text: str) -> str:
    """A message in which no token of the hub is left."""
    from huggingface_hub import get_token

    token = get_token()
    return text.replace(token, "***") if token else text


def is_hub_id(name: str) -> bool:
    """Whether a name that is not here can be owner/name."""
    possible = re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name, re.ASCII)
    file = name.endswith((".parquet", *(f".{end}" for end in (*_ROWS, *_PACKED))))
    return possible is not None and not file and not os.path.lexists(name)


def fetch(
    name: str,
    repo_type: str,
    revision: str,
    patterns: list[str],
    is_complete: Callable[[Path], bool],
) -> Path:
    """The folder of a hub id's files: from the cache if `is_complete(folder)`, else downloaded.

    repo_type: model or dataset; revision: branch, tag or commit, empty: the default branch;
    patterns: of the files that are wanted. Raises UserError.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    wanted = {"allow_patterns": patterns, "revision": revision or None, "repo_type": repo_type}
    try:
        cached = Path(snapshot_download(name, local_files_only=True, **wanted))
        if is_complete(cached):
            return cached
    except HFValidationError as error:
        raise UserError(f"{name}: {error}") from None
    except LocalEntryNotFoundError:
        pass  # not in the cache: ask the hub
    try:
        return Path(snapshot_download(name, **wanted))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            without_token(f"{name}: not here, and the hub did not give it: {reason}")
        ) from None


# -- data sets ------------------------------------------------------------------------------------


def files_of(folder: Path) -> dict[str, int]:
    """Path -> bytes of the files that patterns of DATA fetch."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.stat().st_size for path in found}


def _list_of(folder: Path) -> Path:
    """Where the list of a complete download's files is kept."""
    name = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:32]
    return cache_folder() / f"{name}.files"


def _is_complete(folder: Path) -> bool:
    """Whether all files that came with the download are there."""
    try:
        listed = json.loads(_list_of(folder).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    files = files_of(folder)
    return isinstance(listed, dict) and all(files.get(name) == n for name, n in listed.items())


def fetch_data(name: str, revision: str = "") -> Path:
    """The folder of a data set on the hub; its name is the commit. Raises UserError."""
    folder = fetch(name, "dataset", revision, DATA, _is_complete)
    if not _is_complete(folder):
        path = _list_of(folder)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        partial.write_text(json.dumps(files_of(folder)), encoding="utf-8")
        os.replace(partial, path)
    return folder
