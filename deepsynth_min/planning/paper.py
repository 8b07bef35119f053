"""A training step on paper: every kernel that a GPU would run, counted without one.

In: the trainer's own step, run on the meta device, where tensors have shapes and no numbers. Out:
kernels with their bytes and FLOPs, and the memory that is held; roofline.py makes times of them.

The one idea: on the meta device everything runs but the arithmetic, and what reads a number back to
the host is an error there. `Count` sees every operation that would start a kernel. Views cost
nothing. An operation reads its inputs and writes its outputs once; one that looks rows up reads
those alone. (pretend.py makes the code believe that the meta device is a GPU.)

A region that `--compile` compiles is counted as what a compiler makes of it at best: between two
products, one kernel that reads what comes from outside and writes what is still needed after it.
"""

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry


@dataclass
class Kernel:
    """One operation: its bytes, FLOPs, how many kernels it starts, and what bounds it."""

    name: str
    kind: str  # product, attention, memory or transfer (from the host)
    bytes: int
    flops: int = 0
    dtype: torch.dtype = torch.float32  # that it computes in
    launches: int = 1
    share: float = 1.0  # of the usual rate of its kind
    groups: int = 1  # products that it is in one, where torch has it as one kernel


def extent(tensor: Tensor) -> int:
    """Bytes of a tensor that differ: what it is expanded to costs no memory."""
    numbers = 1
    for size, stride in zip(tensor.shape, tensor.stride()):
        numbers *= size if stride else min(size, 1)
    return numbers * tensor.element_size()


# -- what an operation costs ----------------------------------------------------------------------

FREE = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "lift_fresh"}
FREE |= {"_unsafe_view", "_reshape_alias", "detach", "alias", "view", "expand"}
LOOK_UP = {"index_select", "embedding", "gather", "index"}  # of their table only what comes out
SCATTER = {"scatter_", "scatter_add_", "index_add_", "index_copy_", "index_put_"}
OVERWRITE = {"copy_", "fill_", "zero_", "normal_", "uniform_"}  # what was there is not read
ALONE = {"sort", "topk", "searchsorted", "_fused_adamw_"}  # no compiler fuses them with others
# Operations that start several kernels: sorting by digits; a copy first, or sorted positions.
LAUNCHES = {"sort": 4, "index_copy": 2, "embedding_dense_backward": 6}
CHUNK, CHUNKS = 2**16, 320  # of lists of tensors: numbers a block, blocks a kernel


def grouped_flops(a: Tensor, b: Tensor) -> int:
    """[M, I] by [E, I, O], or the weights' gradient [O, M] by [M, I]: each row meets one matrix."""
    return 2 * a.shape[0] * a.shape[1] * b.shape[-1]


def _product_flops(func: OpOverload, args: tuple, kwargs: dict, out: Any) -> int:
    if func.overloadpacket is torch.ops.aten._grouped_mm:
        return grouped_flops(*args[:2])
    formula = flop_registry.get(func.overloadpacket)
    return formula(*args, **kwargs, out_val=out) if formula else 0


def _one_by_one(func: OpOverload, args: tuple) -> bool:
    """Grouped products of another type than bf16, which torch (2.13) makes a product each; the meta
    device refuses them."""
    return func.overloadpacket is torch.ops.aten._grouped_mm and args[0].dtype != torch.bfloat16


def _empty_grouped(a: Tensor, b: Tensor, ends: Tensor, *_: Any) -> Tensor:
    """What a grouped product gives: rows, or a matrix for each group."""
    return a.new_empty(*([len(ends)] if b.dim() == 2 else []), a.shape[0], b.shape[-1])


