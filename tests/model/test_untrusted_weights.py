"""Model directories that others made: sizes and offsets are checked before memory is given, no
path leaves its folder, nothing that is no file is read."""

import json
import os
import shutil
import struct
from pathlib import Path

import pytest
import torch
from commands import python
from safetensors_bytes import entry, header
from small_model import SMALL

from deepsynth_min import train
from deepsynth_min.data.tokenizer import EMBEDDED
from deepsynth_min.errors import UserError
from deepsynth_min.model.deepseek_ocr import DeepseekOCR
from deepsynth_min.model.weights import read_tensors, stored
from deepsynth_min.training import checkpoint

HEADERS = {
    "length 2^60": struct.pack("<Q", 2**60) + b"{}",
    "length 2^64 - 1": struct.pack("<Q", 2**64 - 1) + b"{}",
    "length 100 MB": struct.pack("<Q", 10**8) + b"{" + b" " * 1000,
    "length over the limit": struct.pack("<Q", 10**8 + 1) + b"{}",
    "overlap": header({"a": entry(0, 16), "b": entry(8, 24)}, bytes(24)),
    "hole": header({"a": entry(0, 16), "b": entry(32, 48)}, bytes(48)),
    "beyond the file": header({"a": entry(0, 16)}, bytes(8)),
    "far beyond": header({"a": entry(0, 2**60, (2**58,))}, bytes(16)),
    "backwards": header({"a": entry(16, 0)}, bytes(16)),
    "negative": header({"a": entry(-16, 0)}, bytes(16)),
    "shape of 2^60": header({"a": entry(0, 16, (2**60,))}, bytes(16)),
    "shape that wraps": header({"a": entry(0, 16, (2**32, 2**32, 4))}, bytes(16)),
    "no such type": header({"a": entry(0, 16, kind="Q99")}, bytes(16)),
    "not an object": struct.pack("<Q", 2) + b"[]",
    "deep": struct.pack("<Q", 100_000) + b"[" * 100_000,
    "pickle": b"\x80\x04\x95\x00\x00\x00\x00\x00\x00\x00\x00.",
}


@pytest.fixture(scope="module")
def model_directory(tmp_path_factory):
    torch.manual_seed(0)
    directory = tmp_path_factory.mktemp("model") / "m"
    directory.mkdir()
    checkpoint.save_model(DeepseekOCR(SMALL), directory, EMBEDDED)
    return directory


@pytest.fixture
def model_copy(model_directory, tmp_path):
    return Path(shutil.copytree(model_directory, tmp_path / "model"))


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_that_claims_what_cannot_be_is_refused_whoever_reads_it(
    tmp_path, model_copy, name
):
    (model_copy / "model.safetensors").write_bytes(HEADERS[name])
    with pytest.raises(UserError, match="model.safetensors: not a safetensors file"):
        DeepseekOCR.from_pretrained(model_copy)
    file = tmp_path / "adapter_model.safetensors"
    file.write_bytes(HEADERS[name])
    for read in (stored, lambda path: read_tensors(path, {})):
        with pytest.raises(UserError, match="adapter_model.safetensors: not a safetensors file"):
            read(file)


@pytest.mark.parametrize(
    "target",
    [
        "../secret.safetensors",
        "/etc/passwd",
        "a/../../b",
        "",
        ".",
        "..",
        7,
        None,
        ["a"],
        "x\0y",
        "\ud800",
    ],
)
def test_a_weight_index_names_files_beside_it_and_no_others(model_copy, target):
    shutil.copy(model_copy / "model.safetensors", model_copy.parent / "secret.safetensors")
    (model_copy / "model.safetensors").unlink()
    index = {"weight_map": {"lm_head.weight": target}}
    (model_copy / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="model.safetensors.index.json"):
        DeepseekOCR.from_pretrained(model_copy)


LOAD = """
import resource, sys
from deepsynth_min.errors import UserError
from deepsynth_min.model import DeepseekOCR
for directory in sys.argv[1:]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        DeepseekOCR.from_pretrained(directory)
    except UserError as error:
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print((after - before) // 1024, str(error)[:300])
"""


def test_configurations_of_terabytes_beside_a_small_file_take_no_memory(model_directory, tmp_path):
    """One process reads them all: its highest mark cannot rise unseen."""
    claims = [
        {"hidden_size": 2**18, "num_attention_heads": 2**11, "num_key_value_heads": 2**11},
        {"vocab_size": 2**24},
        {"intermediate_size": 2**20, "moe_intermediate_size": 2**20},
        {"n_routed_experts": 2048, "moe_intermediate_size": 2**16},
    ]
    for number, changes in enumerate(claims):
        copy = Path(shutil.copytree(model_directory, tmp_path / str(number)))
        official = json.loads((copy / "config.json").read_text())
        official["language_config"] |= changes
        official["projector_config"]["n_embed"] = official["language_config"]["hidden_size"]
        (copy / "config.json").write_text(json.dumps(official))
    done = python("-c", LOAD, *(tmp_path / str(number) for number in range(len(claims))))
    found = [line.partition(" ") for line in done.stdout.splitlines()]
    assert len(found) == len(claims), done.stderr
    for megabytes, _, message in found:
        assert "tensors do not fit the model" in message and int(megabytes) < 100


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_pipe_in_a_model_directory_is_not_waited_for(model_copy, tmp_path, capsys, name):
    (model_copy / name).unlink()
    os.mkfifo(model_copy / name)
    words = ["--model", str(model_copy), "--out", str(tmp_path / "r"), "--max-steps", "1"]
    assert train.main(words) == 2
    assert capsys.readouterr().err.count("\n") == 1
