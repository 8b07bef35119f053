"""What a page, a document or a stranger might try with the app: none succeeds, each is told in one
line."""

import io
import json
import socket
import zipfile
from dataclasses import fields

import pytest
from app_page import Client, started
from PIL import Image

from deepsynth_min.app import run as app
from deepsynth_min.app_parts.safety import REFUSED, arguments, check_settings, inside, is_allowed
from deepsynth_min.app_parts.server import MOST_JSON, MOST_UPLOAD
from deepsynth_min.config_file import FILES
from deepsynth_min.errors import UserError
from deepsynth_min.options import change
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


@pytest.mark.parametrize("setting", ["vary", "unseen_style"])
def test_a_font_among_those_that_are_drawn_is_below_the_root(client, setting):
    told = client.error("plan", {"settings": {setting: "font=|../secret,invert=0.1"}})
    assert "../secret: is not below" in told


@pytest.mark.parametrize("setting", [*FILES, "out"])
def test_the_page_refuses_it_in_one_line(client, setting):
    told = client.error("plan", {"settings": {setting: "../secret"}})
    assert "../secret" in told and "is not below" in told


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("report", {"runs": ["../../etc"]}),
        ("table", {"to": "../pages.parquet"}),
        ("train", {"resume": "../run"}),
        ("check", {"settings": {"data": "../secret"}}),
        ("pages", {"text": "a", "settings": {"main_font": "../secret"}}),
        ("read", {"text": "a", "settings": {"font": "/etc/passwd"}}),
    ],
)
def test_no_field_leads_out_of_the_root(client, name, given):
    assert "is not below" in client.error(name, given)


@pytest.mark.parametrize("path", ["/../app.py", "/%2e%2e/etc/passwd", "/page.html", "//etc/passwd"])
def test_no_address_but_one_is_served(client, path):
    status, _, content = client.request("GET", path)
    assert status == 404 and content.count("\n") == 1


def test_a_name_with_a_nul_is_refused(root):
    with pytest.raises(UserError, match="not a possible file name"):
        inside(root.resolve(), "a\0b", "--out")


def test_what_would_leave_the_machine_is_refused(client):
    for name, value in (("push_to_hub", "a/b"), ("wandb", "p"), ("mirror", "s3://a/b")):
        assert "not from this page" in client.error("plan", {"settings": {name: value}})


def test_images_that_leave_the_folder_of_the_data_are_refused(client):
    assert "not from this page" in client.error("plan", {"settings": {"images_anywhere": "yes"}})


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
    ("path", "length", "most"), [("upload", 1 << 30, MOST_UPLOAD), ("pages", 1 << 30, MOST_JSON)]
)
def test_a_gigabyte_is_refused_before_it_is_read(port, client, path, length, most):
    with socket.create_connection(("127.0.0.1", port)) as link:
        head = f"POST /{path} HTTP/1.0\r\nHost: localhost\r\nCookie: {client.cookie}\r\n"
        link.sendall(f"{head}Content-Length: {length}\r\n\r\n".encode())
        told = link.makefile().read()
    assert "413" in told.splitlines()[0]
    assert f"1,073,741,824 bytes are more than the {most:,} that are taken" in told


def test_a_picture_that_unpacks_to_gigapixels_is_refused(client):
    packed = io.BytesIO()
    Image.new("1", (40_000, 40_000)).save(packed, "png")
    assert len(packed.getvalue()) < 1 << 20
    key = client.send("bomb.png", packed.getvalue())
    assert "bomb.png: " in client.error("pages", {"file": key})


@pytest.mark.parametrize("name", ["rows.jsonl.gz", "rows.csv.zst", "rows.jsonl.XZ"])
def test_a_compressed_file_is_refused(client, name):
    assert "compressed files are not taken" in client.error(
        "upload", b"\x1f\x8b", **{"X-Name": name}
    )


@pytest.mark.parametrize(
    "settings", [{"mode": "8192"}, {"max_pages": "9999999", "font_size": "99"}]
)
def test_pages_that_would_fill_the_memory_are_refused(client, settings):
    told = client.error("pages", {"text": "a " * 50_000, "settings": settings})
    assert "the model's context of 2048 tokens has place for" in told


