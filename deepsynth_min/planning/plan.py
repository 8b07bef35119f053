"""What a run would take on GPUs that are not there: memory by part, seconds of a step.

In: settings, a configuration, batches, a GPU's name. Out: a `Plan`, of the run as it was asked for
or with some settings changed.

The one idea: the step itself is run, on paper (pretend.py), as the first of so many processes. Of
`--shard` alone the memory is by formula: what fully_shard divides, gathers and lets go of.
"""

from dataclasses import dataclass, replace
from itertools import pairwise

from torch import nn

from ..model.batch import Batch
from ..model.loss import CHUNK
from ..model.shape.config import ModelConfig
from ..options import change
from ..settings import Settings
from ..training.compile import parts_to_compile
from ..training.distributed import World
from .pretend import CUDA, on_paper
from .roofline import HOST, Gpu, Paper, counted, launches
from .step import Step, with_features

# Of a GPU's memory; the rest is for the CUDA context, for workspaces of libraries and for
# fragmentation. An assumption, as is the share of a link's bandwidth that a large sum reaches.
USABLE = 0.92
OF_LINK = 0.75
ONCE = ("reduce", "optimizer")  # in a step, however many micro-steps it has


@dataclass(frozen=True)
class Plan:
    """One step of one process, over one batch."""

    settings: Settings
    paper: Paper
    processes: int
    logits: int  # bytes, of a chunk
    sent: int  # bytes that a process sends to others in a step
    encoder_trains: bool

    @property
    def peak(self) -> int:
        """Bytes."""
        return max(self.paper.peak.values())

    def fits(self, gpu: Gpu) -> bool:
        return self.peak <= USABLE * gpu.size

    def step(self, gpu: Gpu) -> float:
        """Seconds of an optimizer step. What is sent is sent while the backward pass (of shards,
        the forward too) is under way, and costs what it takes longer than that."""
        micro, time, host = self.settings.optim.accumulate, self.paper.time(gpu), 0.0
        for part, own in self.paper.kernels.items():
            times = 1 if part in ONCE else micro
            time[part] *= times
            host += HOST * times * sum(launches(kernel, gpu) for kernel in own)
        divided = self.settings.optim.shard
        # Whole gradients are sent in the last micro-step, shards in each.
        beside = time["forward"] + time["backward"] if divided else time["backward"] / micro
        return max(sum(time.values()), host) + max(0.0, self.sending(gpu) - beside)

    def sending(self, gpu: Gpu) -> float:
        """Seconds."""
        return self.sent / (gpu.link * OF_LINK)


def make(
    config: ModelConfig, settings: Settings, batch: Batch, processes: int, cached: bool = False
) -> Plan:
    """Runs the step on paper. cached: the encoder's features are known already."""
    optim, divided = settings.optim, settings.optim.shard and processes > 1
    # bitsandbytes' step asks the device, which paper cannot answer; ours keeps as much.
    kind = optim.optimizer.removeprefix("paged_")
    plain = change(settings, compile=False, optimizer=kind)
    several, on_cpu = (1 if divided else processes), settings.run.device == "cpu"
    with on_paper(several, on_cpu) as (count, forget):
        micro = min(2, optim.accumulate)
        step = Step(config, plain, World(0, several, CUDA), [batch], micro)
        if cached:
            step.batches = with_features(step.model, step.batches)
        if optim.compile:
            count.compiled(parts_to_compile(step.model, optim.precision))
        paper = counted(step.run, count, forget, step.model, step.optimizer)
        sent = _sent(step.model, settings, processes)
        if divided:
            paper = _divided(paper, step.model, processes)
        trains = step.model.encoder_trains
    logits = logits_bytes(config, settings, batch)
    return Plan(settings, paper, processes, logits, sent, trains)


def logits_bytes(config: ModelConfig, settings: Settings, batch: Batch) -> int:
    """At most alive at a time in chunked_cross_entropy: logits in the type of products, in float32
    their log-softmax, and if the type is another, its input; else their gradient. On a CPU what is
    in float32 is there once, and in another type the logits and then their gradient besides."""
    in_float32, on_cpu = settings.optim.precision == "fp32", settings.run.device == "cpu"
    if on_cpu:
        wide = 4 if in_float32 else 2 + 4 + 2
    else:
        wide = 4 + 4 + 4 if in_float32 else 2 + 4 + 4
    return min(CHUNK, batch.num_scored) * config.decoder.vocab_size * wide


def lighter(paper: Paper, **held: int) -> Paper:
    """The same with less held of some kinds; gradients are not there in the first forward."""
    spared = {kind: paper.held[kind] - size for kind, size in held.items()}
    always = sum(size for kind, size in spared.items() if kind != "gradients")
    peak = {part: most - always for part, most in paper.peak.items()}
    for part in ("backward", "reduce", "optimizer"):
        peak[part] = max(peak["forward"], peak[part] - spared.get("gradients", 0))
    return replace(paper, held=paper.held | held, peak=peak)


def _bytes(parameters: list[nn.Parameter], trained: bool | None = None) -> int:
    return sum(p.nbytes for p in parameters if trained in (None, p.requires_grad))


def _divided(paper: Paper, model: nn.Module, processes: int) -> Paper:
    """With --shard: decoder layers in shards, two of them whole at a time with their gradients;
    what trains outside of them in shards too, and whole all through a step."""
    layers = [list(layer.parameters()) for layer in model.model.layers]
    inside = {id(p) for layer in layers for p in layer}
    outside = [p for p in model.parameters() if id(p) not in inside]
    of_layers, two = sum(map(_bytes, layers)), max(_two(layers, None))
    root, frozen = _bytes(outside, True), _bytes(outside, False)
    in_layers = sum(_bytes(layer, True) for layer in layers)
    buffers = paper.held["weights"] - of_layers - root - frozen
    return lighter(
        paper,
        weights=(of_layers + root) // processes + root + frozen + two + buffers,
        gradients=in_layers // processes + root + max(_two(layers, True)),
        moments=paper.held["moments"] // processes,
    )


def _two(layers: list[list[nn.Parameter]], trained: bool | None) -> list[int]:
    """Bytes of each layer and the next."""
    sizes = [_bytes(layer, trained) for layer in layers]
    return [a + b for a, b in pairwise(sizes)] or sizes


def _sent(model: nn.Module, settings: Settings, processes: int) -> int:
    """Bytes of one process: of gradients summed in a ring twice all but its own part; with --shard
    of layers gathered for forward and backward in each micro-step, and of gradients, once."""
    half = 2 if settings.optim.reduce == "bf16" else 1
    trained = [p for p in model.parameters() if p.requires_grad]
    gradients = _bytes(trained) // half
    if settings.optim.shard:
        layers = _bytes(list(model.model.layers.parameters()))
        pieces = settings.optim.accumulate * (2 * layers + gradients)
    else:
        pieces = 2 * gradients
    return pieces * (processes - 1) // processes
