"""Copies in host memory of what trains, made while the device goes on.

In: tensors of a device, as they are at one moment. Out: copies on the host, and on a GPU the event
from which on they are whole.

The one idea: on a GPU nobody waits who need not. The copies travel on a stream of their own, into
page-locked memory, which a GPU writes while it computes. That stream waits for what was computed
before; the thread that writes a checkpoint waits for the event; and the loop's stream waits for it
before the optimizer changes the tensors (`before_change`): a forward and backward later, when the
copies have mostly arrived. A copy within the GPU first would need no such waiting, but as much GPU
memory again as weights and moments take, which full tuning does not have.

torch keeps page-locked memory for the next copies, and rounds each tensor's up to a power of two:
host memory of up to twice the checkpoint (PYTORCH_ALLOC_CONF=pinned_max_round_threshold_mb:1 rounds
up small ones alone). Shards (shard.py) are not copied so: each is put together on the GPU first,
and the host waits for its copy, so that there is one at a time.
"""

import torch
from torch import Tensor


class HostCopier:
    """Copies for one device; where it is no GPU, at once."""

    def __init__(self, device: torch.device = torch.device("cpu")):
        self.device = device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.arrived: torch.cuda.Event | None = None  # of the newest copies

    @torch.no_grad()
    def __call__(self, parts: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
        """Copies of all tensors; on a GPU not to be read before `arrived`."""
        if self.stream is None:
            return [{name: self._copied(tensor) for name, tensor in part.items()} for part in parts]
        computing = torch.cuda.current_stream(self.device)
        if any(hasattr(tensor, "is_paged") for part in parts for tensor in part.values()):
            computing.synchronize()  # bitsandbytes' paged moments: the host itself reads those
        self.stream.wait_stream(computing)
        with torch.cuda.stream(self.stream):
            copies = [{n: self._copied(tensor) for n, tensor in part.items()} for part in parts]
            self.arrived = self.stream.record_event(torch.cuda.Event(blocking=True))
        return copies

    def _copied(self, tensor: Tensor) -> Tensor:
        from_gpu = self.stream is not None and tensor.device.type == "cuda"
        copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=from_gpu)
        if from_gpu:  # its memory, if it is freed, is not to be given out before that
            tensor.record_stream(self.stream)
        return copy.copy_(tensor, non_blocking=from_gpu)

    def before_change(self) -> None:
        """What the loop's stream is given from now on begins when the copies have arrived. The host
        does not wait."""
        if self.arrived is not None:
            torch.cuda.current_stream(self.device).wait_event(self.arrived)
            self.arrived = None
