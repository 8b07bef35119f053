"""What a page, a document or a stranger might try with the app: none succeeds, each is told in one
line."""

import io
import re
import socket
import subprocess
import sys
import zipfile
from dataclasses import fields
from pathlib import Path

import pytest
from app_page import Client, started
from PIL import Image

from deepsynth_min.app import run as app
from deepsynth_min.app_parts.guard import MOST_JSON, MOST_UPLOAD, is_allowed
from deepsynth_min.app_parts.jobs import Jobs
from deepsynth_min.app_parts.reading import said
from deepsynth_min.app_parts.safety import REFUSED, arguments, check_settings, inside
from deepsynth_min.config_file import FILES
from deepsynth_min.errors import UserError
from deepsynth_min.options import change, option_of
from deepsynth_min.settings import CONCERNS, Settings

TEXTS = ("../secret", "/etc/passwd", "runs/../../secret", "link", "owner/name", "https://x.org/a")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("below") / "root"
    folder.mkdir()
    (folder.parent / "secret").write_text("secret")
    (folder / "link").symlink_to(folder.parent / "secret")
    return folder


@pytest.fixture(scope="module")
def port(root):
    with started(root) as (number, _):
        yield number


@pytest.fixture
def client(port):
    return Client(port)


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("setting", [*FILES, "out", "resume"])
def test_a_setting_that_leaves_the_root_is_refused(root, monkeypatch, setting, name):
    monkeypatch.chdir(root)
    if setting in ("out", "feature_cache") and name in ("owner/name", "https://x.org/a"):
        pytest.skip("a new folder below the root")
    kind = next(f.type for c in CONCERNS.values() for f in fields(c) if f.name == setting)
    value = name if kind is str else (name,)
    with pytest.raises(UserError, match="is not below|nothing of that name"):
        check_settings(root.resolve(), change(Settings(), **{setting: value}))


@pytest.mark.parametrize("setting", ["--vary", "--unseen-style"])
def test_a_font_among_those_that_are_drawn_is_below_the_root(client, setting):
    told = client.error("plan", {setting: "font=|../secret,invert=0.1"})
    assert "../secret: is not below" in told


@pytest.mark.parametrize("setting", [*FILES, "out"])
def test_the_page_refuses_it_in_one_line(client, setting):
    told = client.error("plan", {option_of(setting): "../secret"})
    assert "../secret" in told and "is not below" in told


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("table", {"write pages": "../pages.parquet"}),
        ("train", {"--out": "../run"}),
        ("train", {"--resume": "../run"}),
        ("check", {"--data": "../secret"}),
        ("pages", {"Text": "a", "--main-font": "../secret"}),
        ("read", {"Text": "a", "--font": "/etc/passwd"}),
    ],
)
def test_no_field_leads_out_of_the_root(client, name, given):
    assert "is not below" in client.error(name, given)


def test_no_run_outside_the_root_is_reported(client, root):
    told = client.ask("runs", {"Runs": ["../../etc"]}).error
    assert "is not in the list of choices" in told and "\n" not in told
    jobs = Jobs(root.resolve())
    for name in ("../../etc", "/etc", "link"):
        told = jobs.report([name])
        assert "is not below" in told and "iframe" not in told


def test_a_folder_that_is_linked_is_not_listed(root, tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "config.toml").write_text("")
    (root / "elsewhere").symlink_to(tmp_path)
    assert "elsewhere" not in str(Jobs(root.resolve()).runs([], (0, 0))[2])
    (root / "elsewhere").unlink()


FILE_ROUTE = "/gradio_api/file="


@pytest.mark.parametrize(
    "path",
    [
        "/../app.py",
        "/%2e%2e/etc/passwd",
        "//etc/passwd",
        "/assets/../../../blocks.py",
        "/assets/%2e%2e/%2e%2e/%2e%2e/blocks.py",
        "/static/..%2f..%2f..%2fblocks.py",
        "/static//etc/passwd",
        FILE_ROUTE + "/etc/passwd",
        FILE_ROUTE + "../secret",
        FILE_ROUTE + "rows.jsonl",
        FILE_ROUTE + "http://127.0.0.1:1/",
        "/gradio_api/file/etc/passwd",
        "/gradio_api/proxy=http://127.0.0.1:1/",
        "/gradio_api/info",
        "/gradio_api/openapi.json",
        "/gradio_api/mcp/",
        "/gradio_api/runs",
        "/monitoring",
        "/docs",
        "/openapi.json",
        "/?deep_link=../../secret",
    ],
)
def test_no_file_and_no_other_address_is_served(client, path):
    status, _, content = client.request("GET", path)
    assert status in (403, 404) and "\n" not in content and 'secret"' not in content


