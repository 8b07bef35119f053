"""A small hub on loopback: enough of the real one's HTTP interface to push to and download from.

Requests come from huggingface_hub itself, over sockets. State: the committed files of each
repository. `fail` maps a kind of request to the status codes that its next requests answer; a
repository named fails-403 is always refused with that status.
"""

import base64
import hashlib
import json
import os
import re
import subprocess
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from commands import python

TOKEN = "hf_thisIsTheSecret"
COMMIT = "c0ffee" * 6 + "c0ff"  # 40 digits
LARGE = 2000  # bytes from which a file is sent apart from the commit


class Hub(ThreadingHTTPServer):
    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.objects: dict[str, bytes] = {}
        self.tokens: set[str] = set()
        self.requests: list[str] = []
        self.commit = COMMIT  # of what is there now
        self.fail: dict[str, list[int]] = {}
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


ROUTES = (
    ("create", "POST", r"/api/repos/create"),
    ("card", "POST", r"/api/validate-yaml"),
    ("preupload", "POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/preupload/main"),
    ("batch", "POST", r"/(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch"),
    ("upload", "PUT", r"/upload/(?P<oid>\w+)"),
    ("commit", "POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/commit/main"),
    (
        "info",
        "GET",
        r"/api/(?:models|datasets)/(?P<repo>[^/]+/[^/]+)(/revision/(?P<revision>[^/?]+))?",
    ),
    ("tree", "GET", r"/api/(?:models|datasets)/(?P<repo>[^/]+/[^/]+)/tree/[^/?]+"),
    ("file", "HEAD|GET", r"(?:/datasets)?/(?P<repo>[^/]+/[^/]+)/resolve/[^/]+/(?P<path>.+)"),
)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def handle_any(self):
        path = self.path.partition("?")[0]
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        with self.server.lock:
            for name, method, pattern in ROUTES:
                match = re.fullmatch(pattern, path)
                if match and self.command in method.split("|"):
                    self.server.requests.append(name)
                    if token := self.headers.get("Authorization"):
                        self.server.tokens.add(token)
                    if statuses := self.server.fail.get(name):
                        return self.answer(statuses.pop(0), b"out of order")
                    return getattr(self, name)(body, **match.groupdict())
        self.server.requests.append(f"{self.command} {path}")
        return self.answer(404, b"no such page")

    do_GET = do_POST = do_PUT = do_HEAD = handle_any

    def answer(self, status: int, body: bytes = b"", **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def answer_json(self, value, status: int = 200):
        self.answer(status, json.dumps(value).encode(), Content_Type="application/json")

    def create(self, body):
        asked = json.loads(body)
        repo = f"{asked.get('organization') or 'someone'}/{asked['name']}"
        if repo in self.server.repositories:
            return self.answer_json({"url": f"{self.server.url}/{repo}", "error": "exists"}, 409)
        self.server.repositories[repo] = {}
        self.server.private[repo] = asked.get("private", asked.get("visibility") == "private")
        return self.answer_json({"url": f"{self.server.url}/{repo}"})

    def card(self, body):
        self.answer_json({"errors": [], "warnings": []})

    def preupload(self, body, repo):
        files = json.loads(body)["files"]
        return self.answer_json(
            {
                "files": [
                    {
                        "path": f["path"],
                        "uploadMode": "lfs" if f["size"] >= LARGE else "regular",
                        "shouldIgnore": False,
                        "oid": None,
                    }
                    for f in files
                ]
            }
        )

    def batch(self, body, repo):
        found = []
        for wanted in json.loads(body)["objects"]:
            entry = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.server.objects:
                href = f"{self.server.url}/upload/{wanted['oid']}"
                entry["actions"] = {"upload": {"href": href, "header": {}}}
            found.append(entry)
        self.answer_json({"transfer": "basic", "objects": found})

    def upload(self, body, oid):
        if hashlib.sha256(body).hexdigest() != oid:
            return self.answer(400, b"digest differs")
        self.server.objects[oid] = body
        return self.answer(200)

    def commit(self, body, repo):
        files = dict(self.server.repositories[repo])
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.objects[value["oid"]]
        self.server.repositories[repo] = files  # all of a commit or nothing
        self.answer_json(
            {"commitUrl": f"{self.server.url}/{repo}/commit/{COMMIT}", "commitOid": COMMIT}
        )

    def info(self, body, repo, revision):
        self.server.requests.append(f"info:{revision}")
        files = self.server.repositories.get(repo)
        if match := re.search(r"/fails-(\d{3})$", repo):
            return self.answer(int(match[1]), b"out of order")
        if files is None:
            return self.answer(404, b"", X_Error_Code="RepoNotFound")
        return self.answer_json(
            {
                "id": repo,
                "sha": self.server.commit,
                "private": self.server.private[repo],
                "tags": [],
                "downloads": 0,
                "likes": 0,
                "siblings": [{"rfilename": name} for name in files],
            }
        )

    def tree(self, body, repo):
        files = self.server.repositories[repo]
        self.answer_json(
            [
                {"type": "file", "path": name, "size": len(data), "oid": "0" * 40}
                for name, data in files.items()
            ]
        )

    def file(self, body, repo, path):
        data = self.server.repositories.get(repo, {}).get(path)
        if data is None:
            return self.answer(404, b"", X_Error_Code="EntryNotFound")
        tag = hashlib.sha256(data).hexdigest()
        return self.answer(200, data, ETag=f'"{tag}"', X_Repo_Commit=self.server.commit)


@contextmanager
def running_hub():
    """A hub that listens while the block runs."""
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()


def environment(server, tmp_path) -> dict[str, str]:
    """Of a process that finds this hub, has a token, and has its caches under tmp_path."""
    return {
        **os.environ,
        "HF_ENDPOINT": server.url,
        "HF_HOME": str(tmp_path / "home"),
        "HF_TOKEN": TOKEN,
        "HF_HUB_DISABLE_XET": "1",  # the other way to send has its own servers
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }


def command(server, tmp_path, *words) -> subprocess.CompletedProcess:
    """Runs Python in this environment; the token must not be in what it prints."""
    done = python(*words, env=environment(server, tmp_path))
    assert TOKEN not in done.stdout + done.stderr
    return done
