"""What a page, a document or a stranger might try with the app: none succeeds, each is told in one
line."""

import shutil
from dataclasses import fields

import pytest

from deepsynth_min.app_parts.safety import REFUSED, arguments, check_settings, inside
from deepsynth_min.config_file import FILES
from deepsynth_min.errors import UserError
from deepsynth_min.options import change
from deepsynth_min.settings import CONCERNS, Settings

TEXTS = ("../secret", "/etc/passwd", "runs/../../secret", "link", "owner/name", "https://x.org/a")
LEADS_OUT = [
    (setting, name)
    for setting in (*FILES, "out", "resume")
    for name in TEXTS
    # of what is written, these are new folders below the root
    if setting not in ("out", "feature_cache") or name not in ("owner/name", "https://x.org/a")
]


@pytest.mark.parametrize(("setting", "name"), LEADS_OUT)
def test_a_setting_that_leaves_the_root_is_refused(root, monkeypatch, setting, name):
    monkeypatch.chdir(root)
    kind = next(f.type for c in CONCERNS.values() for f in fields(c) if f.name == setting)
    value = name if kind is str else (name,)
    with pytest.raises(UserError, match="is not below|nothing of that name"):
        check_settings(root.resolve(), change(Settings(), **{setting: value}))


def test_a_folder_whose_name_begins_as_embedded_rows_do_leads_nowhere_else(root, monkeypatch):
    monkeypatch.chdir(root)
    (root / "embedded:..").mkdir()
    for setting in ("adapter", "model", "resume", "out"):
        with pytest.raises(UserError, match="is not below"):
            check_settings(root.resolve(), change(Settings(), **{setting: "embedded:../../../x"}))
    (root / "embedded:..").rmdir()


@pytest.mark.parametrize(
    ("setting", "name"),
    [
        *((name, word) for name in ("data", "adapter", "out") for word in ("off", "auto", "none")),
        *(("model", "tiny-reader"), ("data", "tiny"), ("resume", "off"), ("feature_cache", "auto")),
    ],
)
def test_a_link_is_none_of_the_words_that_another_setting_has(root, monkeypatch, setting, name):
    monkeypatch.chdir(root)
    (root / name).symlink_to(root.parent)
    kind = next(f.type for c in CONCERNS.values() for f in fields(c) if f.name == setting)
    with pytest.raises(UserError, match="is not below"):
        value = name if kind is str else (name,)
        check_settings(root.resolve(), change(Settings(), **{setting: value}))
    (root / name).unlink()


def test_a_run_that_leaves_the_root_does_not_go_on(root, jobs, monkeypatch):
    """It was made by a command, which may."""
    monkeypatch.chdir(root)
    run = root / "runs" / "other"
    (run / "checkpoints").mkdir(parents=True)
    monkeypatch.setattr(jobs, "_newest", lambda: {"running": False, "out": "runs/other"})
    for text, why in (("data = '../secret'", "is not below"), ("", "not from this page")):
        mirror = f"[data]\n{text}\n[run]\nmirror = 's3://a/b'\n"
        (run / "config.toml").write_text(mirror)
        with pytest.raises(UserError, match=why):
            jobs.go_on()
    shutil.rmtree(root / "runs")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[]", b"5", b"a\0b\0c"])
def test_a_lock_of_another_kind_names_no_training(jobs, tmp_path, monkeypatch, content):
    monkeypatch.setattr("deepsynth_min.app_parts.jobs.LOCK", tmp_path / "lock")
    (tmp_path / "lock").write_bytes(content)
    assert jobs.training({})[0] == {"running": False, "log": ""}
    for action in (jobs.stop, jobs.go_on):
        with pytest.raises(UserError, match="no training of this folder"):
            action()


def test_a_folder_that_is_linked_is_not_listed(root, jobs, tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "config.toml").write_text("")
    (root / "elsewhere").symlink_to(tmp_path)
    assert "elsewhere" not in str(jobs.runs([], (0, 0))[2])
    (root / "elsewhere").unlink()


def test_a_name_with_a_nul_is_refused(root):
    with pytest.raises(UserError, match="not a possible file name"):
        inside(root.resolve(), "a\0b", "--out")


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