def test_not_even_one_s_own_file_is_served(client):
    path = client.sent("mine.txt", b"my own text")["path"]
    assert client.request("GET", FILE_ROUTE + path)[0] == 404


@pytest.mark.parametrize("path", ["/etc/passwd", "http://127.0.0.1:1/x", "../secret"])
@pytest.mark.parametrize("meta", [{"_type": "gradio.FileData"}, {}])
def test_a_path_or_an_address_is_not_a_file_that_was_sent(client, path, meta):
    file = {"path": path, "url": path, "meta": meta}
    assert "not of this session" in client.error("pages", {"or a file": file})
    assert "not of this session" in client.error("check", {"a file of rows": [file]})


def test_a_name_with_a_nul_is_refused(root):
    with pytest.raises(UserError, match="not a possible file name"):
        inside(root.resolve(), "a\0b", "--out")


def test_what_would_leave_the_machine_has_no_control(client):
    labels = {c["props"].get("label") for c in client.config["components"]}
    assert "--model" in labels and not labels & {option_of(name) for name in REFUSED}


LEAVES = {"push_to_hub": "a/b", "wandb": "p", "mirror": "s3://a/b", "images_anywhere": True}


@pytest.mark.parametrize(("name", "value"), LEAVES.items())
def test_what_would_leave_the_machine_is_refused(root, monkeypatch, name, value):
    assert LEAVES.keys() == REFUSED.keys()
    monkeypatch.chdir(root)
    with pytest.raises(UserError, match="not from this page"):
        check_settings(root.resolve(), change(Settings(), **{name: value}))


# Texts that name neither a file nor another machine, or are used with what is refused alone.
PLAIN = """mode revision data_subset data_split data_revision val_revision text_field image_field
summary_field instruction_field instruction newline_mark lora_targets repeat_allow device""".split()
FONTS = "vary", "unseen_style"  # in which fonts may be named


def test_every_setting_that_is_a_text_has_its_check():
    texts = {
        f.name for c in CONCERNS.values() for f in fields(c) if f.type in (str, tuple[str, ...])
    }
    known = {*PLAIN, *FILES, *FONTS, *REFUSED, "out", "resume"}
    assert texts <= known, "name it in check_settings, in REFUSED, or here"


def test_a_value_cannot_become_another_option():
    assert arguments({"data": "a.jsonl", "instruction": "--out=/tmp/x"}) == [
        "--data=a.jsonl",
        "--instruction=--out=/tmp/x",
    ]
    with pytest.raises(UserError, match="not a setting"):
        arguments({"config": "x.toml"})


@pytest.mark.parametrize(
    ("path", "most"), [("upload", MOST_UPLOAD), ("queue/join", MOST_JSON), ("cancel", MOST_JSON)]
)
def test_a_gigabyte_is_refused_before_it_is_read(port, client, path, most):
    with socket.create_connection(("127.0.0.1", port)) as link:
        head = f"POST /gradio_api/{path} HTTP/1.0\r\nHost: localhost\r\nCookie: {client.cookie}\r\n"
        link.sendall(f"{head}Content-Length: {1 << 30}\r\n\r\n".encode())
        told = link.makefile().read()
    assert "413" in told.splitlines()[0]
    assert f"1,073,741,824 bytes are more than the {most:,} that are taken" in told


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


def test_script_in_an_answer_is_only_shown():
    pieces = ["<script>", "alert(1)", "</script>"]
    assert "<script" not in said(pieces) + said(pieces, now=0)


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
    assert stranger.status == 403 and "not an address of this page" in stranger.page


def test_on_all_addresses_the_names_are_numbers():
    assert is_allowed("192.168.1.7:7860", "0.0.0.0") and not is_allowed("evil.example", "0.0.0.0")
    assert not is_allowed("192.168.1.7:7860", "127.0.0.1")


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


def test_without_the_password_nothing_is_served(root):
    with started(root, "--password=correct horse") as (port, _):
        client = Client(port)
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


@pytest.mark.parametrize("options", [["--host=0.0.0.0"], ["--host=10.0.0.1", "--password=short"]])
def test_other_machines_need_a_password(options):
    with pytest.raises(UserError, match="needs --password"):
        app(options)


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


def test_without_gradio_one_line_says_what_to_install(tmp_path):
    hidden = "import sys, deepsynth_min.train, deepsynth_min.generate; "
    hidden += "from deepsynth_min.app import main; "
    hidden += "assert not {'gradio', 'starlette'} & sys.modules.keys(); "  # of the page alone
    hidden += "sys.modules['gradio'] = None; "
    found = subprocess.run(
        [sys.executable, "-c", f"{hidden} sys.exit(main(['--root={tmp_path}']))"],
        capture_output=True,
        text=True,
    )
    assert found.returncode == 2
    assert found.stderr == "error: the page needs gradio: pip install 'deepsynth_min[app]'\n"
