"""Processes: starting them, adding up what they found, reducing gradients.

In: the environment that torchrun sets (no other module reads it), gradients of one rank. Out: a
`World`; gradients summed over all ranks.

The one idea: the model is not wrapped. Each rank computes the gradient of (its summed loss / the
label tokens of the whole global step), so that the plain *sum* over ranks is the gradient of the
exact global mean. Gradients travel in flat buckets while backward still computes others
(`GradientReducer`); a parameter without a gradient counts as zeros.
"""

import json
import os
import re
import time
from dataclasses import dataclass, replace
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from ..errors import UserError
from ..model.weights import tensor_digest
from .rendezvous import store_of_this_attempt

BUCKET_BYTES = 25 * 2**20


@dataclass(frozen=True)
class World:
    """This process among all of them, and its device."""

    rank: int
    size: int
    device: torch.device
    group: dist.ProcessGroup | None = None  # over which sums go; None: the one that all share

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def sum(self, *values: float | Tensor) -> list[float]:
        """Each value added up over all ranks, in float64."""
        values = [float(value) for value in values]
        if self.size == 1:
            return values
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total, group=self.group)
        return total.tolist()

    def apart(self, timeout: int) -> "World":
        """The same ranks over connections of their own, for a thread beside the loop: on those of
        the loop, what one asks would meet what the other does. All ranks must ask for it."""
        if self.size == 1:
            return self
        group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout))
        return replace(self, group=group)


def choose_device(device: str, threads: int) -> torch.device:
    """This process's device; sets its CPU threads (0: an equal share of the cores).

    Raises UserError if the device does not exist.
    """
    local, here = (
        int(os.environ.get(f"LOCAL_{n}", d)) for n, d in (("RANK", 0), ("WORLD_SIZE", 1))
    )
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch("cpu|mps|cuda(:[0-9]{1,3})?", device):  # others cannot run all of the model
        raise UserError(f"--device {device}: neither auto, cpu, mps, cuda nor cuda:N")
    try:
        chosen = torch.device(device)
        if chosen.type == "cuda" and chosen.index is None:
            chosen = torch.device("cuda", local)
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {device}: {str(error).splitlines()[0]}") from None
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
        choose_kernels()
    # torchrun sets one OpenMP thread per process; share the cores instead.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    torch.set_num_threads(threads or max(1, cores // here))
    return chosen


