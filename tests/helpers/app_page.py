"""The page of `python -m deepsynth_min.app`, started as users do and asked as a browser does."""

import http.client
import json
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import deepsynth_min


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


class Client:
    """A browser with a session of its own."""

    def __init__(self, port: int, **headers: str):
        self.port, self.headers, self.cookie = port, headers, ""
        self.status, head, self.page = self.request("GET", "/")
        self.cookie = head.get("Set-Cookie", "").partition(";")[0]
        self.policy = head.get("Content-Security-Policy", "")

    def request(self, method: str, path: str, body: bytes = b"", **headers: str):
        """(status, headers, content)."""
        link = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
        given = {"Cookie": self.cookie, "Host": f"127.0.0.1:{self.port}"}
        link.request(method, path, body, given | self.headers | headers)
        answer = link.getresponse()
        content = answer.read().decode()
        link.close()
        return answer.status, answer.headers, content

    def ask(self, name: str, given: object = None, **headers: str) -> list[dict]:
        """What the page is told, line by line; bytes are a file that is sent."""
        body = given if isinstance(given, bytes) else json.dumps(given or {}).encode()
        content = self.request("POST", f"/{name}", body, **headers)[2]
        return [json.loads(line) for line in content.splitlines()]

    def error(self, name: str, given: object = None, **headers: str) -> str:
        """The one line in which a request is refused."""
        (told,) = [told["error"] for told in self.ask(name, given, **headers) if "error" in told]
        assert "\n" not in told
        return told

    def send(self, name: str, data: bytes) -> str:
        """The key of a file that was sent."""
        return self.ask("upload", data, **{"X-Name": name})[0]["file"]


def ticks(pid: int) -> int:
    """Processor time of a process, in hundredths of a second."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return int(fields[11]) + int(fields[12])
