"""The page of `python -m deepsynth_min.app`, started as users do and asked as a browser does."""

import html
import http.client
import json
import os
import secrets
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlencode

import deepsynth_min
from deepsynth_min.options import option_of


def folder_of_rows(folder: Path) -> Path:
    """The folder, made, with rows.jsonl, and bad.jsonl whose last row is none."""
    folder.mkdir()
    rows = [{"text": f"Ada Kern met {n} bakers.", "summary": f"Ada met {n}."} for n in range(20)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "rows.jsonl").write_text(text)
    (folder / "bad.jsonl").write_text(text + '{"text": 5}\n')
    return folder


@contextmanager
def started(root: Path, *options: str):
    """(port, process number) of a page whose folder is `root`; its lock lies beside that."""
    temporary = root.parent / f"{root.name}-temporary"
    temporary.mkdir(exist_ok=True)
    paths = [str(Path(deepsynth_min.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    process = subprocess.Popen(
        [sys.executable, "-m", "deepsynth_min.app", "--port=0", f"--root={root}", *options],
        env=os.environ | {"TMPDIR": str(temporary), "PYTHONPATH": os.pathsep.join(paths)},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        port = int(process.stdout.readline().split("/")[2].rpartition(":")[2])
        yield port, process.pid
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@dataclass
class Answer:
    """What a function of the page gave: its outputs at last, how often it gave some, its error, and
    the places in the queue (0: the next) that were told before."""

    data: list = field(default_factory=list)
    pieces: int = 0
    error: str = ""
    places: list[int] = field(default_factory=list)


class Client:
    """A browser with a session of its own."""

    def __init__(self, port: int, **headers: str):
        self.port, self.headers, self.cookie = port, headers, ""
        self.session = secrets.token_hex(6)
        self.status, head, self.page = self.request("GET", "/")
        self.set_cookie = head.get("Set-Cookie", "")
        self.cookie = self.set_cookie.partition(";")[0]
        self.policy = head.get("Content-Security-Policy", "")
        status, _, text = self.request("GET", "/config")
        self.config = json.loads(text) if status == 200 else {}

    def open(self, method: str, path: str, body: bytes = b"", **headers: str):
        """The connection and its answer, not yet read."""
        link = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
        given = {"Cookie": self.cookie, "Host": f"127.0.0.1:{self.port}"}
        link.request(method, path, body, given | self.headers | headers)
        return link, link.getresponse()

    def request(self, method: str, path: str, body: bytes = b"", **headers: str):
        """(status, headers, content)."""
        link, answer = self.open(method, path, body, **headers)
        content = answer.read().decode()
        link.close()
        return answer.status, answer.headers, content

    def post(self, path: str, given: object, **headers: str):
        """(status, content) of a request in JSON."""
        head = {"Content-Type": "application/json"} | headers
        body = given if isinstance(given, bytes) else json.dumps(given).encode()
        status, _, content = self.request("POST", f"/gradio_api/{path}", body, **head)
        return status, content

    def join(self, name: str, given: dict) -> str:
        """Asks for a function of the page by its name; `given`: by the labels of the controls, of
        which the beginning suffices. Returns what refuses it."""
        found = next(d for d in self.config["dependencies"] if d["api_name"] == name)
        labels = {c["id"]: c["props"].get("label") or "" for c in self.config["components"]}
        values = {c["id"]: c["props"].get("value") for c in self.config["components"]}

        def of(number: int):
            label = labels[number]
            if label.startswith("--"):
                return given.get(label, values[number])  # null, of a text that nobody has touched
            return next((v for key, v in given.items() if label.startswith(key)), None)

        asked = {"fn_index": found["id"], "session_hash": self.session}
        status, content = self.post(
            "queue/join", asked | {"data": [of(number) for number in found["inputs"]]}
        )
        return "" if status == 200 else json.loads(content)["detail"]

    def ask(self, name: str, given: dict | None = None) -> Answer:
        """What the function gave, after all that it gave before."""
        refused = self.join(name, given or {})
        return Answer(error=refused) if refused else self.answer()

    def answer(self) -> Answer:
        """Of what was asked first and is not answered."""
        told = Answer()
        query = urlencode({"session_hash": self.session})
        link, answer = self.open("GET", f"/gradio_api/queue/data?{query}")
        for line in answer:
            if not line.startswith(b"data: "):
                continue
            message = json.loads(line[6:])
            if message["msg"] == "estimation":
                told.places.append(message["rank"])
            elif message["msg"] == "process_generating":
                told.pieces += 1
            elif message["msg"] == "process_completed":
                found = message["output"]
                told.data = found.get("data") or []
                if not message["success"]:
                    told.error = found.get("error") or "(see the terminal)"
                break
        link.close()
        return told

    def settings(self, name: str, given: dict, **more: object) -> "Answer":
        """`ask`, with settings by their names."""
        return self.ask(name, {option_of(key): value for key, value in given.items()} | more)

    def error(self, name: str, given: dict | None = None) -> str:
        """The one line in which a request is refused."""
        error = self.ask(name, given).error
        assert error and "\n" not in error
        assert "<" not in error  # it is shown as HTML
        return html.unescape(error)

    def send(self, name: str, data: bytes, **headers: str):
        """(status, content) of sending a file."""
        line = "b" * 20
        head = (
            f'--{line}\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'
        )
        body = head.encode() + data + f"\r\n--{line}--\r\n".encode()
        head = {"Content-Type": f"multipart/form-data; boundary={line}"} | headers
        status, _, content = self.request("POST", "/gradio_api/upload", body, **head)
        return status, content

    def command(self, name: str, given: dict) -> str:
        """The command line that is the last of what the function gives."""
        return self.ask(name, given).data[-1].split("```")[1].strip()

    def sent(self, name: str, data: bytes) -> dict:
        """A file that was sent, as controls name it."""
        (path,) = json.loads(self.send(name, data)[1])
        return {"path": path, "orig_name": name, "meta": {"_type": "gradio.FileData"}}


def ticks(pid: int) -> int:
    """Processor time of a process, in hundredths of a second."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return int(fields[11]) + int(fields[12])
