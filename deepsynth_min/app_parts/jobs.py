"""The tabs Runs, Data and Train: what is there, and commands that are run as they stand.

In: names below the root, settings. Out: what the commands print; a training that goes on when the
page is closed.

The one idea: a training holds a lock on one file of this machine as long as it lives, by a handle
that it inherits. So there is one at a time, whoever started it, and its end frees the lock whatever
the end was; the file says which it is, for the page that comes back.
"""

import os
import select
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from html import escape
from pathlib import Path
from subprocess import DEVNULL, PIPE, STDOUT, Popen
from typing import IO, Any

import gradio as gr

from ..config_file import is_run
from ..errors import UserError, one_line
from ..files.disk import lock
from ..model.shape.presets import TINY_READER
from ..reports.page import page_of_any
from ..runs.storage import status
from ..runs.storage.run_directory import default_name
from .safety import fenced, inside, sent, settings_of

MOST_RUNS, DEEP = 200, 3  # runs that are listed; folders below the root
LOCK = Path(tempfile.gettempdir()) / f"deepsynth-min-training-{os.getuid()}.lock"
GUARD = threading.Lock()  # a look at the lock takes it for a moment
LOG = ".deepsynth-training.log"  # below the root: what the newest training has printed


def started(name: str, words: list[str], out: IO[bytes] | int, *held: int) -> Popen:
    """A command of this package, in a session of its own; held: handles that it inherits."""
    words = [sys.executable, "-u", "-m", f"deepsynth_min.{name}", *words]
    paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    own = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    own = {"env": own, "stdin": DEVNULL, "start_new_session": True, "pass_fds": held}
    return Popen(words, stdout=out, stderr=STDOUT, **own)


def followed(name: str, words: list[str]) -> Iterator[str]:
    """What a command has printed so far; it ends if nobody listens any more."""
    text, piece = b"", b" "
    with started(name, words, PIPE) as process:
        try:
            while piece:
                if select.select([process.stdout], [], [], 1.0)[0]:
                    piece = os.read(process.stdout.fileno(), 1 << 16)
                    text += piece
                yield console(text)
            if process.wait():
                yield f"{console(text)}\n(exit code {process.returncode})"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def console(text: bytes) -> str:
    """What a terminal would show: a carriage return begins a progress bar anew."""
    lines = text.decode("utf-8", "replace").rstrip().split("\n")
    return "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in lines)


