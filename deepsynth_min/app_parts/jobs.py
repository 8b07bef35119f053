"""The tabs Runs, Data and Train: what is there, and commands that are run as they stand.

In: names below the root, settings. Out: what the commands print, line by line; a training that goes
on when the page is closed.

The one idea: a training holds a lock on one file of this machine as long as it lives, by a handle
that it inherits. So there is one at a time, whoever started it, and its end frees the lock whatever
the end was; the file says which it is, for the page that comes back.
"""

import json
import os
import select
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from .. import command_line
from ..config_file import is_run
from ..errors import UserError
from ..files.disk import lock
from ..reports.page import page
from ..runs.storage import status
from ..runs.storage.run_directory import default_name
from .safety import arguments, inside, settings_of
from .server import Session

MOST_RUNS, DEEP = 200, 3  # runs that are listed; folders below the root
LOCK = Path(tempfile.gettempdir()) / f"deepsynth-min-training-{os.getuid()}.lock"
GUARD = threading.Lock()  # a look at the lock takes it for a moment
LOG = ".deepsynth-training.log"  # below the root: what the newest training has printed


def command(name: str, words: list[str]) -> list[str]:
    return [sys.executable, "-u", "-m", f"deepsynth_min.{name}", *words]


def environment() -> dict[str, str]:
    """Where this package is found, from any folder."""
    paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}


def followed(name: str, words: list[str], root: Path) -> Iterator[dict[str, Any]]:
    """A command's lines, as it prints them; it ends if nobody listens any more."""
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        command(name, words), cwd=root, env=environment(), stdin=subprocess.DEVNULL,
        stdout=pipe, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    rest, begun = b"", time.monotonic()
    try:
        while True:
            ready, _, _ = select.select([process.stdout], [], [], 1.0)
            if not ready:
                yield {"progress": f"{time.monotonic() - begun:.0f} s"}
                continue
            piece = os.read(process.stdout.fileno(), 1 << 16)
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:  # a carriage return begins a progress bar anew
                yield {"line": line.rpartition(b"\r")[2].decode("utf-8", "replace")}
            if bars := [part for part in rest.split(b"\r") if part.strip()]:
                yield {"progress": bars[-1].decode("utf-8", "replace")}
            if not piece:
                break
        yield {"code": process.wait()}
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        process.stdout.close()


