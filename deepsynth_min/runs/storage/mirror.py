"""--mirror URL: a run's checkpoints and small files are also where the machine is not.

In: a run directory on this disk, a URL. Out: the same checkpoints and files at the URL, sent by a
thread while training goes on; for --resume auto, the newest whole checkpoint of here and there.

The one idea: the thread compares what is here with what is there and sends what is missing, the
newest first; so whatever was interrupted is mended by the next comparison. When a checkpoint is
whole there, mirrored.py says. What the run has removed here is removed there once a newer
checkpoint is whole there.

A run has an identity (run.id, a random number in both places), so that no other run's mirror is
taken for its own.
"""

import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ... import config_file
from ...errors import UserError, one_line
from ...files.disk import locked, write_bytes, write_text, writing
from ...files.remote import Remote, RemoteError, without_secrets
from ...settings import RunSettings
from ...training import checkpoint
from ...training.checkpoint import MANIFEST
from ...training.distributed import World, broadcast_text
from .mirrored import CONFIG, FILES, FOLDERS, ID, bring, holds_run, is_small, listed, look, step_of
from .run_directory import warn

FILES_EVERY = 300.0  # seconds after which small files that have changed are sent, without a save
LAST_TRIES = 2  # comparisons at a run's end, if the mirror is away


def open_mirror(settings: RunSettings, world: World) -> tuple["Mirror | None", bool]:
    """(the mirror on rank 0, if there is one; whether a run was brought from it into --out), before
    the run directory is looked at. All ranks call it. Raises UserError."""
    if not settings.mirror:
        return None, False
    if settings.resume == "auto" and not settings.out:
        raise UserError("--mirror with --resume auto: needs --out, the directory to go on in")
    if not world.is_main:
        return None, broadcast_text(world, "") != ""
    mirror, run = Mirror(settings.mirror), Path(settings.out)
    try:
        brought = mirror.open(run, settings.resume)
    except RemoteError as error:
        if settings.resume != "auto" or not checkpoint.all_checkpoints(run / "checkpoints"):
            raise
        warn(f"{error}; the run goes on from what is here")
        brought = ""
    return mirror, broadcast_text(world, brought) != ""


