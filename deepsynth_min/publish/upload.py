"""Uploading: a complete directory, with a model card, to a repository on the hub.

In: a directory that an export or a training run has written. Out: a commit that holds its files.
`python -m deepsynth_min.hub` is its command.

The one idea: the upload comes last. The files are complete on the disk before it starts, so a
failure loses nothing, and the command tries again; files that the hub has already are not sent
twice. The token is HF_TOKEN's (or that of `hf auth login`), read by huggingface_hub, which also
honours HF_ENDPOINT; it is never printed and never written.
"""

import time
from pathlib import Path

from ..errors import UserError, without_credentials
from ..files.download import without_token

ATTEMPTS, PAUSE = 3, 2.0  # seconds before the second attempt; twice as long before the third
# HTTP status codes of the client's own fault: trying again changes nothing, but for a few.
_FINAL, _PASSING = range(400, 500), (408, 409, 425, 429)


def _explain(error: BaseException) -> tuple[str, int | None]:
    """(first lines of an error and of what caused it, the server's status code if it gave one)"""
    lines, status = [], None
    while error is not None:
        lines.append((str(error).strip() or type(error).__name__).splitlines()[0])
        status = status or getattr(getattr(error, "response", None), "status_code", None)
        error = error.__cause__
    return ": ".join(dict.fromkeys(lines)), status


def push(directory: Path, repo: str, private: bool = False, pause: float = PAUSE) -> None:
    """Uploads every file of `directory`; prints where to. Raises UserError saying how to go on.

    repo: owner/name; private: of a repository that is new; pause: seconds before another attempt.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
    api = HfApi()
    for attempt in range(1, ATTEMPTS + 1):
        try:
            api.create_repo(repo, private=private, exist_ok=True)
            api.upload_folder(
                repo_id=repo,
                folder_path=directory,
                commit_message=f"deepsynth_min: {directory.name}",
            )
            print(without_credentials(f"uploaded to {api.endpoint}/{repo}"))
            return
        except Exception as error:  # of any network library; the message below must not be lost
            reason, status = _explain(error)
            if status in _FINAL and status not in _PASSING:
                break
            if attempt < ATTEMPTS:
                time.sleep(pause * 2 ** (attempt - 1))
    again = f"python -m deepsynth_min.hub --directory {directory} --repo {repo}"
    again += " --private" if private else ""
    raise UserError(
        without_token(
            f"upload to {repo} failed ({reason}); nothing is lost, try again with: {again}"
        )
    )
