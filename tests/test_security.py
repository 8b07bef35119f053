"""Files that others made: sizes and offsets are checked before memory is given, nothing is
unpickled, no path leaves its folder, nothing that is no file is read."""

import json
import os
import resource
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_model import SMALL

import deepsynth_min
from deepsynth_min import render as preview, train
from deepsynth_min.data.tokenizer import EMBEDDED
from deepsynth_min.errors import UserError
from deepsynth_min.model.deepseek_ocr import DeepseekOCR
from deepsynth_min.model.weights import read_tensors, stored
from deepsynth_min.pages import images
from deepsynth_min.training import checkpoint
from deepsynth_min.training.optim import LossScaler, make_adamw, prepare_state
from deepsynth_min.training.run_directory import RunDirectory
from deepsynth_min.tuning.lora import Base, LoraConfig, attach, choose


def header(entries: dict, data: bytes = b"") -> bytes:
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(begin: int, end: int, shape=(4,), kind="F32") -> dict:
    return {"dtype": kind, "shape": list(shape), "data_offsets": [begin, end]}


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
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    DeepseekOCR.from_pretrained(sys.argv[1])
except UserError as error:
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024, str(error)[:300])
"""


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": 2**18, "num_attention_heads": 2**11, "num_key_value_heads": 2**11},
        {"vocab_size": 2**24},
        {"intermediate_size": 2**20, "moe_intermediate_size": 2**20},
        {"n_routed_experts": 2048, "moe_intermediate_size": 2**16},
    ],
)
def test_a_configuration_of_terabytes_beside_a_small_file_takes_no_memory(model_copy, changes):
    path = model_copy / "config.json"
    official = json.loads(path.read_text())
    official["language_config"] |= changes
    official["projector_config"]["n_embed"] = official["language_config"]["hidden_size"]
    path.write_text(json.dumps(official))
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(model_copy)], capture_output=True, text=True
    )
    megabytes, _, message = done.stdout.partition(" ")
    assert "tensors do not fit the model" in message, done.stderr
    assert int(megabytes) < 100


def trained(tune_adapter: bool):
    torch.manual_seed(0)
    model = DeepseekOCR(SMALL)
    if tune_adapter:
        base = Base("b", None, "d")
        attach(model, LoraConfig(4, 8.0, base=base), choose(model, ("attention",)))
    optimizer = make_adamw(model, (0.9, 0.95), 0.0)
    return model, optimizer, LossScaler(False, torch.device("cpu"))


FACTS = {"step": 1, "best": None, "best_metric": "loss", "stale": 0, "score": None, "unlogged": []}


@pytest.fixture(scope="module")
def adapter_checkpoint(tmp_path_factory):
    model, optimizer, scaler = trained(True)
    prepare_state(optimizer)
    folder = tmp_path_factory.mktemp("run")
    return checkpoint.save(
        folder, checkpoint.take(model, optimizer, scaler, FACTS), model, EMBEDDED
    )


def resume(path: Path) -> None:
    checkpoint.load(path, *trained(True), {})


@pytest.mark.parametrize("file", ["adapter_model.safetensors", "optimizer.safetensors"])
@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t, n: t[n].view(-1)[:1].fill_(float("nan")), "values that are not finite"),
        (lambda t, n: t[n].view(-1)[-1:].fill_(float("inf")), "values that are not finite"),
        (lambda t, n: t.update({n: t[n].to(torch.int32)}), "is of type I32, which it cannot be"),
        (lambda t, n: t.update({n: t[n][..., None]}), "1 wrongly shaped"),
        (lambda t, n: t.pop(n), "1 missing"),
        (lambda t, n: t.update(other=torch.zeros(1)), "1 unknown: other"),
    ],
)
def test_tensors_of_adapter_and_optimizer_are_checked(
    tmp_path, adapter_checkpoint, file, change, message
):
    path = Path(shutil.copytree(adapter_checkpoint, tmp_path / "c"))
    tensors = load_file(path / file)
    change(tensors, max(tensors, key=lambda name: tensors[name].numel()))
    save_file(tensors, path / file)
    assert checkpoint.damage(path) == f"{file} is not as it was written"
    if not (file.startswith("adapter") and "other" in message):  # a PEFT name, then
        with pytest.raises(UserError, match=message):
            resume(path)


def test_a_sparse_file_of_terabytes_is_refused_by_its_shapes(tmp_path, adapter_checkpoint):
    """The file exists, its offsets are right, and only reading it would take the memory."""
    path = Path(shutil.copytree(adapter_checkpoint, tmp_path / "c"))
    for file in ("optimizer.safetensors", "adapter_model.safetensors"):
        kept = (path / file).read_bytes()
        size = 2**42  # where the file system has no such large files, there is nothing to show
        text = header({"a": entry(0, size, (size // 4,))})
        with open(path / file, "wb") as out:
            out.write(text)
            try:
                out.truncate(len(text) + size)
            except OSError:
                pytest.skip("no sparse files of this size here")
        with pytest.raises(UserError):
            resume(path)
        (path / file).write_bytes(kept)
    resume(path)


@pytest.mark.parametrize("name", ["model.safetensors", "shadow.json"])
def test_a_file_that_the_manifest_does_not_know_makes_a_checkpoint_damaged(
    tmp_path, adapter_checkpoint, name
):
    path = Path(shutil.copytree(adapter_checkpoint, tmp_path / "step-000001"))
    (path / name).write_bytes(b"{}")
    assert checkpoint.damage(path) == f"{name} is not in manifest.json"
    (path / name).unlink()
    listed = json.loads((path / "manifest.json").read_text())
    del listed["optimizer.safetensors"]
    (path / "manifest.json").write_text(json.dumps(listed))
    assert checkpoint.damage(path) == "optimizer.safetensors is not in manifest.json"


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
        images.open_image(data if from_bytes else tmp_path / "a.png", "f:row 1")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024  # KiB


@pytest.mark.parametrize("data", [b"x", b"\x89PNG\r\n\x1a\n", big_png(8, 8)[:-20], b"GIF89a" * 9])
def test_bytes_that_are_no_picture_are_refused(data):
    with pytest.raises(UserError, match="f:row 2: the image: not a readable image"):
        images.open_image(data, "f:row 2")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_pipe_in_a_model_directory_is_not_waited_for(model_copy, tmp_path, capsys, name):
    (model_copy / name).unlink()
    os.mkfifo(model_copy / name)
    words = ["--model", str(model_copy), "--out", str(tmp_path / "r"), "--max-steps", "1"]
    assert train.main(words) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    "name",
    [
        "adapter_config.json",
        "adapter_model.safetensors",
        "trained.safetensors",
        "optimizer.safetensors",
        "training.json",
        "manifest.json",
    ],
)
def test_a_pipe_in_a_checkpoint_is_not_waited_for(tmp_path, adapter_checkpoint, name):
    path = Path(shutil.copytree(adapter_checkpoint, tmp_path / "step-000001"))
    (path / name).unlink(missing_ok=True)
    os.mkfifo(path / name)
    assert name in checkpoint.damage(path)
    if name != "manifest.json":
        with pytest.raises(UserError):
            resume(path)


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


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_directory_that_may_not_be_written_to_is_refused_at_the_start(tmp_path):
    for folder in (tmp_path, *tmp_path.parents):
        if os.stat(folder).st_uid == 0 and folder != Path("/tmp") and folder != Path("/"):
            folder.chmod(0o755)
    os.seteuid(65534)
    try:
        for path in (tmp_path, tmp_path / "a" / "b"):
            with pytest.raises(UserError, match="--out .* may not be written to"):
                RunDirectory(str(path), "none")
    finally:
        os.seteuid(0)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--out .*file is not a folder"):
        RunDirectory(str(tmp_path / "file" / "run"), "none")


def test_a_marker_that_cannot_be_written_is_one_line(tmp_path, adapter_checkpoint):
    run = RunDirectory(str(tmp_path / "run"), "auto")
    shutil.copytree(adapter_checkpoint, tmp_path / "run" / "checkpoints" / "step-000001")
    (tmp_path / "run" / "last").mkdir()
    with pytest.raises(UserError, match="--out .*last: Is a directory"):
        run.go_on_after(1)


def test_what_is_wrong_for_all_processes_is_said_once(tmp_path):
    words = [
        *(
            "-m torch.distributed.run --standalone --nproc-per-node 3 -m deepsynth_min.train "
            "--data none.jsonl"
        ).split(),
        "--out",
        str(tmp_path / "r"),
    ]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True)
    assert done.stderr.count("error: none.jsonl: no such file") == 1
    assert done.returncode == 1


def test_nothing_in_the_package_unpickles(tmp_path):
    package = Path(deepsynth_min.__file__).parent
    for path in package.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        for word in (
            "torch.load",
            "import pickle",
            "allow_pickle=True",
            "yaml.load",
            "eval(",
            "exec(",
        ):
            assert f" {word}" not in text and f"({word}" not in text, (path.name, word)