class Jobs:
    """root: the folder below which all of it happens."""

    def __init__(self, root: Path):
        self.root = root
        self.parser = command_line.make_parser("python -m deepsynth_min.train", "")

    # -- runs

    def _runs(self) -> Iterator[Path]:
        """Run directories, the newest first."""
        found = []
        for top, folders, _ in os.walk(self.root):
            path = Path(top)
            if is_run(path):
                found.append(path)
            depth = len(path.relative_to(self.root).parts)
            keep = depth < DEEP and not is_run(path)
            folders[:] = [name for name in folders if keep and not name.startswith(".")]
        yield from sorted(found, key=lambda path: -path.stat().st_mtime)[:MOST_RUNS]

    def runs(self, session: Session, given: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Each run with its status and when its figures last changed."""
        listed = []
        for run in self._runs():
            figures = run / "metrics.jsonl"
            changed = figures.stat().st_mtime if figures.is_file() else 0.0
            listed.append(
                {"run": str(run.relative_to(self.root)), "changed": changed, **status.read(run)}
            )
        yield {"runs": listed}

    def report(self, session: Session, given: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The report of one run, or of several side by side."""
        names = given.get("runs")
        if not isinstance(names, list) or not 0 < len(names) <= 6:
            raise UserError("runs: choose one to six")
        paths = [inside(self.root, str(name), "run") for name in names]
        for path in paths:
            if not (path / "metrics.jsonl").is_file():
                raise UserError(f"{path}: not a run directory (no metrics.jsonl)")
        try:
            yield {"html": page(*paths)}
        except (ValueError, KeyError, OSError) as error:
            raise UserError(f"{names[0]}: damaged metrics or settings ({error})") from None

    # -- data

    def check(self, session: Session, given: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """`check` on a file that was sent or lies below the root: its lines, then its page."""
        words = self._words(session, given)
        out = session.folder / "data-check.html"
        out.unlink(missing_ok=True)
        for told in followed("check", [*words, f"--html={out}"], self.root):
            if str(out) not in told.get("line", ""):  # where it lies here is nothing to a browser
                yield told
        if out.is_file():
            yield {"html": out.read_text("utf-8")}

    def table(self, session: Session, given: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """`render --data X --to FILE`: the pages of the rows as Parquet, below the root."""
        to = str(given.get("to", ""))
        inside(self.root, to, "--to", there=False)
        yield from followed("render", [*self._words(session, given), f"--to={to}"], self.root)

    def _words(self, session: Session, given: dict[str, Any]) -> list[str]:
        """The command line of the settings; of a file that was sent, with it as --data."""
        words = arguments(given.get("settings", {}))
        settings_of(self.root, words, self.parser)
        if given.get("file"):
            words = [word for word in words if not word.startswith("--data=")]
            words.append(f"--data={session.file(given['file'])}")
        return words

    # -- training

    def plan(self, session: Session, given: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The command line that the settings stand for, or what is wrong with them."""
        words = arguments(given.get("settings", {}))
        settings_of(self.root, words, self.parser)
        yield {"command": shlex.join(["python", "-m", "deepsynth_min.train", *words])}

    def train(self, session: Session, given: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Starts a training, or goes on with one that was stopped."""
        words = arguments(given.get("settings", {}))
        if run := given.get("resume"):
            if not is_run(inside(self.root, str(run), "--out")):
                raise UserError(f"--out {run}: not a run directory (no config.toml)")
            words = [f"--out={run}", "--resume=auto"]
        values = settings_of(self.root, words, self.parser)
        out = values.get("out") or default_name(str(values.get("model", "tiny-reader")))
        words = [*words, *([] if "out" in values else [f"--out={out}"])]
        with GUARD, locked() as held, open(self.root / LOG, "wb") as log:
            process = subprocess.Popen(
                command("train", words), cwd=self.root, env=environment(), stdout=log,
                stdin=subprocess.DEVNULL, stderr=log, start_new_session=True,
                pass_fds=[held.fileno()],
            )  # fmt: skip
            facts = {"pid": process.pid, "root": str(self.root), "out": out, "words": words}
            held.truncate(0)
            held.write(json.dumps(facts).encode())
        threading.Thread(target=process.wait, daemon=True).start()  # leaves no zombie
        yield {"out": out}

    def training(self, session: Session, given: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """What the newest training of this root does, or how it ended."""
        running, facts = is_running(), newest()
        if facts.get("root") != str(self.root):
            elsewhere = "" if not running else "a training from another folder is running"
            yield {"running": False, "note": elsewhere, "log": []}
            return
        log, out = self.root / LOG, inside(self.root, facts["out"], "--out", there=False)
        text = log.read_text("utf-8", "replace")[-20_000:] if log.is_file() else ""
        yield {
            "running": running,
            "out": facts["out"],
            "command": shlex.join(["python", "-m", "deepsynth_min.train", *facts["words"]]),
            "log": text.replace("\r", "\n").splitlines()[-30:],
            "can_go_on": not running and is_run(out) and status.read(out)["status"] != "done",
            **status.read(out),
        }

    def stop(self, session: Session, given: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Ctrl-C: the training saves a checkpoint and ends."""
        facts = newest()
        if not is_running() or facts.get("root") != str(self.root):
            raise UserError("no training of this folder is running")
        os.kill(facts["pid"], signal.SIGINT)  # it holds the lock: the number is still its own
        yield {"stopping": facts["out"]}


def locked() -> IO[bytes]:
    """The lock, held by this process until it is closed. Raises UserError if a training has it."""
    handle = os.fdopen(os.open(LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600), "r+b", 0)
    try:
        lock(handle.fileno(), "a training is running on this machine; stop it, or wait for its end")
    except UserError:
        handle.close()
        raise
    return handle


def is_running() -> bool:
    try:
        with GUARD:
            locked().close()
    except UserError:
        return True
    return False


def newest() -> dict[str, Any]:
    """What the lock says of the newest training; {} if there was none."""
    try:
        return json.loads(LOCK.read_bytes())
    except (OSError, ValueError):
        return {}
