"""What a user can get wrong: one line naming what and where, and exit code 2.

In: whatever a command runs. Out: its exit code. Also here, since their errors are of this kind:
reading a file that the user named, as text or as JSON; and words that messages share.

The idea: a mistake of the user's is a `UserError` wherever it is found, and `exit_code` alone turns
it into a line on stderr. Everything else keeps its traceback.
"""

import errno
import json
import os
import re
import signal
import stat
import sys
from collections.abc import Callable
from pathlib import Path


class UserError(ValueError):
    """A mistake of the user's: shown as one line naming what and where, exit code 2."""


def without_credentials(text: str) -> str:
    """A message in which no address shows the name and password that it may carry."""
    return re.sub(r"(\w://)[^\s/@]*@", r"\1***@", text)


def one_line(error: object, max_chars: int = 1000) -> str:
    """A message on one line: what cannot be printed is escaped, a long one loses its middle."""
    text = without_credentials(str(error))
    if len(text) > max_chars:
        text = f"{text[: max_chars // 2]} ... {text[-(max_chars // 2) :]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def number_of(number: int, noun: str) -> str:
    """1 page, 2 pages, 1,000 pages, 2 processes."""
    ending = "es" if noun.endswith("s") else "s"
    return f"{number:,} {noun}" + ("" if number == 1 else ending)


_JSON_KINDS = {dict: "an object", list: "an array", str: "a string", bool: "true or false"}
_JSON_KINDS |= {int: "a number", float: "a number", type(None): "null"}


def json_kind(value: object) -> str:
    """What a value is, in the words of JSON: an array, a number."""
    return _JSON_KINDS.get(type(value), f"of type {type(value).__name__}")


def not_utf8(data: bytes, error: UnicodeDecodeError) -> str:
    """What is said of bytes that are not UTF-8: where, what they look like and what mends it."""
    text = f"not UTF-8 at byte {error.start}"
    high = re.findall(rb"[\x80-\xff]+", data)
    if looks_like_utf16(data):
        text += "; it looks like UTF-16: iconv -f UTF-16 -t UTF-8 converts it"
    elif sum(len(run) == 1 for run in high) > 0.8 * len(high):  # accented letters among others
        text += "; it looks like Latin-1 or Windows-1252: iconv -f CP1252 -t UTF-8 converts it"
    return text


def looks_like_utf16(head: bytes) -> bool:
    """Whether the beginning of a file has UTF-16's mark, or a NUL in every other byte."""
    return head[:2] in (b"\xff\xfe", b"\xfe\xff") or head.count(0) > len(head) / 4


def exit_code(
    run: Callable[[list[str]], object],
    arguments: list[str] | None,
    cleanup: Callable[[], object] = lambda: None,
    before_message: Callable[[], object] = lambda: None,
) -> int:
    """Runs a command: 0 done, 2 the user's mistake or a full disk in one line, 130 Ctrl-C; else a
    traceback.

    run(arguments) does the work; arguments: None takes those of the command line. before_message()
    is called before the line about a mistake is printed, cleanup() last, whatever happened.
    """
    try:
        run(sys.argv[1:] if arguments is None else arguments)
        sys.stdout.flush()
    except UserError as error:
        before_message()
        for line in getattr(error, "details", ()):  # what the message sums up
            print(one_line(line, 300), file=sys.stderr)
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno not in _FULL:
            raise
        _give_up_stdout()
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {one_line(where)}could not be written: {error.strerror}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # again: cleaning up ends too
        print("stopped", file=sys.stderr)
        return 130
    finally:
        cleanup()
    return 0


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # a disk, a quota, the size a file may have


def _give_up_stdout() -> None:
    """If what was printed cannot be written, Python should not try once more when it ends."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def is_out_of_memory(error: BaseException) -> bool:
    """On a GPU torch has a class for it, elsewhere only words; numpy raises Python's own."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    words = ("can't allocate memory", "not enough memory", "out of memory", "bad_alloc")
    words += ("could not create a primitive",)  # all that oneDNN says of it
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def find_file(path: str | os.PathLike, where: str = "", missing: str = "no such file") -> Path:
    """The path of a regular file; a pipe or a device, which might never end, is refused.

    where: what a message begins with; missing: what it says of a file that is not there. Raises
    UserError.
    """
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        raise UserError(f"{where}{path}: {missing}") from None
    except OSError as error:
        raise UserError(f"{where}{path}: {error.strerror}") from None
    except ValueError:  # a NUL, or half of a surrogate pair
        raise UserError(f"{where}{path}: not a possible file name") from None
    if not stat.S_ISREG(mode):
        raise UserError(f"{where}{path}: not a regular file")
    return Path(path)


def read_text(path: str | os.PathLike, where: str = "") -> str:
    """Content of a UTF-8 file that the user named. Raises UserError."""
    try:
        data = find_file(path, where).read_bytes()
        return data.decode("utf-8")
    except OSError as error:
        raise UserError(f"{where}{path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{where}{path}: {not_utf8(data, error)}") from None


def read_json(path: str | os.PathLike) -> object:
    """Content of a JSON file that the user named. Raises UserError."""
    try:
        return json.loads(read_text(path))
    except UserError:
        raise
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error})") from None