def choose_kernels() -> None:
    """What torch would take otherwise on a GPU, for the whole process.

    cuDNN, which it asks for attention before the others on some GPUs, plans each new shape for half
    a second of the host (github.com/modelscope/FunASR/issues/3704), and packed samples have new
    shapes in every step. And its convolutions of float32 would round to TF32's 10 bits.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)
    torch.backends.cudnn.allow_tf32 = False


def start(device: str = "auto", threads: int = 0, timeout: int = 600) -> World:
    """Joins the process group if torchrun started us, and picks this process's device.

    threads: as of choose_device; timeout: seconds to wait for others. Raises UserError.
    """
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    chosen = choose_device(device, threads)
    if size > 1:
        # Small facts go over Gloo from host memory, so that asking for them stalls no GPU.
        backend = "cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo"
        seconds = timedelta(seconds=timeout)
        store, rank, size = next(dist.rendezvous("env://", timeout=seconds))
        os.environ.setdefault("TORCH_FR_BUFFER_SIZE", "2000")  # collectives, for flight_record
        store = store_of_this_attempt(store, rank, size, timeout)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=seconds)
        global _roll_call
        _roll_call = dist.new_group(backend="gloo")
    return World(rank, size, chosen)


def let_first_speak() -> None:
    """What is wrong for one process of a machine is mostly wrong for all, and is to be said once:
    the others wait, until torchrun ends them because the first has failed, or until it has not."""
    if int(os.environ.get("LOCAL_RANK", 0)) > 0:
        time.sleep(2.0)


def stop() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


_roll_call = None  # a group of all ranks that carries nothing until something has failed
_ROLL_CALL_SECONDS = 10


def with_lost_ranks(error: RuntimeError) -> RuntimeError:
    """If `error` came from a collective: one that names the ranks which do not answer any more.

    Such an error says that a connection was closed, or that nothing came before --timeout; not
    whose fault it was. So those who are left call the roll, over connections that are still whole.
    """
    of_collective = isinstance(error, dist.DistError) or re.search("gloo|nccl", str(error), re.I)
    if _roll_call is None or not of_collective:
        return error
    seconds = timedelta(seconds=_ROLL_CALL_SECONDS)
    try:
        dist.monitored_barrier(_roll_call, seconds, wait_all_ranks=True)
    except RuntimeError as found:
        return RuntimeError(f"rank {dist.get_rank()} lost another process: {found}")
    return error


def flight_record() -> str:
    """The last collectives of this process, as JSON of torch's flight recorder; "" if it has none,
    as older versions of torch and builds without it."""
    c10d = torch._C._distributed_c10d if dist.is_available() else None
    for name in ("_dump_nccl_trace_json", "_dump_fr_trace_json"):
        if dist.is_initialized() and hasattr(c10d, name):
            return getattr(c10d, name)().decode("utf-8", "replace")
    return ""


def barrier(world: World) -> None:
    if world.size > 1:
        dist.barrier()


def broadcast_text(world: World, text: str) -> str:
    """Rank 0's text, on every rank (as bytes: nothing is unpickled)."""
    if world.size == 1:
        return text
    data = torch.tensor(list(text.encode()), dtype=torch.uint8)
    length = torch.tensor(len(data))
    dist.broadcast(length, src=0)
    if not world.is_main:
        data = torch.empty(int(length), dtype=torch.uint8)
    dist.broadcast(data, src=0)
    return bytes(data.tolist()).decode()


def gather_text(world: World, text: str) -> list[str]:
    """The text of each rank, on every rank (as bytes: nothing is unpickled)."""
    if world.size == 1:
        return [text]
    data = torch.tensor(list(text.encode()), dtype=torch.uint8)
    lengths = [torch.zeros((), dtype=torch.int64) for _ in range(world.size)]
    dist.all_gather(lengths, torch.tensor(len(data)))
    longest = int(max(lengths))
    padded = torch.cat([data, torch.zeros(longest - len(data), dtype=torch.uint8)])
    found = [torch.empty_like(padded) for _ in range(world.size)]
    dist.all_gather(found, padded)
    return [bytes(f[: int(n)].tolist()).decode() for f, n in zip(found, lengths)]


def gather_lists(world: World, values: list) -> list:
    """The values of all ranks, which JSON can hold, in one list, on every rank."""
    return [v for text in gather_text(world, json.dumps(values)) for v in json.loads(text)]


def any_here(world: World, value: bool) -> bool:
    """Whether the value is true for a process that the same torchrun has started as this one."""
    here = os.environ.get("GROUP_RANK", "0")
    return here in gather_lists(world, [here] if value else [])


