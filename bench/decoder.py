"""The decoder's training step against transformers' own, and against the machine's lower bound.

    python bench/decoder.py             # middle size, B 2 and 8, T 400 with 120 and 400 scored
    python bench/decoder.py --tune lora # adapters, against PEFT
    python bench/decoder.py --preset deepseek-ocr --precision bf16      # on a GPU

Both start from embeddings [B, T, D] and get a random gradient at the hidden states that are scored:
layers, forward and backward, nothing else. In training these are an answer's, at the end (120 of
400 tokens, after the 273 of a page of 1024 px and a prompt); the library computes the others all
the same, we leave out what nothing depends on. Where all are scored, both compute the same. Before
anything is timed, hidden states and gradients must be equal. The floor (lower bound) is the FLOPs
that the step needs over the rate of a square product, measured in the same turns.
"""

import argparse

import peers
import torch
from common import SIZES, environment, finish, interleaved, median, product_rate, table
from torch import Tensor, nn

from deepsynth_min.model import DeepseekOCR
from deepsynth_min.model.decoder import Layout, Router, decode
from deepsynth_min.model.shape import flops
from deepsynth_min.training.distributed import start
from deepsynth_min.training.precision import autocast, set_parameter_types
from deepsynth_min.tuning import LoraConfig, attach
from deepsynth_min.tuning.freeze import freeze
from deepsynth_min.tuning.lora import pairs
from deepsynth_min.tuning.targets import choose

TIE = 2e-6  # relative; ours and the library's float32 are 1e-6 apart
SQUARE = 2048  # side of the product that the machine's rate is taken from; 8192 on a GPU


def ends(x: Tensor, scored: int) -> Tensor:
    """Flat positions in [B*T] of the last `scored` tokens of each sample, [B * scored]."""
    B, T, _ = x.shape
    return torch.arange(B * T, device=x.device).view(B, T)[:, T - scored :].flatten()


class Ours(nn.Module):
    """Our decoder alone, called as the peer is: x [B, T, D] -> the scored, [B * scored, D]."""

    def __init__(self, model: DeepseekOCR):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, scored: int) -> Tensor:
        trunk, layout = self.model.model, Layout()
        if scored < x.shape[1]:
            layout = Layout(output_index=ends(x, scored))
        hidden, _ = decode(trunk.layers, trunk.norm, self.model.config.decoder, x, layout)
        return hidden.flatten(0, 1)


class Theirs(nn.Module):
    """The library's decoder, called as ours is."""

    def __init__(self, peer: nn.Module):
        super().__init__()
        self.peer = peer

    def forward(self, x: Tensor, scored: int) -> Tensor:
        return self.peer(inputs_embeds=x).last_hidden_state.flatten(0, 1)[ends(x, scored)]


def contenders(given, device: torch.device) -> dict[str, nn.Module]:
    """Ours and the library's implementations, with equal weights and adapters."""
    torch.manual_seed(0)
    with torch.device(device):
        model = DeepseekOCR(SIZES[given.preset])
    theirs = {f"transformers {name}": peers.peer_decoder(model, name) for name in given.peers}
    if given.tune == "lora":
        attach(model, LoraConfig(given.rank, 2.0 * given.rank), choose(model, ("attention+mlp",)))
        for pair in pairs(model).values():
            nn.init.normal_(pair.B, std=0.02)  # zeros would hide a wrong adapter
        theirs = {name: peers.adapted(peer, model) for name, peer in theirs.items()}
    freeze(model, given.tune)
    for module in (model, *theirs.values()):
        set_parameter_types(module, given.precision)
    return {"deepsynth_min": Ours(model), **{n: Theirs(peer) for n, peer in theirs.items()}}


