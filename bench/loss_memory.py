"""Peak memory of head and cross-entropy: in chunks on label positions, against the naive form.

    python bench/loss_memory.py                                  # B 8, T 512, V 129280; 100 scored
    python bench/loss_memory.py --frozen                         # the head does not train
    python bench/loss_memory.py --batch-size 2 --vocabulary 16384

Naive: logits [B, T, V] of every position, shifted, in float32, cross-entropy with -100 ignored;
what most training loops do. Ours: the scored positions alone, some rows at a time, each chunk's
gradients taken while its logits are there. Both must give the same loss and the same gradient of
the hidden states. A process each; peak is what forward and backward need above what was held
before, the gradient of the head's weight (which both must have, unless it is frozen as for
adapters) included.
"""

import argparse
import json

import torch
import torch.nn.functional as F
from common import child, environment, finish, resident, table

from deepsynth_min.model.loss import IGNORE, chunked_cross_entropy
from deepsynth_min.training.distributed import start


def naive(hidden, weight, labels) -> torch.Tensor:
    logits = F.linear(hidden, weight)[:, :-1].float()  # [B, T-1, V]
    flat = logits.reshape(-1, logits.shape[-1])
    return F.cross_entropy(flat, labels[:, 1:].flatten(), ignore_index=IGNORE, reduction="sum")


def ours(hidden, weight, labels) -> torch.Tensor:
    places = (labels != IGNORE).flatten().nonzero()[:, 0]
    scored = hidden.flatten(0, 1)[places - 1]
    return chunked_cross_entropy(scored, weight, labels.flatten()[places])


FORMS = {"naive": naive, "deepsynth_min": ours}


def peak(given, name: str) -> dict:
    device = start(given.device, given.threads).device
    cuda = device.type == "cuda"
    torch.manual_seed(0)
    B, T, D, V = given.batch_size, given.tokens, given.width, given.vocabulary
    hidden = torch.randn(B, T, D, device=device, requires_grad=True)
    weight = torch.randn(V, D, device=device).mul_(D**-0.5).requires_grad_(not given.frozen)
    labels = torch.randint(0, V, (B, T), device=device)
    labels[:, : T - given.answer] = IGNORE
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() if cuda else resident("VmRSS")
    loss = FORMS[name](hidden, weight, labels)
    loss.backward()
    top = torch.cuda.max_memory_allocated() if cuda else resident("VmHWM")
    return {
        "peak": top - before,
        "loss": loss.item() / (B * given.answer),
        "gradient": hidden.grad.norm().item(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--batch-size", type=int, default=8)
    add("--tokens", type=int, default=512)
    add("--answer", type=int, default=100, help="scored tokens per sample, at the end")
    add("--width", type=int, default=1280)
    add("--vocabulary", type=int, default=129280)
    add("--frozen", action="store_true", help="the head does not train")
    add("--device", default="auto")
    add("--threads", type=int, default=0)
    add("--row", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.row:
        print(json.dumps(peak(given, given.row)))
        return
    rows = {name: child(name) for name in FORMS}
    for key in ("loss", "gradient"):
        a, b = (row[key] for row in rows.values())
        assert abs(a - b) < 1e-3 * abs(a), f"the two forms differ in {key}: {a} and {b}"
    share = rows["deepsynth_min"]["peak"] / rows["naive"]["peak"]
    print(
        table(
            [(name, f"{row['peak'] / 2**20:,.0f} MiB") for name, row in rows.items()],
            ("head and cross-entropy", "peak"),
        )
    )
    print(f"{share:.1%} of the naive form's peak; equal losses and gradients were checked")
    finish(
        {
            "bench": "loss_memory",
            **vars(given),
            "rows": rows,
            "share": share,
            **environment("torch"),
        }
    )


if __name__ == "__main__":
    main()