class GradientReducer:
    """Sums gradients over all ranks while backward is still running.

    A parameter's hook tells when its gradient is complete; when all of a bucket are, the bucket is
    copied into one flat tensor and its reduction starts. Buckets follow the parameters from last to
    first, about the order in which backward finishes them, and are started strictly in that order,
    so that every rank starts the same ones in the same order whatever its batch contained.

    With several micro-steps, only the last one is `armed`: gradients add up locally before that.
    """

    def __init__(self, world: World, parameters: list[Tensor], dtype: torch.dtype | None = None):
        self.world, self.parameters, self.dtype = world, parameters, dtype
        self.armed, self.fired = False, set()
        self.buckets = _buckets(parameters[::-1]) if world.size > 1 else []
        self.bucket_of = {p: i for i, bucket in enumerate(self.buckets) for p in bucket}
        self._start_over()
        self.hooks = [p.register_post_accumulate_grad_hook(self._ready) for p in parameters]

    def _start_over(self) -> None:
        self.missing = [len(bucket) for bucket in self.buckets]
        self.running: list[tuple[Tensor, dist.Work]] = []
        self.armed = False

    def _ready(self, parameter: Tensor) -> None:
        self.fired.add(parameter)
        if not self.armed or not self.buckets:
            return
        self.missing[self.bucket_of[parameter]] -= 1
        while len(self.running) < len(self.buckets) and not self.missing[len(self.running)]:
            self._reduce(self.buckets[len(self.running)])

    @torch.no_grad()
    def _reduce(self, bucket: list[Tensor]) -> None:
        pieces = [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in bucket]
        flat = torch.cat(pieces).to(self.dtype or pieces[0].dtype)
        self.running.append((flat, dist.all_reduce(flat, async_op=True)))

    @torch.no_grad()
    def finish(self) -> None:
        """Waits; then every parameter's gradient is the sum over ranks (zeros if none had one)."""
        while len(self.running) < len(self.buckets):
            self._reduce(self.buckets[len(self.running)])
        for bucket, (flat, work) in zip(self.buckets, self.running):
            work.wait()
            pieces = flat.to(bucket[0].dtype).split([p.numel() for p in bucket])
            for parameter, piece in zip(bucket, pieces):
                parameter.grad = piece.view_as(parameter)  # no copy: a piece of the flat tensor
        if self.world.size == 1:
            for parameter in self.parameters:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
        self._start_over()

    @torch.no_grad()
    def abandon(self) -> None:
        """After a backward that failed: what the other ranks still reduce is joined, with zeros,
        for they would wait for ever; all gradients are dropped."""
        for parameter in self.parameters:
            parameter.grad = None
        while len(self.running) < len(self.buckets):
            self._reduce(self.buckets[len(self.running)])
        for _, work in self.running:
            work.wait()
        self._start_over()

    def without_gradient(self) -> list[int]:
        """Numbers of the parameters that no rank has had a gradient for since the start."""
        flags = torch.tensor([p in self.fired for p in self.parameters], dtype=torch.int32)
        if self.world.size > 1:
            dist.all_reduce(flags)
        return (flags == 0).nonzero().flatten().tolist()

    def close(self) -> None:
        for hook in self.hooks:
            hook.remove()


def _buckets(parameters: list[Tensor]) -> list[list[Tensor]]:
    """Neighbours of one dtype. At least eight buckets if there is enough to overlap, each at least
    1 MiB (below that, starting costs more than sending) and at most BUCKET_BYTES."""
    total = sum(p.nbytes for p in parameters)
    limit = min(BUCKET_BYTES, max(2**20, total // 8))
    buckets: list[list[Tensor]] = []
    size = 0
    for parameter in parameters:
        if (
            not buckets
            or size + parameter.nbytes > limit
            or buckets[-1][0].dtype != parameter.dtype
        ):
            buckets.append([])
            size = 0
        buckets[-1].append(parameter)
        size += parameter.nbytes
    return buckets


@torch.no_grad()
def check_same_parameters(world: World, named: dict[str, Tensor]) -> None:
    """Raises RuntimeError naming the first parameter that differs between ranks.

    Shards, which are meant to differ, are left out.
    """
    named = {name: p for name, p in named.items() if not hasattr(p, "to_local")}
    if world.size == 1 or not named:
        return
    digests = [int.from_bytes(tensor_digest(p)[:7]) for p in named.values()]
    mine = torch.tensor(digests)
    low, high = mine.clone(), mine.clone()
    dist.all_reduce(low, dist.ReduceOp.MIN)
    dist.all_reduce(high, dist.ReduceOp.MAX)
    different = (low != high).nonzero().flatten().tolist()
    if different:
        raise RuntimeError(f"ranks differ in parameter {list(named)[different[0]]}")
