"""A directory that is written is there whole or not at all, and so is the one that it replaces."""

import os
from pathlib import Path

import pytest

from deepsynth_min.errors import UserError
from deepsynth_min.files import disk
from deepsynth_min.files.disk import WriteError, undo_all_unfinished, whole_directory


def write(folder: Path, text: str) -> Path:
    with whole_directory(folder / "d") as partial:
        (partial / "file").write_text(text)
    return folder / "d" / "file"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_directory_gets_its_name_only_when_it_is_whole(tmp_path):
    with pytest.raises(WriteError, match="could not be written: No space left on device"):
        with whole_directory(tmp_path / "d") as partial:
            (partial / "file").write_text("half")
            with open("/dev/full", "w") as full:
                full.write("x" * 10_000)
    with pytest.raises(UserError, match="wrong"), whole_directory(tmp_path / "d"):
        raise UserError("wrong")
    assert names(tmp_path) == []


def test_a_directory_replaces_the_one_before_it_and_leaves_nothing_else(tmp_path):
    write(tmp_path, "old")
    assert write(tmp_path, "new").read_text() == "new"
    assert names(tmp_path) == ["d"]


def refuse_rename(monkeypatch, allowed: int, error: BaseException) -> None:
    """The rename after `allowed` others raises the error; those after it are done again."""
    rename, calls = os.rename, []

    def limited(source, target) -> None:
        calls.append(source)
        if len(calls) == allowed + 1:
            raise error
        rename(source, target)

    monkeypatch.setattr(disk.os, "rename", limited)


@pytest.mark.parametrize("allowed", [0, 1])
def test_a_replacement_that_the_system_refuses_leaves_the_old_directory(
    tmp_path, monkeypatch, allowed
):
    old = write(tmp_path, "old")
    refuse_rename(monkeypatch, allowed, OSError(28, "No space left on device"))
    with pytest.raises(WriteError):
        write(tmp_path, "new")
    assert old.read_text() == "old" and names(tmp_path) == ["d"]


def test_a_kill_between_the_two_renames_costs_neither_directory(tmp_path, monkeypatch):
    old = write(tmp_path, "old")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        refuse_rename(patch, 1, KeyboardInterrupt())  # no handler of ours sees it, as with a kill
        write(tmp_path, "new")
    assert names(tmp_path) == [".d.replaced"]
    undo_all_unfinished(tmp_path)
    assert old.read_text() == "old" and names(tmp_path) == ["d"]


@pytest.mark.parametrize("suffix", ["partial", "replaced"])
def test_what_a_kill_left_beside_a_whole_directory_is_cleared_away(tmp_path, suffix):
    write(tmp_path, "whole")
    (tmp_path / f".d.{suffix}").mkdir()
    (tmp_path / f".d.{suffix}" / "file").write_text("left over")
    undo_all_unfinished(tmp_path)
    assert names(tmp_path) == ["d"] and (tmp_path / "d" / "file").read_text() == "whole"


def test_a_page_replaces_a_page_and_no_other_file(tmp_path):
    page = tmp_path / "page.html"
    disk.check_page("--out", page)
    for content in ("", disk.PAGE_HEAD + "<head>"):
        page.write_text(content)
        disk.check_page("--out", page)
    for content in ("a;b\n", disk.PAGE_HEAD[:-1]):
        page.write_text(content)
        with pytest.raises(UserError, match="--out .*page.html: exists, and is no page"):
            disk.check_page("--out", page)
