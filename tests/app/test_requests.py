"""What a stranger, a document or a file might send to the app: too much, of another kind, scripts,
from another site or for another's session; none harms, each is told in one line."""

import io
import re
import socket
import zipfile
from pathlib import Path

import pytest
from app_page import Client, started
from PIL import Image

from deepsynth_min.app_parts.guard import MOST_JSON, MOST_UPLOAD

pytestmark = pytest.mark.slow  # a server, seconds to start


@pytest.mark.parametrize(
    ("path", "most"), [("upload", MOST_UPLOAD), ("queue/join", MOST_JSON), ("cancel", MOST_JSON)]
)
def test_a_gigabyte_is_refused_before_it_is_read(port, client, path, most):
    with socket.create_connection(("127.0.0.1", port)) as link:
        head = f"POST /gradio_api/{path} HTTP/1.0\r\nHost: localhost\r\nCookie: {client.cookie}\r\n"
        link.sendall(f"{head}Content-Length: {1 << 30}\r\n\r\n".encode())
        told = link.makefile().read()
    assert "413" in told.splitlines()[0]
    assert f"1,073,741,824 bytes, where {most:,} are taken at most" in told


def test_what_does_not_say_its_length_is_refused(port, client):
    with socket.create_connection(("127.0.0.1", port)) as link:
        head = f"POST /gradio_api/upload HTTP/1.1\r\nHost: localhost\r\nCookie: {client.cookie}\r\n"
        link.sendall(f"{head}Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n".encode())
        assert "411" in link.makefile().readline()


def test_a_picture_that_unpacks_to_gigapixels_is_refused(client):
    packed = io.BytesIO()
    Image.new("1", (40_000, 40_000)).save(packed, "png")
    assert len(packed.getvalue()) < 1 << 20
    file = client.sent("bomb.png", packed.getvalue())
    assert "bomb.png: " in client.error("pages", {"or a file": file})


@pytest.mark.parametrize("name", ["rows.jsonl.gz", "rows.csv.zst", "rows.jsonl.XZ"])
def test_a_compressed_file_is_refused(client, name):
    file = client.sent(name, b"\x1f\x8b")
    assert "compressed files are not taken" in client.error("pages", {"or a file": file})
    assert "compressed files are not taken" in client.error("check", {"a file of rows": file})


@pytest.mark.parametrize(
    "settings", [{"--mode": "8192"}, {"--max-pages": "9999999", "--font-size": "99"}]
)
def test_pages_that_would_fill_the_memory_are_refused(client, settings):
    told = client.error("pages", {"Text": "a " * 50_000, **settings})
    assert "the model's context of 2048 tokens has place for" in told


@pytest.mark.parametrize("name", ["pages", "read", "look", "runs", "check", "table", "train"])
@pytest.mark.parametrize("value", [[1], {"a": None}, "rows"])
def test_what_is_of_another_kind_harms_nothing(client, name, value):
    found = next(d for d in client.config["dependencies"] if d["api_name"] == name)
    asked = {"fn_index": found["id"], "session_hash": client.session}
    asked["data"] = [value] * len(found["inputs"])
    status, _ = client.post("queue/join", asked)
    if status == 200:
        assert client.answer().error or name == "runs"
    assert client.ask("plan", {"--max-steps": "3"}).data  # it is still there


def test_an_office_file_is_refused(client):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as file:
        file.writestr("x", "y")
    file = client.sent("x.docx", packed.getvalue())
    assert "ZIP" in client.error("pages", {"or a file": file})


def test_the_name_of_a_file_stays_a_name(client):
    for name in ("../../etc/x.txt", "..\\..\\x.txt", "%2e%2e%2fx.txt"):
        file = client.sent(name, b"some text")
        assert Path(file["path"]).resolve().parent.parent.name.startswith("deepsynth-app-")
        command = client.command("pages", {"or a file": file})
        assert command.endswith("x.txt") and "/" not in command.split()[-1]


def test_script_in_a_text_is_only_shown(client):
    text = "<script>alert(1)</script>\u4e00"
    shown = client.ask("pages", {"Text": text}).data[0]
    assert "&lt;script&gt;alert(1)&lt;/script&gt;<mark>\u4e00</mark>" in shown
    assert "<script" not in shown
    for rule in ("default-src 'self'", "object-src 'none'", "frame-ancestors 'none'"):
        assert rule in client.policy
    assert "http" not in client.policy and "*" not in client.policy


def test_script_in_the_name_of_a_file_is_only_shown(client):
    file = client.sent("<img src=x onerror=alert(1)>.docx", b"PK\x03\x04")
    assert "<img" not in client.error("pages", {"or a file": file})