@pytest.mark.parametrize("name", ["pages", "read", "look", "report", "check", "table", "train"])
@pytest.mark.parametrize(
    "given",
    [
        {"settings": [1], "file": ["x"], "heads": {}, "runs": "x", "to": 7, "resume": [1]},
        {"settings": {"lr": 5}, "file": {}, "runs": [None], "to": {}, "resume": "rows"},
    ],
)
def test_what_is_of_another_kind_is_refused(client, name, given):
    assert "see where the app was started" not in client.error(name, given)


def test_an_office_file_is_refused(client):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as file:
        file.writestr("x", "y")
    assert "ZIP" in client.error("pages", {"file": client.send("x.docx", packed.getvalue())})


def test_the_name_of_a_file_stays_a_name(client):
    for name in ("../../etc/x.txt", "..\\..\\x.txt", "%2e%2e%2fx.txt"):
        key = client.send(name, b"some text")
        (found,) = client.ask("pages", {"file": key})
        assert found["command"].endswith(" x.txt")


def test_script_in_a_text_is_only_shown(client):
    text = "<script>alert(1)</script>\u4e00"
    (found,) = client.ask("pages", {"text": text})
    assert "".join(piece for piece, _ in found["marks"]) == text  # shown as text: see the browser
    assert "script-src 'nonce-" in client.policy and "default-src 'none'" in client.policy
    assert "unsafe-inline" not in client.policy.split("style-src")[0]


def test_script_in_the_name_of_a_run_is_only_shown(client, root):
    run = root / "<script>alert(1)<"
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.toml").write_text("")
    (run / "metrics.jsonl").write_text("")
    (found,) = client.ask("report", {"runs": [run.name]})
    assert "<script" not in found["html"] and "&lt;script" in found["html"]


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", ""])
def test_a_name_that_was_made_to_point_here_is_refused(port, host):
    stranger = Client(port, Host=host)
    assert stranger.status == 403 and "not an address of this page" in stranger.page


def test_on_all_addresses_the_names_are_numbers():
    assert is_allowed("192.168.1.7:7860", "0.0.0.0") and not is_allowed("evil.example", "0.0.0.0")
    assert not is_allowed("192.168.1.7:7860", "127.0.0.1")


def test_another_site_s_form_is_refused(client):
    told = client.error("plan", {}, Origin="http://evil.example")
    assert told == "origin http://evil.example: not this page"


def test_one_session_s_file_is_not_another_s(port, client):
    key, other = client.send("mine.txt", b"my own text"), Client(port)
    assert "not of this session" in other.error("pages", {"file": key})
    assert client.ask("pages", {"file": key})[0]["facts"]


def test_one_session_s_answer_is_not_another_s(port, client):
    client.ask("read", {"text": "The mayor of Hull.", "settings": {"max_new_tokens": "3"}})
    assert "there is no answer yet" in Client(port).error("look")
    assert client.ask("look")[-1]["views"]


def test_a_made_up_session_is_refused(client):
    client.cookie = "session=" + "A" * 43
    assert "no session of this page" in client.error("pages", {"text": "a"})


def test_without_the_password_nothing_is_served(root):
    with started(root, "--password=correct horse") as (port, _):
        assert Client(port).status == 401
        assert Client(port, Authorization="Basic OnRyb3ViYWRvdXI=").status == 401
        assert Client(port, Authorization="Basic OmNvcnJlY3QgaG9yc2U=").status == 200


@pytest.mark.parametrize("options", [["--host=0.0.0.0"], ["--host=10.0.0.1", "--password=short"]])
def test_other_machines_need_a_password(options):
    with pytest.raises(UserError, match="needs --password"):
        app(options)


def test_what_is_not_json_is_refused(client):
    for body in (b"[1]", b"{", b"\xff", b"[" * 100_000):
        assert client.error("pages", body)
    assert json.loads(client.request("POST", "/nothing", b"{}")[2])["error"]
