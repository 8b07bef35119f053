"""What a stranger might ask the page itself for: none gets out of the folder, each is told in one
line. The same without a server: test_attacks.py."""

import pytest

from deepsynth_min.app_parts.safety import REFUSED
from deepsynth_min.config_file import FILES
from deepsynth_min.options import option_of

pytestmark = pytest.mark.slow  # a server, seconds to start
FILE_ROUTE = "/gradio_api/file="


def test_a_setting_that_is_too_long_for_the_system_is_refused(client):
    for name in ("plan", "check", "train"):
        assert "200,000 characters" in client.error(name, {"--instruction": "a" * 200_000})


def test_what_comes_with_the_package_is_taken_by_its_name(client):
    own = {"--data": "embedded embedded:needles@500,2000", "--model": "tiny-unlimited"}
    own |= {"--main-font": "figo", "--font": "notos music", "--vary": "font=figo|notos"}
    command = client.command("plan", own)
    assert "--data=embedded --data=embedded:needles@500,2000" in command and "=music" in command
    told = client.error("plan", {"--data": "embedded:poems"})
    assert "embedded:poems: no such embedded documents" in told


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


def test_no_run_outside_the_root_is_reported(client, jobs):
    told = client.ask("runs", {"Runs": ["../../etc"]}).error
    assert "is not in the list of choices" in told and "\n" not in told
    for name in ("../../etc", "/etc", "link"):
        told = jobs.report([name])
        assert "is not below" in told and "iframe" not in told


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


def test_what_would_leave_the_machine_has_no_control(client):
    labels = {c["props"].get("label") for c in client.config["components"]}
    assert "--model" in labels and not labels & {option_of(name) for name in REFUSED}