def test_script_in_the_name_of_a_run_is_only_shown(client, root):
    run = root / "<script>alert(1)<"
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.toml").write_text("")
    (run / "metrics.jsonl").write_text("")
    client.ask("runs", {"Runs": []})
    html = client.ask("runs", {"Runs": [run.name]}).data[1]
    assert "<script" not in html and "&amp;lt;script" in html and "sandbox srcdoc=" in html


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", ""])
def test_a_name_that_was_made_to_point_here_is_refused(port, host):
    stranger = Client(port, Host=host)
    assert stranger.status == 400 and stranger.page == "Invalid host header"


@pytest.mark.parametrize("path", ["queue/join", "upload", "cancel"])
def test_another_site_s_form_is_refused(client, path):
    status, told = client.post(path, {}, Origin="http://evil.example")
    assert status == 403 and "origin http://evil.example: not this page" in told


def test_one_session_s_file_is_not_another_s(port, client):
    file, other = client.sent("mine.txt", b"my own text"), Client(port)
    assert "not of this session" in other.error("pages", {"or a file": file})
    assert client.ask("pages", {"or a file": file}).data[0]


def test_one_session_s_answer_is_not_another_s(port, client):
    client.ask("read", {"Text": "The mayor of Hull.", "--max-new-tokens": "3"})
    other = Client(port)
    assert "there is no answer yet" in other.error("look", {"heads": "all"})
    other.session = client.session  # known, or guessed: it came with another cookie
    assert "another browser's" in other.error("look", {"heads": "all"})
    for path in (f"queue/data?session_hash={other.session}", f"heartbeat/{other.session}"):
        status, _, told = other.request("GET", f"/gradio_api/{path}")
        assert status == 403 and "another browser's" in told
    status, told = other.post("cancel", {"session_hash": other.session, "fn_index": 0})
    assert status == 403 and "another browser's" in told
    assert client.ask("look", {"heads": "all"}).data[3]


@pytest.mark.parametrize("cookie", ["session=" + "A" * 43, "session=", ""])
def test_a_made_up_session_is_refused(client, cookie):
    client.cookie = cookie
    assert "no session of this page" in client.error("pages", {"Text": "a"})
    assert client.send("a.txt", b"a")[0] == 403


def test_the_page_has_the_names_of_this_machine(port):
    for name in ("127.0.0.1", "localhost", f"LOCALHOST:{port}"):
        assert Client(port, Host=name).status == 200


def test_a_link_from_elsewhere_comes_to_the_session_that_was(client):
    """What a browser does at such a link, it is told with the cookie."""
    assert "SameSite=Lax" in Client(client.port).set_cookie


def test_without_the_password_nothing_is_served(root):
    with started(root, "--host=0.0.0.0", "--password=correct horse") as (port, _):
        # Whoever comes, by whatever name: on all addresses it has some that it cannot know.
        stranger, client = Client(port, Host="evil.example"), Client(port)
        assert stranger.config == {} and "tiny-reader" not in stranger.page
        assert client.config == {} and "tiny-reader" not in client.page
        for path in ("queue/join", "upload"):
            asked = {"fn_index": 0, "data": [], "session_hash": client.session}
            assert client.post(path, asked)[0] == 401
        path = f"/gradio_api/queue/data?session_hash={client.session}"
        assert client.request("GET", path)[0] == 401
        head = {"Content-Type": "application/x-www-form-urlencoded"}
        for password, status in (("troubador", 400), ("", 400), ("correct+horse", 200)):
            form = f"username=a&password={password or '+'}".encode()
            found, answer, _ = client.request("POST", "/login", form, **head)
            assert found == status
        given = [line.partition(";")[0] for line in answer.get_all("Set-Cookie")]
        client.cookie = "; ".join([client.cookie, *given])
        assert client.request("GET", "/config")[0] == 200


def test_what_is_not_json_is_refused(client):
    for body in (b"[1]", b"{", b"\xff", b"[" * 100_000, b'"a"'):
        status, told = client.post("queue/join", body)
        assert status == 400 and "not an object" in told and "\n" not in told


def test_nothing_goes_to_the_network(client):
    """The page's head names no script, font or style of elsewhere; what else is named, the policy
    keeps a browser from loading."""
    assert "googleapis" not in client.page and "cdn" not in client.page.lower()
    assert client.config["analytics_enabled"] is False
    assert (
        re.search(r"url\((?![\'\"]?data:)|@import", client.request("GET", "/theme.css")[2]) is None
    )
