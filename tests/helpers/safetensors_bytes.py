"""Bytes of safetensors files that are made by hand, right or wrong."""

import json
import struct


def header(entries: dict, data: bytes = b"") -> bytes:
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(begin: int, end: int, shape=(4,), kind="F32") -> dict:
    return {"dtype": kind, "shape": list(shape), "data_offsets": [begin, end]}


def file_size(tensors: dict) -> int:
    """Bytes of the file that safetensors writes for these tensors of one type (meta ones will do):
    sorted by name, the header without blanks, padded to a multiple of 8."""
    entries, end = {"__metadata__": {"format": "pt"}}, 0
    for name in sorted(tensors):
        begin, end = end, end + tensors[name].nbytes
        entries[name] = entry(begin, end, tensors[name].shape, "BF16")
    text = json.dumps(entries, separators=(",", ":"))
    return 8 + len(text) + -len(text) % 8 + end
