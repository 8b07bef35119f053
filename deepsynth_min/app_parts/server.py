"""The web server of the page: who may ask, for how much, and whose files are whose.

In: the page and the functions that answer (app.py). Out: the page, and for each request JSON lines,
one after another while the work goes on; each may say where in the queue it is.

The one idea: a function that answers is a generator. When the browser goes away or presses Stop,
writing to it fails, the generator is closed, and whatever it had started ends with it.
"""

import base64
import json
import secrets
import shutil
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from ..errors import UserError, number_of, one_line
from ..files.unpack import PACKED
from .safety import is_allowed

MOST_JSON, MOST_UPLOAD = 4 << 20, 32 << 20  # bytes of a request; of a file
MOST_FILES, MOST_SESSIONS = 8, 200  # of a session; the oldest gives way
POLICY = (
    "default-src 'none'; script-src 'nonce-{}'; style-src 'unsafe-inline'; img-src data: blob:; "
    "connect-src 'self'; frame-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
Answers = Callable[["Session", dict[str, Any]], Iterator[dict[str, Any]]]


@dataclass
class Session:
    """One browser: its files, and what it read last."""

    folder: Path
    files: dict[str, Path] = field(default_factory=dict)
    last: Any = None

    def keep(self, name: str, data: bytes) -> str:
        """The key of a file that was sent. Raises UserError."""
        name = Path(name.replace("\\", "/")).name[-100:].replace("\0", "") or "file"
        if name.lower().endswith(PACKED):
            raise UserError(f"{name}: compressed files are not taken; unpack it first")
        while len(self.files) >= MOST_FILES:
            shutil.rmtree(self.files.pop(next(iter(self.files))).parent, ignore_errors=True)
        key = secrets.token_urlsafe(16)
        path = self.folder / key / name
        path.parent.mkdir()
        path.write_bytes(data)
        self.files[key] = path
        return key

    def file(self, key: object) -> Path:
        if not isinstance(key, str) or key not in self.files:
            raise UserError("this file is not of this session; choose it again")
        return self.files[key]


class Queue:
    """Work on the model, one after the other."""

    def __init__(self):
        self.changed, self.waiting = threading.Condition(), []

    def served(self, work: Iterator[dict]) -> Iterator[dict]:
        """The work's answers, after the place in the queue as long as there is one."""
        ticket = object()
        with self.changed:
            self.waiting.append(ticket)
        try:
            while place := self.waiting.index(ticket):
                yield {"progress": f"waiting: {number_of(place, 'request')} before yours"}
                with self.changed:
                    self.changed.wait(1)
            yield from work
        finally:
            with self.changed:
                self.waiting.remove(ticket)
                self.changed.notify_all()


class Server(ThreadingHTTPServer):
    """page: the HTML, in which NONCE stands for a word that scripts need; answers: by name."""

    daemon_threads, request_queue_size = True, 64

    def __init__(self, host: str, port: int, password: str, page: str, answers: dict[str, Answers]):
        self.host, self.password, self.page, self.answers = host, password, page, answers
        self.folder = tempfile.TemporaryDirectory(prefix="deepsynth-app-")
        self.sessions: dict[str, Session] = {}
        self.lock = threading.Lock()
        super().__init__((host, port), Handler)

    def new_session(self) -> str:
        with self.lock:
            while len(self.sessions) >= MOST_SESSIONS:
                oldest = self.sessions.pop(next(iter(self.sessions)))
                shutil.rmtree(oldest.folder, ignore_errors=True)
            key = secrets.token_urlsafe(32)
            self.sessions[key] = Session(Path(tempfile.mkdtemp(dir=self.folder.name)))
        return key


class Refused(Exception):
    """(status, why) of a request that gets no answer."""


class Handler(BaseHTTPRequestHandler):
    timeout = 60  # seconds that a browser may say nothing
    server_version, sys_version = "deepsynth_min", ""
    server: Server

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._answer(self._page)

    def do_POST(self) -> None:
        self._answer(self._work)

    def _answer(self, work: Callable[[], None]) -> None:
        try:
            self._check()
            work()
        except Refused as error:
            status, why = error.args
            head = {"WWW-Authenticate": 'Basic realm="deepsynth_min"'} if status == 401 else {}
            self._head(status, "application/json", head)
            self._line({"error": why})
            self.close_connection = True
        except OSError:  # the browser has gone
            self.close_connection = True

    def _check(self) -> None:
        host = self.headers.get("Host", "")
        if not is_allowed(host, self.server.host):
            raise Refused(403, f"host {one_line(host, 80)}: not an address of this page")
        origin = self.headers.get("Origin")
        if origin not in (None, f"http://{host}"):
            raise Refused(403, f"origin {one_line(origin, 80)}: not this page")
        if self.server.password:
            given = self.headers.get("Authorization", "").removeprefix("Basic ")
            try:
                told = base64.b64decode(given).partition(b":")[2]
            except ValueError:
                told = b""
            if not secrets.compare_digest(told, self.server.password.encode()):
                raise Refused(401, "the password of --password is needed; any user name")

    def _session(self) -> tuple[str, Session | None]:
        try:
            cookie = SimpleCookie(self.headers.get("Cookie", "")).get("session")
        except CookieError:
            cookie = None
        key = cookie.value if cookie else ""
        return key, self.server.sessions.get(key)

    def _page(self) -> None:
        if self.path != "/":
            raise Refused(404, "there is one page here, /")
        key, found = self._session()
        key = key if found else self.server.new_session()
        nonce = secrets.token_urlsafe(16)
        head = {
            "Set-Cookie": f"session={key}; HttpOnly; SameSite=Strict; Path=/",
            "Content-Security-Policy": POLICY.format(nonce),
        }
        self._head(200, "text/html; charset=utf-8", head)
        self.wfile.write(self.server.page.replace("NONCE", nonce).encode())

    def _work(self) -> None:
        _, session = self._session()
        if session is None:
            raise Refused(403, "no session of this page; load it again")
        is_file, name = self.path == "/upload", self.path.removeprefix("/")
        length, most = self.headers.get("Content-Length", ""), MOST_UPLOAD if is_file else MOST_JSON
        if not length.isdecimal():
            raise Refused(411, "no Content-Length")
        if int(length) > most:
            raise Refused(413, f"{int(length):,} bytes are more than the {most:,} that are taken")
        if not is_file and name not in self.server.answers:
            raise Refused(404, f"{one_line(name, 80)}: there is no such thing here")
        data = self.rfile.read(int(length))
        self._head(200, "application/x-ndjson")
        answers = iter(())
        try:
            if is_file:
                named = unquote(self.headers.get("X-Name", "file"), errors="replace")
                self._line({"file": session.keep(named, data)})
                return
            given = json.loads(data)
            if not isinstance(given, dict):
                raise UserError("not an object of settings")
            answers = self.server.answers[name](session, given)
            for answer in answers:
                self._line(answer)
        except (UserError, json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
            told = one_line(error).replace(str(session.folder), "")
            self._line({"error": told})
        except (ConnectionError, TimeoutError):
            raise
        except Exception as error:
            traceback.print_exc(file=sys.stderr)
            self._line({"error": f"{type(error).__name__}: see where the app was started"})
        finally:
            getattr(answers, "close", lambda: None)()

    def _head(self, status: int, kind: str, more: dict[str, str] = {}) -> None:  # noqa: B006
        self.send_response(status)
        always = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
        for name, value in (
            {"Content-Type": kind, "Referrer-Policy": "no-referrer"} | always | more
        ).items():
            self.send_header(name, value)
        self.end_headers()

    def _line(self, answer: dict[str, Any]) -> None:
        self.wfile.write(json.dumps(answer).encode() + b"\n")
        self.wfile.flush()
