"""Copies for a checkpoint: as the tensors were, in memory of their own, before anything changes."""

import torch
from adapter_runs import run, write_base, write_rows
from commands import words
from small_model import SMALL

from deepsynth_min import train
from deepsynth_min.model.weights import on_host
from deepsynth_min.training.host_copy import HostCopier


def tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    whole = torch.randn(6, 4)
    return {
        "view": whole[2:4],
        "transposed": whole.t(),
        "bf16": torch.randn(5).bfloat16(),
        "bytes": torch.arange(9, dtype=torch.uint8),
        "count": torch.tensor(3.0),
        "trains": torch.nn.Parameter(torch.randn(3)),
        "none": torch.empty(0, 4),
    }


def test_copies_are_what_the_tensors_were_whatever_becomes_of_them():
    given = tensors()
    was = {name: tensor.detach().clone() for name, tensor in given.items()}
    copier = HostCopier()
    first, second = copier([given, {"again": given["view"]}])
    copier.before_change()
    with torch.no_grad():
        for tensor in given.values():
            tensor.zero_()
    assert first.keys() == given.keys()
    assert all(first[name].dtype == was[name].dtype for name in was)
    assert all(first[name].equal(was[name]) for name in was) and second["again"].equal(was["view"])


def test_a_copy_is_written_as_it_lies():
    """Alone in its memory and in the order of its rows, so that writing makes no second copy."""
    (copies,) = HostCopier()([tensors()])
    assert all(
        on_host(copy) is copy or on_host(copy).data_ptr() == copy.data_ptr()
        for copy in copies.values()
    )
    assert not any(copy.requires_grad for copy in copies.values())


def test_every_step_lets_the_copies_arrive_before_it_changes_a_weight(tmp_path, monkeypatch):
    """On a GPU the optimizer would otherwise overtake them; what is seen here is the order."""
    write_base(tmp_path / "base", SMALL)
    write_rows(tmp_path / "rows.jsonl")
    said, step = [], train.clip_and_step
    copy, before = HostCopier.__call__, HostCopier.before_change

    def noted(name, action):
        return lambda *given: (said.append(name), action(*given))[1]

    monkeypatch.setattr(HostCopier, "__call__", noted("copies", copy))
    monkeypatch.setattr(HostCopier, "before_change", noted("waits", before))
    monkeypatch.setattr(train, "clip_and_step", noted("steps", step))
    run(tmp_path, *words("--max-steps 3 --eval-every 0 --save-every 2 --mode 128"))
    assert said == ["waits", "steps"] * 2 + ["copies", "waits", "steps", "copies"]
