"""Checkpoints and run directories that others made: every tensor is checked, nothing that is no
file is read, and what may not be written is said at the start."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from safetensors_bytes import entry, header
from small_model import SMALL

from deepsynth_min.data.tokenizer import EMBEDDED
from deepsynth_min.errors import UserError
from deepsynth_min.model.deepseek_ocr import DeepseekOCR
from deepsynth_min.runs.storage.run_directory import RunDirectory
from deepsynth_min.training import checkpoint
from deepsynth_min.training.optim import LossScaler, make_adamw, prepare_state
from deepsynth_min.tuning.lora import Base, LoraConfig, attach
from deepsynth_min.tuning.targets import choose


def trained():
    torch.manual_seed(0)
    model = DeepseekOCR(SMALL)
    base = Base("b", None, "d")
    attach(model, LoraConfig(4, 8.0, base=base), choose(model, ("attention",)))
    optimizer = make_adamw(model, (0.9, 0.95), 0.0)
    return model, optimizer, LossScaler(False, torch.device("cpu"))


FACTS = {"step": 1, "best": None, "best_metric": "loss", "stale": 0, "score": None, "unlogged": []}


@pytest.fixture(scope="module")
def adapter_checkpoint(tmp_path_factory):
    model, optimizer, scaler = trained()
    prepare_state(optimizer)
    folder = tmp_path_factory.mktemp("run")
    return checkpoint.save(
        folder, checkpoint.take_snapshot(model, optimizer, scaler, FACTS), model, EMBEDDED
    )


def resume(path: Path) -> None:
    checkpoint.load(path, *trained(), {})


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
