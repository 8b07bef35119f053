"""What checkpoints will take on the disk is known, and said, before the first step."""

import shutil
import subprocess
import warnings
from pathlib import Path

import pytest
import torch
from commands import words
from small_model import SMALL

from deepsynth_min import train
from deepsynth_min.data.tokenizer import EMBEDDED
from deepsynth_min.errors import UserError
from deepsynth_min.model.deepseek_ocr import DeepseekOCR
from deepsynth_min.runs.storage.disk_space import check_space, checkpoint_bytes
from deepsynth_min.training.checkpoint import save, take_snapshot
from deepsynth_min.training.optim import LossScaler, make_adamw, prepare_state
from deepsynth_min.training.precision import set_parameter_types
from deepsynth_min.tuning import freeze
from deepsynth_min.tuning.lora import Base, LoraConfig, attach
from deepsynth_min.tuning.targets import choose

QUICK = (
    "--model tiny --batch-size 2 --max-steps 1 --val-samples 1 --answer-samples 0 --eval-every 0"
)


@pytest.mark.parametrize(
    "tune, kind, types",
    [
        ("decoder", "adamw", "fp32"),
        ("all", "adamw", "bf16"),
        ("decoder", "adamw8bit", "fp32"),
        ("decoder", "paged_adamw8bit", "fp32"),
        ("lora", "adamw", "fp32"),
        ("projector+lora", "adamw", "fp32"),
        ("lora", "adamw8bit", "fp32"),
    ],
)
def test_the_size_that_is_said_is_that_of_the_files(tmp_path, tune, kind, types):
    model = DeepseekOCR(SMALL)
    if "lora" in tune:
        base = Base("a base", None, "0" * 64)
        attach(model, LoraConfig(rank=8, alpha=16, base=base), choose(model, ("all",)))
    freeze.freeze(model, tune)
    set_parameter_types(model, "bf16", types)
    scaler = LossScaler(False, torch.device("cpu"))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Paged optimizers are not supported on CPU")
        optimizer = make_adamw(model, (0.9, 0.95), 0.01, kind=kind)
        prepare_state(optimizer)
    told = checkpoint_bytes(model, model, optimizer, scaler, EMBEDDED)
    facts = {"step": 1, "best": None, "unlogged": [[1.5, 20.0]] * 10}
    written = save(tmp_path, take_snapshot(model, optimizer, scaler, facts), model, EMBEDDED)
    assert told == pytest.approx(bytes_of(written), rel=0.02)


def bytes_of(checkpoint: Path) -> int:
    return sum(file.stat().st_size for file in checkpoint.iterdir())


def test_room_for_less_than_all_that_are_kept_is_a_warning_and_for_none_an_error(tmp_path):
    checkpoints = tmp_path / "run" / "checkpoints"
    line, warning = check_space(10**6, checkpoints, 2)
    assert line.startswith(
        "a checkpoint takes 1.0 MB; --keep 2, the best one and the next take 4.0"
    )
    assert line.endswith(" are free") and not warning
    line, warning = check_space(10**6, checkpoints, 10**12)
    assert warning.startswith("the disk may not hold all checkpoints: ") and line in warning
    with pytest.raises(
        UserError, match=r"--out .*run: no space for a checkpoint, .* 1,000,000,000"
    ):
        check_space(10**18, checkpoints, 2)
    assert not checkpoints.parent.exists()


def test_those_that_are_there_already_are_counted(tmp_path):
    checkpoints = tmp_path / "checkpoints"
    third = shutil.disk_usage(tmp_path).free // 3
    assert check_space(third, checkpoints, 2)[1]
    for step in (2, 4):
        (checkpoints / f"step-{step:06}").mkdir(parents=True)
    assert not check_space(third, checkpoints, 2)[1]


def test_a_run_for_whose_checkpoint_there_is_no_room_does_not_begin(tmp_path, capsys):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2M", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only the superuser may mount a small disk")
    try:
        assert train.main([*words(QUICK), "--out", str(disk / "r")]) == 2
        assert list(disk.iterdir()) == []
        error = capsys.readouterr().err
        assert error.startswith(f"error: --out {disk / 'r'}: no space for a checkpoint, ")
        assert error.endswith(", which takes 71.6 MB; 2.1 MB are free\n")
    finally:
        subprocess.run(["umount", str(disk)], check=True)
