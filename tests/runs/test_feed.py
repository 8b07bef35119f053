"""Batches on their way to the device."""

from contextlib import nullcontext
from dataclasses import fields

import torch
from small_steps import ragged_batch
from torch import Tensor

from deepsynth_min.runs.feed import Copier


class Streams:
    """torch.cuda's streams, of which a CPU has none: what is asked of them, in order."""

    def __init__(self):
        self.asked = []

    def wait_stream(self, other):
        self.asked.append("wait for the copies")


def test_on_a_cpu_a_batch_is_as_it_was():
    batch = ragged_batch()
    copied = Copier(torch.device("cpu"))(batch)
    assert all(torch.equal(getattr(copied, n), getattr(batch, n)) for n in ("input_ids", "pages"))


def test_on_a_gpu_what_computes_waits_for_the_copies_and_keeps_their_memory(monkeypatch):
    """Every tensor that moves is copied on a stream apart and held for the one that computes."""
    streams, copied, held = Streams(), [], []
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: "apart")
    monkeypatch.setattr(
        torch.cuda, "stream", lambda s: streams.asked.append(f"copy {s}") or nullcontext()
    )
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: streams)
    monkeypatch.setattr(Tensor, "record_stream", lambda tensor, stream: held.append(tensor))
    to = lambda tensor, device, non_blocking: copied.append((device.type, non_blocking)) or tensor  # noqa: E731
    monkeypatch.setattr(Tensor, "to", to)
    batch = ragged_batch()
    Copier(torch.device("cuda"))(batch)
    moving = [getattr(batch, f.name) for f in fields(batch) if f.name != "grids"]
    moving = [tensor for tensor in moving if isinstance(tensor, Tensor)]
    assert streams.asked == ["copy apart", "wait for the copies"]
    assert copied == [("cuda", True)] * len(moving)
    assert {id(t) for t in held} == {id(t) for t in moving}
