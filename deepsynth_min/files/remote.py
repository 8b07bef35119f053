"""A folder elsewhere, by its URL (s3://, gs://, hf://, file://): files sent there and brought back.

In: a URL, names of files below it. Out: their sizes, their content; or a RemoteError, one line.

The one idea: fsspec speaks to the store, with the credentials that its library finds by itself
(environment, ~/.aws, a machine's role, `hf auth login`), so that none is ever a setting. What goes
wrong is tried again after a pause unless it would only go wrong again, and whatever library it came
from it is a RemoteError in which no credential is left.
"""

import os
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import fsspec

from ..errors import UserError, without_credentials
from .download import without_token

T = TypeVar("T")
PAUSES = (0.5, 2.0, 8.0)  # seconds before what failed is tried once more
_FINAL = (PermissionError, FileNotFoundError, FileExistsError)
_FINAL += (NotADirectoryError, IsADirectoryError)
_SECRETS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HF_TOKEN")
# Of fsspec's file systems. Only _try tries again (see `retries` below): with the tries of botocore
# and s3fs inside its own a store that never answers would be waited for 20 minutes, not two.
_S3 = {"connect_timeout": 10, "read_timeout": 30, "retries": {"total_max_attempts": 1}}
_OPTIONS = {"s3": {"config_kwargs": _S3}, "file": {"auto_mkdir": True}}


class RemoteError(UserError):
    """The store could not be reached, or refused."""


def without_secrets(text: str) -> str:
    """A message in which no key, token or signed address is left."""
    text = without_token(without_credentials(text))
    text = re.sub(r"(\w://[^\s?]*)\?\S+", r"\1?***", text)
    text = re.sub(r"\b(AKIA|ASIA)[A-Z0-9]{12,}|(?i:bearer )\S+", "***", text)
    for name in _SECRETS:
        if secret := os.environ.get(name):
            text = text.replace(secret, "***")
    return text


class Remote:
    """The files below a URL, by their names relative to it."""

    def __init__(self, option: str, url: str):
        """option: that which gave the URL. Raises UserError if a package is missing for it."""
        self.name, self.url = f"{option} {url}", url
        protocol = url.partition("://")[0]
        try:
            self.files = fsspec.filesystem(
                protocol,
                skip_instance_cache=True,
                use_listings_cache=False,
                **_OPTIONS.get(protocol, {}),
            )
        except ImportError as error:
            message = f'{self.name}: {error}; pip install "deepsynth-min[remote]"'
            raise UserError(message) from None
        if protocol == "s3":
            self.files.retries = 1
        self.root = self.files._strip_protocol(url).rstrip("/")
        self.is_local = protocol == "file"

    def _at(self, name: str) -> str:
        return f"{self.root}/{name}"

    def _try(self, action: Callable[[], T]) -> T:
        """action(), again after each of PAUSES if it fails. Raises RemoteError."""
        for pause in (*PAUSES, None):
            try:
                return action()
            except Exception as error:  # each library has errors of its own, of no common kind
                if pause is None or isinstance(error, _FINAL) or "Credential" in repr(type(error)):
                    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
                    reason = without_secrets(" ".join(str(reason).split()))
                    raise RemoteError(f"{self.name}: {reason}") from None
            time.sleep(pause)
        raise AssertionError("the last one has no pause")

    def sizes(self, folder: str = "") -> dict[str, int]:
        """Name -> bytes of all files there, or in a folder there; none if there is no such folder.

        Raises RemoteError.
        """

        def find() -> dict[str, int]:
            self.files.invalidate_cache()
            try:
                found = self.files.find(self._at(folder).rstrip("/"), detail=True)
            except FileNotFoundError:
                return {}
            return {name[len(self.root) + 1 :]: entry["size"] for name, entry in found.items()}

        return self._try(find)

    def read(self, name: str) -> bytes:
        return self._try(lambda: self.files.cat_file(self._at(name)))

    def bring(self, name: str, target: Path) -> None:
        self._try(lambda: self.files.get_file(self._at(name), str(target)))

    def send(self, source: Path, name: str) -> None:
        """A file, under its name when all of it is there."""
        self._put(name, lambda place: self.files.put_file(str(source), place))

    def write(self, data: bytes, name: str) -> None:
        """The same with bytes."""
        self._put(name, lambda place: self.files.pipe_file(place, data))

    def _put(self, name: str, put: Callable[[str], object]) -> None:
        place = self._at(name)
        partial = f"{place}.partial"

        def whole() -> None:
            if not self.is_local:  # an object is there whole or not at all
                put(place)
                return
            put(partial)
            os.replace(partial, place)

        self._try(whole)

    def remove(self, names: Sequence[str]) -> None:
        """Files that are there, one after the other; one that is not is no error. A folder that has
        become empty goes too."""
        for name in names:

            def remove(place: str = self._at(name)) -> None:
                try:
                    self.files.rm_file(place)
                except FileNotFoundError:
                    pass

            self._try(remove)
        for folder in {os.path.dirname(self._at(name)) for name in names} if self.is_local else ():
            if os.path.isdir(folder) and not os.listdir(folder):
                os.rmdir(folder)
