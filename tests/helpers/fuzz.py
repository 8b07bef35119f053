"""Mutations for the fuzz tests: of bytes, of values, of files; all from a seeded generator.

Two thousand damaged inputs: each is refused in one line, or means exactly what it says. What a
success must mean comes from an independent reading: json, tomllib, pyarrow's and safetensors' own
readers, the bytes of the files.
"""

import json
import os
import random
import shutil
from pathlib import Path

from deepsynth_min.errors import UserError, one_line

JSONL, PARQUET, TABLES, TOML = 600, 300, 100, 400  # inputs of each kind
RUNS, CHECKPOINTS, WEIGHTS, TOKENIZERS, ADAPTERS = 200, 200, 150, 40, 200
INPUTS = (JSONL, PARQUET, TABLES, TOML, RUNS, CHECKPOINTS, WEIGHTS, TOKENIZERS, ADAPTERS)
assert sum(INPUTS) >= 2000

DEEP = "[" * 20_000 + "]" * 20_000
ODD = (
    None,
    True,
    False,
    0,
    -1,
    3,
    1.5,
    1e308,
    -0.0,
    float("nan"),
    float("inf"),
    2**31,
    2**63,
    10**400,
    "",
    " \n",
    "\0",
    "\ud800",
    "x" * 5000,
    "../a.png",
    "/etc/hostname",
    "ä 🙂 \u2028",
    "1",
    [],
    {},
    [[]],
    [None],
    ["a", "b"],
    {"a": 1},
    [1, "x"],
    "a.png",
)

PIECES = (b"\0", b"\xff\xff\xff\xff", b'"', b"}", b"\n", b"9" * 400, b"\xed\xa0\x80", b"\\ud800")


def mutate_bytes(data: bytes, chance: random.Random) -> bytes:
    """One to three small harms: bits, bytes, ranges."""
    for _ in range(chance.choice((1, 1, 2, 3))):
        at = chance.randrange(len(data) + 1)
        end = min(len(data), at + chance.choice((1, 1, 2, 8, 100)))
        kind = chance.randrange(7)
        if kind == 0 and at < len(data):
            data = data[:at] + bytes([data[at] ^ (1 << chance.randrange(8))]) + data[at + 1 :]
        elif kind == 1:
            data = data[:at] + chance.randbytes(end - at) + data[end:]
        elif kind == 2:
            data = data[:at] + data[end:]
        elif kind == 3:
            data = data[:at] + chance.randbytes(chance.choice((1, 4, 30))) + data[at:]
        elif kind == 4:
            data = data[:end] + data[at:end] + data[end:]
        elif kind == 5:
            data = data[:at]
        else:
            data = data[:at] + chance.choice(PIECES) + data[at:]
    return data


def mutate_value(value, chance: random.Random):
    """A copy of a JSON value in which one place is another thing, gone, or nested."""
    if isinstance(value, dict) and value and chance.random() < 0.9:
        copy, key = dict(value), chance.choice(list(value))
        if (kind := chance.randrange(8)) == 0:
            del copy[key]
        elif kind == 1:
            copy[chance.choice((key + "s", key.upper(), "", "\0", "image", "__proto__"))] = (
                copy.pop(key)
            )
        else:
            copy[key] = mutate_value(copy[key], chance)
        return copy
    if isinstance(value, list) and value and chance.random() < 0.7:
        copy, at = list(value), chance.randrange(len(value))
        copy[at : at + 1] = chance.choice(([], [copy[at]] * 2, [mutate_value(copy[at], chance)]))
        return copy
    return chance.choice((*ODD, [value], {"a": value}))


def mutate_json(data: bytes, chance: random.Random) -> bytes:
    """A file of JSON with one place changed, or nested too deep to be read."""
    if chance.random() < 0.02:
        return DEEP.encode()
    return json.dumps(mutate_value(json.loads(data), chance)).encode()


def mutate_file(path: Path, chance: random.Random) -> str:
    """Replaces a file, or what it is. Returns what was done, for messages."""
    data, kind = path.read_bytes(), chance.randrange(20)
    if kind < 8:
        path.write_bytes(mutate_bytes(data, chance))
        return f"bytes of {path.name}"
    if kind < 12 and path.suffix == ".json":
        path.write_bytes(mutate_json(data, chance))
        return f"values of {path.name}"
    path.unlink()
    if kind < 14:
        path.write_bytes(b"")
    elif kind == 14:
        path.mkdir()
    elif kind == 15:
        path.symlink_to("nowhere")
    elif kind == 16:
        path.symlink_to(path.name)
    elif kind == 17:
        os.mkfifo(path)
    elif kind == 18:
        path.write_bytes(chance.randbytes(1000))
    return f"kind {kind} of {path.name}"


def fresh(source: Path, target: Path) -> Path:
    """A new copy in place of what is there."""
    shutil.rmtree(target, ignore_errors=True)
    return Path(shutil.copytree(source, target, symlinks=True))


def outcome(call):
    """What `call` returns, or None for a mistake of the user's, which must be one printable
    line."""
    try:
        return call()
    except UserError as error:
        line = one_line(error)
        assert line.strip() and line.isprintable() and len(line) < 1100
        return None
