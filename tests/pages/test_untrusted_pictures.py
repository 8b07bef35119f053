"""Pictures, fonts and texts that others made: headers that claim too much, and what is no file."""

import os
import resource
import struct
import zlib

import pytest

from deepsynth_min import render as preview, train
from deepsynth_min.errors import UserError
from deepsynth_min.pages import images


def big_png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    start = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + start + chunk(b"IDAT", zlib.compress(bytes(1000)))


@pytest.mark.parametrize("side", [30_000, 60_000, 2**31 - 1])
@pytest.mark.parametrize("from_bytes", [True, False])
def test_a_picture_that_claims_to_be_enormous_is_refused_by_its_header(tmp_path, side, from_bytes):
    data = big_png(side, side)
    (tmp_path / "a.png").write_bytes(data)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match="f:row 1: .*(pixels|limit)"):
        list(images.open_images(data if from_bytes else tmp_path / "a.png", "f:row 1"))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024  # KiB


@pytest.mark.parametrize("data", [b"x", b"\x89PNG\r\n\x1a\n", big_png(8, 8)[:-20], b"GIF89a" * 9])
def test_bytes_that_are_no_picture_are_refused(data):
    with pytest.raises(UserError, match="f:row 2: the image: not a readable image"):
        list(images.open_images(data, "f:row 2"))


@pytest.mark.parametrize("option", ["--main-font", "--font"])
def test_a_pipe_for_a_font_is_not_waited_for(tmp_path, capsys, option):
    os.mkfifo(tmp_path / "font.ttf")
    words = [option, str(tmp_path / "font.ttf"), "--out", str(tmp_path / "r"), "--max-steps", "1"]
    assert train.main(words) == 2
    assert "font.ttf' is not a regular file" in capsys.readouterr().err


def test_half_a_character_for_a_newline_mark_is_one_line(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("a\nb")
    arguments = [str(tmp_path / "a.txt"), "--out", str(tmp_path / "p"), "--newline-mark", "\ud800"]
    assert preview.main(arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: newline_mark")
