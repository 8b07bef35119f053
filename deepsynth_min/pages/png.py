"""A page -> the bytes of a PNG file, greyscale, by the standard library alone.

In: uint8 [height, width]. Out: bytes. The idea: the smallest valid file, filter 0 in each row and
one IDAT chunk. Source: the PNG specification (W3C).
"""

import struct
import zlib

import numpy as np


def png(image: np.ndarray) -> bytes:
    """A uint8 image [height, width] as a greyscale PNG."""

    def chunk(name: bytes, body: bytes) -> bytes:
        checksum = zlib.crc32(name + body)
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", checksum)

    height, width = image.shape
    rows = np.zeros((height, width + 1), np.uint8)  # each row starts with filter 0: none
    rows[:, 1:] = image
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows.tobytes(), 6))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts) + chunk(b"IEND", b"")