class Mirror:
    """The copy of one run; of rank 0 alone."""

    def __init__(self, url: str):
        """Raises UserError."""
        self.remote = Remote("--mirror", url)
        self.run: Path | None = None
        self.id = ""  # of the run, once it is known that the mirror is its own
        self.whole: dict[str, bytes] = {}  # checkpoints there -> their manifests, as last seen
        self.sent: dict[str, tuple] = {}  # small files -> time and size of what was sent
        self.lock = threading.Lock()  # so that nothing is removed while it is being chosen
        self.sending = ""  # the checkpoint that is under way, which therefore stays on the disk
        self.thread: threading.Thread | None = None
        self.wake, self.ending = threading.Event(), False
        self.failure = ""  # of the last comparison

    # -- before the run ---------------------------------------------------------------------------

    def open(self, run: Path, resume: str) -> str:
        """Makes the mirror this run's; for `auto` brings what is newer there into `run`, and
        returns the name of that checkpoint. Raises UserError, RemoteError if it is away."""
        found = self.remote.sizes()
        holds = holds_run(found)
        if holds and resume != "auto":
            raise UserError(
                f"{self.remote.name}: already holds a run; give another URL, or --resume "
                "auto to go on with the run in it"
            )
        self._claim(run if resume == "auto" else None, found, holds)
        if not holds or resume != "auto":
            return ""
        self.whole = look(self.remote, found)
        here = checkpoint.all_checkpoints(run / "checkpoints")
        newer = [n for n in self.whole if not here or step_of(n) > step_of(here[-1].name)]
        if CONFIG not in found or not newer and config_file.is_run(run):
            return ""
        with writing("--out", run):
            return self._bring_run(run, found, newer)

    def _claim(self, run: Path | None, found: dict[str, int], holds: bool) -> None:
        """Sets `id`; also finds out whether the mirror may be written to. Raises UserError if it is
        another run's."""
        file = run / ID if run else None
        own = file.read_text("utf-8").strip() if file and file.is_file() else ""
        theirs = self.remote.read(ID).decode(errors="replace").strip() if ID in found else ""
        if holds and run and config_file.is_run(run) and own != theirs:
            raise UserError(f"{self.remote.name}: holds another run than --out {run}")
        known = (theirs or own) if holds else own
        chosen = known or uuid.uuid4().hex
        self.remote.write(chosen.encode(), ID)
        self.id = chosen

    def _bring_run(self, run: Path, found: dict[str, int], newer: list[str]) -> str:
        """The run's files, the best checkpoint and the newest that is whole, of those `newer` than
        what is here. In an order in which an interruption is noticed next time: the newest last,
        and without config.toml it is no run yet."""
        folder = run / "checkpoints"
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder, f"--out {run}: another run is writing to it"):
            for name in filter(is_small, found):
                (run / name).parent.mkdir(exist_ok=True)
                write_bytes(run / name, self.remote.read(name))
            best = self.remote.read("best").decode().strip() if "best" in found else ""
            if best in self.whole and best not in newer[-1:] and not (folder / best).exists():
                self._bring(best, folder)
            newest = next((name for name in reversed(newer) if self._bring(name, folder)), "")
            if newer and not newest and not checkpoint.all_checkpoints(folder):
                raise UserError(f"{self.remote.name}: no whole checkpoint among {len(newer)}")
            write_text(run / ID, self.id)
            write_bytes(run / CONFIG, self.remote.read(CONFIG))
        return newest or CONFIG

    def _bring(self, name: str, folder: Path) -> bool:
        return bring(self.remote, name, self.whole[name], folder)

    def newest_between(self, older: Path | None, damaged: Path) -> Path | None:
        """The newest checkpoint that came whole from there, of those at or before the step of
        `damaged` and after that of `older`."""
        low = step_of(older.name) if older else -1
        try:
            for name in reversed(self.whole):
                fits = low < step_of(name) <= step_of(damaged.name)
                if fits and self._bring(name, damaged.parent):
                    return damaged.parent / name
        except RemoteError as error:
            warn(str(error))
        return None

    # -- while it runs ----------------------------------------------------------------------------

    def begin(self, run: Path) -> None:
        """From now on what appears in `run` is sent."""
        self.run = run
        if self.id:
            write_text(run / ID, self.id)
        self.thread = threading.Thread(target=self._send_all, name="mirror", daemon=True)
        self.thread.start()
        self.wake.set()

    @contextmanager
    def removing(self) -> Iterator[str]:
        """Around the removal of checkpoints here: gives the name of one that must stay, if any;
        what is left afterwards is sent."""
        with self.lock:
            yield self.sending
        self.wake.set()

    def close(self) -> None:
        """Sends what is left, and says so if it cannot."""
        if self.thread is None:
            return
        self.ending = True
        self.wake.set()
        self.thread.join(2)
        if self.thread.is_alive():
            print(f"sending the last files to {self.remote.url}", flush=True)
        self.thread.join()
        if self.failure:
            warn(f"{self.failure}; {self.run} holds what is missing there: --resume auto sends it")

    def _send_all(self) -> None:
        """The thread: compares whenever something was saved."""
        tries, told = 0, ""
        while True:
            if not (self.ending and tries):
                self.wake.wait(FILES_EVERY)
            self.wake.clear()
            is_last = self.ending
            self.failure = self._compare()
            if is_last and (not self.failure or (tries := tries + 1) >= LAST_TRIES):
                return
            if self.failure and self.failure != told and not is_last:
                warn(f"{self.failure}; training goes on, and it is tried again")
            told = self.failure

    def _compare(self) -> str:
        """Sends what is missing there; returns what went wrong."""
        try:
            if not self.id or not self.whole:
                found = self.remote.sizes()
                if not self.id:  # it was away when the run began
                    self._claim(self.run, found, holds_run(found))
                    write_text(self.run / ID, self.id)
                self.whole = look(self.remote, found)
            self._send_files()
            while (path := self._missing()) is not None:
                self._send(path)
            self._remove_old()
        except Exception as error:  # whatever it is: it ends neither the run nor this thread
            self.whole = {}  # look again
            return without_secrets(one_line(error) or repr(error))
        finally:
            self.sending = ""
        return ""

    def _missing(self) -> Path | None:
        """The newest checkpoint that is here and not there; it stays here while it is sent."""
        with self.lock:
            for path in reversed(checkpoint.all_checkpoints(self.run / "checkpoints")):
                manifest = path / MANIFEST
                if manifest.is_file() and self.whole.get(path.name) != manifest.read_bytes():
                    self.sending = path.name
                    return path
            self.sending = ""
            return None

    def _send(self, path: Path) -> None:
        manifest, place = (path / MANIFEST).read_bytes(), f"checkpoints/{path.name}/"
        self.remote.remove([place + MANIFEST])  # of one that an earlier attempt has left
        sizes = listed(manifest)
        for file in sizes:
            self.remote.send(path / file, place + file)
        found = self.remote.sizes(place)
        if short := [file for file, size in sizes.items() if found.get(place + file) != size]:
            raise RemoteError(f"{self.remote.name}: {place}{short[0]} has not arrived whole")
        self._send_files()  # the lines of metrics up to this step
        self.remote.write(manifest, place + MANIFEST)
        self.whole[path.name] = manifest

    def _send_files(self) -> None:
        folders = [file for folder in FOLDERS for file in (self.run / folder).glob("[!.]*")]
        for path in (*(self.run / name for name in (ID, CONFIG, *FILES)), *folders):
            name = str(path.relative_to(self.run))
            try:
                state, data = path.stat(), path.read_bytes()
            except (FileNotFoundError, IsADirectoryError):
                continue
            stamp = state.st_mtime_ns, state.st_size
            if self.sent.get(name) != stamp:
                self.remote.write(data, name)
                self.sent[name] = stamp

    def _remove_old(self) -> None:
        """What the run has removed, of steps before the newest that is whole there."""
        here = {path.name for path in checkpoint.all_checkpoints(self.run / "checkpoints")}
        newest = max((step_of(name) for name in here & self.whole.keys()), default=-1)
        old = []
        for name in self.remote.sizes("checkpoints/"):
            step = name.split("/")[1]
            if step not in here and 0 <= step_of(step) < newest:
                old.append(name)
                self.whole.pop(step, None)
        self.remote.remove(sorted(old, key=lambda name: not name.endswith(MANIFEST)))
