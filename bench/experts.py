"""One layer's experts, forward and backward: the plain form and the two that the model runs.

    python bench/experts.py                    # middle size, 800 and 3200 tokens
    python bench/experts.py --preset deepseek-ocr --precision bf16      # on a GPU

`plain` is the reference implementation, a loop over experts by autograd. The model runs `one by
one` for plain experts on a CPU, if they are of some size, and else `grouped`.
"""

import argparse

import torch
from common import SIZES, environment, finish, interleaved, median, product_rate, table

from deepsynth_min.model.experts import (
    Experts,
    mixture_of_experts,
    mixture_of_experts_cpu,
    mixture_of_experts_grouped,
)
from deepsynth_min.training.distributed import start

FORMS = {
    "grouped": mixture_of_experts_grouped,
    "one by one": mixture_of_experts_cpu,
    "plain": mixture_of_experts,
}


def measure(experts: Experts, config, M: int, given, device: torch.device) -> dict:
    D, K, E = config.hidden_size, config.num_experts_per_tok, config.n_routed_experts
    dtype = experts.down.dtype
    x = torch.randn(M, D, device=device, dtype=dtype, requires_grad=True)
    weight, chosen = torch.rand(M, E, device=device).topk(K)
    upstream = torch.randn_like(x)

    def stepping(form):
        def step(i: int) -> None:
            form(experts, x, chosen.roll(i, 0), weight.to(dtype)).to(dtype).backward(upstream)
            x.grad = experts.gate_up.grad = experts.down.grad = None

        return step

    side = 8192 if device.type == "cuda" else 2048
    work = {name: stepping(form) for name, form in FORMS.items()}
    work["product"] = product_rate(device, dtype, side)
    seconds = {k: median(v) for k, v in interleaved(work, given.repeats, device).items()}
    rate = 2 * side**3 / seconds.pop("product")
    floor = 3 * 2 * M * K * 3 * D * config.moe_intermediate_size / rate
    return {
        "tokens": M,
        "seconds": seconds,
        "over_floor": {n: t / floor for n, t in seconds.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--preset", choices=SIZES, default="middle")
    add("--tokens", type=int, nargs="+", default=[800, 3200])
    add("--precision", choices=("fp32", "bf16"), default="fp32")
    add("--repeats", type=int, default=15)
    add("--device", default="auto")
    add("--threads", type=int, default=0)
    given = parser.parse_args()
    device, config = start(given.device, given.threads).device, SIZES[given.preset].decoder
    torch.manual_seed(0)
    experts = Experts(config).to(device, torch.bfloat16 if given.precision == "bf16" else None)
    for parameter in experts.parameters():
        torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    results = [measure(experts, config, M, given, device) for M in given.tokens]
    rows = [
        (f"{r['tokens']} tokens, {name}", f"{t * 1e3:.1f} ms", f"{r['over_floor'][name]:.2f}")
        for r in results
        for name, t in r["seconds"].items()
    ]
    print(table(rows, ("forward and backward of a layer's experts", "median", "x floor")))
    finish(
        {
            "bench": "experts",
            **vars(given),
            "threads": torch.get_num_threads(),
            "results": results,
            **environment("torch"),
        }
    )


if __name__ == "__main__":
    main()