class Jobs:
    """root: the folder below which all of it happens, where this process is."""

    def __init__(self, root: Path):
        self.root = root

    def _words(self, given: dict[str, str], file: str | None = None) -> list[str]:
        """The command line of the settings; of a file that was sent, with it as --data."""
        words, _ = settings_of(self.root, given)
        if file and sent(file):
            words = [word for word in words if not word.startswith("--data=")] + [f"--data={file}"]
        return words

    def runs(self, names: list[str], seen: tuple) -> tuple:
        """What there is to choose from, the newest first; the report of what was chosen; and both
        as they are now, so that only what has changed is drawn."""
        found, depths = {}, ("[!.]*/" * deep + "config.toml" for deep in range(DEEP + 1))
        for run in (file.parent for name in depths for file in self.root.glob(name)):
            figures, name = run / "metrics.jsonl", str(run.relative_to(self.root))
            if is_run(run) and run.resolve() == run and name.isprintable():  # and no link
                changed = figures.stat().st_mtime if figures.is_file() else 0.0
                found[name] = changed, f"{name}: {progress(status.read(run))}"
        newest = sorted(found, key=found.get, reverse=True)[:MOST_RUNS]
        choices, chosen = [(found[n][1], n) for n in newest], [n for n in names or () if n in found]
        now = choices, [(n, found[n][0]) for n in chosen]
        drawn = gr.skip() if now[1] == seen[1] else self.report(chosen) if chosen else ""
        return gr.skip() if choices == seen[0] else gr.CheckboxGroup(choices), drawn, now

    def report(self, names: list[str]) -> str:
        """The report of one run, or of several side by side, framed; or what is wrong with it."""
        try:
            if len(names) > 6:
                raise UserError("runs: choose one to six")
            return framed(page_of_any(*(inside(self.root, name, "run") for name in names)))
        except UserError as error:
            return f'<p class="note" role="alert">{escape(one_line(error))}</p>'

    def check(self, given: dict[str, str], file: str | None) -> Iterator[tuple[str, str]]:
        """`check` on a file that was sent or lies below the root: what it says, then its page."""
        words, said = self._words(given, file), ""
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "data-check.html"
            for text in followed("check", [*words, f"--html={out}"]):
                said = "\n".join(line for line in text.split("\n") if str(out) not in line)
                yield said, ""
            if out.is_file():
                yield said, framed(out.read_text("utf-8"))

    def table(self, given: dict[str, str], file: str | None, to: str) -> Iterator[tuple[str, str]]:
        """`render --data X --to FILE`: the pages of the rows as Parquet, below the root."""
        inside(self.root, to or "", "--to", there=False)
        for said in followed("render", [*self._words(given, file), f"--to={to or ''}"]):
            yield said, ""

    def plan(self, given: dict[str, str]) -> str:
        """The command line that the settings stand for, as Markdown. Raises UserError."""
        return fenced(["python", "-m", "deepsynth_min.train", *self._words(given)])

    def train(self, given: dict[str, str]) -> None:
        """Starts a training. Raises UserError."""
        words, values = settings_of(self.root, given)
        out = values.get("out") or default_name(str(values.get("model", TINY_READER)))
        self._start(out, words if "out" in values else [*words, f"--out={out}"])

    def go_on(self) -> None:
        """Goes on with the newest training, which was stopped. Raises UserError."""
        out = self._newest().get("out", "")
        if not is_run(inside(self.root, out, "--out")):
            raise UserError("no training of this folder can go on")
        self._start(out, self._words({"out": out, "resume": "auto"}))

    def stop(self) -> None:
        """Ctrl-C: the training saves a checkpoint and ends. Raises UserError."""
        newest = self._newest()
        if not newest["running"] or "pid" not in newest:
            raise UserError("no training of this folder is running")
        os.kill(int(newest["pid"]), signal.SIGINT)  # it holds the lock: the number is still its own

    def _start(self, out: str, words: list[str]) -> None:
        with GUARD, locked() as held, open(self.root / LOG, "wb") as log:
            process = started("train", words, log, held.fileno())
            held.truncate(0)
            held.write("\0".join((str(self.root), out, str(process.pid))).encode())
        threading.Thread(target=process.wait, daemon=True).start()  # leaves no zombie

    def _newest(self) -> dict[str, Any]:
        """Whether a training is running, and what the lock says of this folder's newest one."""
        try:
            with GUARD, locked():
                running = False
        except UserError:
            running = True
        root, *facts = LOCK.read_text("utf-8", "replace").split("\0")
        own = zip(("out", "pid"), facts) if root == str(self.root) else ()
        return {"running": running, **dict(own)}

    def training(self, seen: dict[str, Any]) -> list:
        """Of the newest training what is known, its state, log and report, and which buttons can
        be pressed; only if it differs from what was seen."""
        found = self._newest()
        is_own, log, drawn, goes_on = "out" in found, "", gr.skip(), False
        said = "a training from another folder is running" if found["running"] else ""
        if is_own:
            out = inside(self.root, found["out"], "--out", there=False)
            found |= status.read(out)
            said = f"{found['out']}: {progress(found)}"
            log = console((self.root / LOG).read_bytes()[-20_000:])
            goes_on = not found["running"] and is_run(out) and found["status"] != "done"
        if (now := found | {"log": log}) == seen:
            return [gr.skip()] * 7
        if is_own and found["of"] and found["updated"] != seen.get("updated"):
            drawn = self.report([found["out"]])
        can = (not found["running"], found["running"] and is_own, goes_on)
        buttons = [gr.Button(interactive=one) for one in can]
        return [now, f'<p role="status">{escape(said)}</p>', log, drawn, *buttons]


def progress(run: dict[str, Any]) -> str:
    reason = f" ({run['reason']})" if run.get("reason") else ""
    return f"{run['status'] or 'starting'}{reason}, step {run['step']} of {run['of']}"


def framed(page: str) -> str:
    """A page of ours as HTML in which no script runs."""
    return f'<iframe title="report" sandbox srcdoc="{escape(page)}"></iframe>'


def locked() -> IO[bytes]:
    """The lock, held by this process until it is closed. Raises UserError if a training has it."""
    handle = os.fdopen(os.open(LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600), "r+b", 0)
    try:
        lock(handle.fileno(), "a training is running on this machine; stop it, or wait for its end")
    except UserError:
        handle.close()
        raise
    return handle