def _launches(name: str, args: tuple) -> int:
    if name.startswith(("_foreach", "_fused_adamw")):
        return max(1, -(-sum(-(-t.numel() // CHUNK) for t in args[0]) // CHUNKS))
    if name == "index_put" and args[3:] == (True,):  # rows that are added up
        return 6
    return LAUNCHES.get(name, 1)


def _traffic(func: OpOverload, args: tuple, kwargs: dict, out: Any) -> tuple[list, list]:
    """(tensor, bytes) of what is read and what is written."""
    name = func.overloadpacket.__name__
    given = dict(zip((a.name for a in func._schema.arguments), args)) | kwargs
    written, read = [], []
    for argument in func._schema.arguments:
        tensors = [t for t in tree_leaves(given.get(argument.name)) if isinstance(t, Tensor)]
        changed = argument.alias_info is not None and argument.alias_info.is_write
        # AdamW writes its gradients where it scales them, else it only reads them.
        if changed and (argument.name != "grads" or given.get("grad_scale") is not None):
            written += tensors
        if not (argument.is_out or changed and name in OVERWRITE | SCATTER):
            read += tensors
    written += [t for t in tree_leaves(out) if isinstance(t, Tensor) and _fresh(func)]
    if name in LOOK_UP:
        rest = {id(t): (t, extent(t)) for t in read[1:]}
        return [(read[0], extent(out)), *rest.values()], [(out, extent(out))]
    if name in SCATTER:
        source = max((extent(t) for t in read), default=0)
        return [(t, extent(t)) for t in read], [(t, min(source, extent(t))) for t in written]
    read = {(t.untyped_storage()._cdata, t.storage_offset(), t.shape): t for t in read}.values()
    return [(t, extent(t)) for t in read], [(t, extent(t)) for t in written]


def _fresh(func: OpOverload) -> bool:
    """Whether what it returns is memory of its own, not what it was given."""
    return all(r.alias_info is None for r in func._schema.returns)


# -- counting -------------------------------------------------------------------------------------


class Count(TorchDispatchMode):
    """Kernels of what runs inside, and the bytes of all tensors that are alive on the device."""

    def __init__(self):
        super().__init__()
        self.kernels: list[Kernel] = []
        self.live: dict[int, tuple[int, int]] = {}  # storage -> its number, its bytes
        self.held = self.peak = self.made = 0
        self.region = 0  # depth of compiled regions
        self.reads: dict[int, int] = {}  # of the region since its last product: storage -> bytes
        self.writes: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: OpOverload, types: tuple, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        with torch._C.DisableTorchFunction():  # no pretence in here
            return self._counted(func, args, kwargs or {})

    def _counted(self, func: OpOverload, args: tuple, kwargs: dict) -> Any:
        one_by_one = _one_by_one(func, args)
        out = _empty_grouped(*args) if one_by_one else func(*args, **kwargs)
        name = func.overloadpacket.__name__
        outs = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        for tensor in outs:
            self._track(tensor)
        involved = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        on_device = any(t.is_meta for t in (*involved, *outs))
        if not on_device or func.is_view or name in FREE or func.namespace == "profiler":
            return out
        if name == "_to_copy" and not involved[0].is_meta:
            self.add(Kernel("transfer", "transfer", extent(involved[0])))
            return out
        work = _product_flops(func, args, kwargs, out)
        reads, writes = _traffic(func, args, kwargs, out)
        if self.region and not work and name not in ALONE:
            self._into_region(reads, writes)
            return out
        size = sum(b for _, b in reads) + sum(b for _, b in writes)
        dtype = outs[0].dtype if outs else torch.float32
        kind = "product" if work else "memory"
        groups = (
            max([1, *(t.shape[0] for t in (args[1], out) if t.dim() == 3)])
            if (name == "_grouped_mm")
            else 1
        )
        started = _launches(name, args)
        started, groups = (groups, 1) if one_by_one else (started, groups)
        self.add(Kernel(name, kind, size, work, dtype, started, groups=groups))
        return out

    def add(self, kernel: Kernel) -> None:
        self.flush()
        self.kernels.append(kernel)

    def memory(self, name: str, read: list[Tensor], written: list[Tensor]) -> None:
        """A kernel that is bound by memory, or a part of a compiled one."""
        reads, writes = ([(t, extent(t)) for t in tensors] for tensors in (read, written))
        if self.region:
            self._into_region(reads, writes)
        else:
            self.add(Kernel(name, "memory", sum(b for _, b in (*reads, *writes))))

    def take(self) -> list[Kernel]:
        """The kernels since the last time."""
        self.flush()
        taken, self.kernels = self.kernels, []
        return taken

    # -- memory --

    def _track(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if not tensor.is_meta or storage._cdata in self.live:
            return
        self.made += 1
        self.live[storage._cdata] = (self.made, storage.nbytes())
        self.held += storage.nbytes()
        self.peak = max(self.peak, self.held)
        weakref.finalize(storage, self._release, storage._cdata)

    def _release(self, storage: int) -> None:
        self.held -= self.live.pop(storage)[1]

    # -- compiled regions --

    def _number(self, tensor: Tensor) -> int:
        self._track(tensor)
        return self.live[tensor.untyped_storage()._cdata][0]

    def _into_region(self, reads: list, writes: list) -> None:
        for tensor, size in reads:
            if (number := self._number(tensor)) not in self.writes:
                self.reads[number] = max(size, self.reads.get(number, 0))
        for tensor, size in writes:
            self.writes[self._number(tensor)] = size

    def flush(self) -> None:
        """The region's kernel since its last product: it writes what is still alive."""
        if not self.writes:
            self.reads = {}
            return
        alive = {number for number, _ in self.live.values()}
        written = sum(size for number, size in self.writes.items() if number in alive)
        size = written + sum(self.reads.values())
        self.reads, self.writes = {}, {}
        if written:
            self.kernels.append(Kernel("compiled", "memory", size))

    def _enter(self, *_: Any) -> None:
        self.flush()
        self.region += 1

    def _leave(self, *_: Any) -> None:
        self.flush()
        self.region -= 1

    def compiled(self, parts: Iterable[nn.Module]) -> None:
        """Counts these modules as compiled, forward and backward."""
        for part in parts:
            part.register_forward_pre_hook(self._enter)
            part.register_forward_hook(self._leave)
            part.register_full_backward_pre_hook(self._enter)
            part.register_full_backward_hook(self._leave)

    def compiled_function(self, function: Callable[..., None]) -> Callable[..., None]:
        """It, counted as compiled: what it makes on the way is in no memory."""

        def counted(*args: Any) -> None:
            peak = self.peak
            self._enter()
            function(*args)
            self._leave()
            self.peak = max(peak, self.held)

        return counted
