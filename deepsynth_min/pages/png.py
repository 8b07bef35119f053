"""A page -> the bytes of a PNG file, by the standard library alone.

In: uint8 [height, width] or [C, height, width], C = 1 (grey) or 3 (RGB). Out: bytes. The idea: the
smallest valid file, filter 0 in each row and one IDAT chunk. Source: the PNG specification (W3C).
"""

import base64
import html
import struct
import zlib

import numpy as np


def png(image: np.ndarray) -> bytes:
    """A uint8 image, [height, width] or [C, height, width], as a PNG, grey or RGB."""

    def chunk(name: bytes, body: bytes) -> bytes:
        checksum = zlib.crc32(name + body)
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", checksum)

    if image.ndim == 2:
        image = image[None]
    channels, height, width = image.shape
    rows = np.zeros((height, 1 + width * channels), np.uint8)  # a row starts with filter 0: none
    rows[:, 1:] = image.transpose(1, 2, 0).reshape(height, width * channels)
    colour = {1: 0, 3: 2}[channels]
    header = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows.tobytes(), 6))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts) + chunk(b"IEND", b"")


def in_html(file: bytes, alt: str, css: str = "") -> str:
    """A PNG file as part of an HTML page, which then needs no other file. css: its class."""
    named = f' class="{css}"' if css else ""
    data = base64.b64encode(file).decode()
    return f'<img alt="{html.escape(alt)}"{named} src="data:image/png;base64,{data}">'