def gradients(module: nn.Module, x: Tensor, upstream: Tensor, precision: str) -> Tensor:
    """One step; returns the scored hidden states. Gradients are dropped."""
    with autocast(x.device, precision):
        out = module(x, len(upstream) // len(x))
    out.backward(upstream.to(out.dtype))
    module.zero_grad(set_to_none=True)
    return out


@torch.no_grad()
def at_a_tie(ours: nn.Module, x: Tensor) -> bool:
    """Whether a router finds the last expert that it takes and the first that it leaves so alike
    that rounding chooses between them; all that attends to such a token then differs a little."""
    gaps = []

    def note(router: Router, _, out) -> None:
        *_, last, next_ = out[2].topk(router.k + 1).values.unbind(-1)
        gaps.append(((last - next_) / last).min())

    hooks = [m.register_forward_hook(note) for m in ours.modules() if isinstance(m, Router)]
    ours(x, x.shape[1])
    for hook in hooks:
        hook.remove()
    return bool(torch.stack(gaps).min() < TIE)


def check_equal(modules: dict[str, nn.Module], xs: list[Tensor], upstream: Tensor, given) -> None:
    """Raises AssertionError unless all compute the same, forward and backward, for the first of the
    inputs that brings no router to a tie; bf16, which rounds more than that, takes the first."""
    exact = given.precision == "fp32"
    ours, tolerance = modules["deepsynth_min"], 1e-4 if exact else 5e-2
    x = next((x for x in xs if not (exact and at_a_tie(ours, x))), None)
    assert x is not None, "each input brings a router to a tie: equality cannot be shown"
    results = {}
    for name, module in modules.items():
        x.grad = None
        results[name] = gradients(module, x, upstream, given.precision).detach(), x.grad
    x.grad = None
    for name, theirs in results.items():
        for a, b in zip(results["deepsynth_min"], theirs):
            error = ((a - b).norm() / a.norm()).item()
            assert error < tolerance, f"{name} computes something else: {error:.1e} apart"


def measure(modules, batch: int, scored: int, given, device: torch.device) -> dict:
    config, T = SIZES[given.preset].decoder, given.tokens
    xs = [
        torch.randn(batch, T, config.hidden_size, device=device, requires_grad=True)
        for _ in range(4)
    ]
    upstream = torch.randn(batch * scored, config.hidden_size, device=device)
    check_equal(modules, xs, upstream, given)

    def stepping(module: nn.Module):
        def step(i: int) -> None:
            xs[i].grad = None
            gradients(module, xs[i], upstream, given.precision)

        return step

    side = 8192 if device.type == "cuda" else SQUARE
    dtype = torch.float32 if given.precision == "fp32" else torch.bfloat16
    work = {name: stepping(module) for name, module in modules.items()}
    times = interleaved(
        work | {"product": product_rate(device, dtype, side)}, given.repeats, device
    )
    seconds = {name: median(values) for name, values in times.items()}
    rate = 2 * side**3 / seconds.pop("product")
    passes, rank = (2, given.rank) if given.tune == "lora" else (3, 0)
    adapters = flops.adapter_weights(config, rank)
    step_flops = flops.decoder_flops(config, [T] * batch, passes, adapters=adapters)
    step_flops -= flops.spared_flops(config, batch * (T - scored), passes)
    best = min(value for name, value in seconds.items() if name != "deepsynth_min")
    return {
        "batch": batch,
        "scored": scored,
        "seconds": seconds,
        "flops": step_flops,
        "product_rate": rate,
        "floor_s": step_flops / rate,
        "ratio": best / seconds["deepsynth_min"],
        "over_floor": {n: v * rate / step_flops for n, v in seconds.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--preset", choices=SIZES, default="middle")
    add("--tune", choices=("decoder", "lora"), default="decoder")
    add("--rank", type=int, default=16)
    add("--batch-size", type=int, nargs="+", default=[2, 8])
    add("--tokens", type=int, default=400)
    add("--scored", type=int, nargs="+", help="of each sample, at its end (default: 120 and all)")
    add("--precision", choices=("fp32", "bf16"), default="fp32")
    add("--peers", nargs="+", choices=peers.EXPERTS, default=list(peers.EXPERTS))
    add("--repeats", type=int, default=9)
    add("--device", default="auto")
    add("--threads", type=int, default=0)
    given = parser.parse_args()
    world = start(given.device, given.threads)
    modules = contenders(given, world.device)
    given.scored = given.scored or [given.tokens * 3 // 10, given.tokens]
    results = [
        measure(modules, batch, scored, given, world.device)
        for batch in given.batch_size
        for scored in given.scored
    ]
    rows = [
        (
            f"B {r['batch']}, {r['scored']} scored  {name}",
            f"{seconds * 1e3:.0f} ms",
            f"{r['over_floor'][name]:.2f}",
            f"{seconds / r['seconds']['deepsynth_min']:.2f}",
        )
        for r in results
        for name, seconds in r["seconds"].items()
    ]
    print(
        f"decoder {given.preset}, tune {given.tune}, T {given.tokens}, {given.precision}, "
        f"{torch.get_num_threads()} threads; equal outputs and gradients were checked"
    )
    print(table(rows, ("forward and backward", "median", "x floor", "x ours")))
    finish(
        {
            "bench": "decoder",
            **vars(given),
            "threads": torch.get_num_threads(),
            "results": results,
            "peer": "transformers deepseek_ocr2_text",
            **environment("torch", "transformers", "peft"),
        }
    )


if __name__ == "__main__":
    main()
