"""The whole training step, pages to optimizer, against transformers' class with PEFT.

    python bench/whole_step.py                            # tiny and middle; decoder and LoRA
    python bench/whole_step.py --preset deepseek-ocr --mode base --batch-size 16 --precision bf16

DeepSeek-OCR's own class is in no release of transformers; `UnlimitedOcrForConditionalGeneration`
without a cache computes the same (tests/model/test_released.py). Both have the same weights and
read the same batches of one page, a prompt and an answer. Ours is the trainer's step
(train_step.py); the peer's is forward with labels, backward, clip_grad_norm_ and torch's fused
AdamW, its encoder frozen, with each implementation of its experts. Losses must be equal before
anything is timed, and again after a step of each; then steps are taken in turn.
"""

import argparse
from argparse import Namespace

import peers
import torch
from common import SIZES, environment, finish, interleaved, median, table
from torch import nn
from train_step import Step

from deepsynth_min.model import Batch
from deepsynth_min.training.distributed import World, start
from deepsynth_min.training.precision import autocast, set_parameter_types
from deepsynth_min.tuning.lora import pairs

RATE, BETAS, DECAY, CLIP = 1e-4, (0.9, 0.95), 0.01, 1.0


class PeerStep:
    """The step that the library's class and PEFT take, with the weights and batches of ours."""

    def __init__(self, ours: Step, experts: str):
        self.ours, self.device = ours, ours.world.device
        self.peer, given = peers.whole_peer(ours.plain, experts), ours.options
        self.image_token = ours.config.decoder.vocab_size - 1  # no random batch has it
        self.peer.model.config.image_token_id = self.image_token
        self.peer.requires_grad_(given.tune != "lora")
        for part in (self.peer.model.vision_tower, self.peer.model.multi_modal_projector):
            part.requires_grad_(False)
        self.peer.model.image_newline.requires_grad_(False)
        self.peer.model.view_separator.requires_grad_(False)
        self.model = self._adapted() if given.tune == "lora" else self.peer
        set_parameter_types(self.model, given.precision)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.trained = trained
        self.optimizer = torch.optim.AdamW(trained, RATE, BETAS, weight_decay=DECAY, fused=True)
        self.model.train()

    def _adapted(self) -> nn.Module:
        from peft import LoraConfig, get_peft_model

        names = {p: p.replace("model.", "model.language_model.", 1) for p in pairs(self.ours.model)}
        config = self.ours.model.adapter
        lora = LoraConfig(r=config.rank, lora_alpha=config.alpha, target_modules=[*names.values()])
        wrapped = get_peft_model(self.peer, lora)
        with torch.no_grad():
            for path, pair in pairs(self.ours.model).items():
                theirs = wrapped.get_submodule(f"base_model.model.{names[path]}")
                theirs.lora_A["default"].weight.copy_(pair.A)
                theirs.lora_B["default"].weight.copy_(pair.B)
        return wrapped

    def loss(self, batch: Batch) -> torch.Tensor:
        batch = batch.to(self.device)
        ids = batch.input_ids.masked_fill(batch.image_mask, self.image_token)
        dtype = self.peer.model.vision_tower.dtype
        with autocast(self.device, self.ours.options.precision):
            pixels = peers.normalised(batch.pages, dtype)
            return self.model(input_ids=ids, pixel_values=pixels, labels=batch.labels).loss

    def run(self, i: int, lap=lambda part: None) -> None:
        """One step; `lap(part)` is called after each part."""
        loss = self.loss(self.ours.batches[i])
        lap("forward")
        loss.backward()
        lap("backward")
        nn.utils.clip_grad_norm_(self.trained, CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        lap("optimizer")


def our_step(given: Namespace, world: World) -> Step:
    """The trainer's step; `plain` is its model before it was adapted and cast."""
    ours = Step(Namespace(**vars(given) | {"tune": "decoder", "precision": "fp32"}), world)
    plain = ours.model
    step = Step(given, world)  # the same seed, hence the same weights
    step.plain = plain
    for pair in pairs(step.model).values():
        nn.init.normal_(pair.B, std=0.02)  # zeros would hide a wrong adapter
    return step


def loss_of(step: Step) -> float:
    with torch.no_grad(), autocast(step.world.device, step.options.precision):
        total, count = step.model.loss(step.batches[0].to(step.world.device))
    return float(total) / count


def measure(given: Namespace, world: World) -> dict:
    ours = our_step(given, world)
    found = {name: PeerStep(ours, name) for name in given.peers}
    del ours.plain  # at true size 13 GB
    tolerance = 1e-4 if given.precision == "fp32" else 2e-2
    for moment in ("before", "after one step"):
        mine = loss_of(ours)
        for name, peer in found.items():
            with torch.no_grad():
                theirs = float(peer.loss(ours.batches[0]))
            assert abs(mine - theirs) <= tolerance * theirs, (name, moment, mine, theirs)
        ours.done = 0
        ours.run()
        for peer in found.values():
            peer.run(0)
    work = {f"transformers {name}": peer.run for name, peer in found.items()}
    times = interleaved(work | {"deepsynth_min": lambda i: ours.run()}, given.repeats, world.device)
    seconds = {name: median(values) for name, values in times.items()}
    best = min(value for name, value in seconds.items() if name != "deepsynth_min")
    ratio = best / seconds["deepsynth_min"]
    return {"preset": given.preset, "tune": given.tune, "seconds": seconds, "ratio": ratio}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--preset", choices=SIZES, nargs="+", default=["tiny", "middle"])
    add("--tune", choices=("decoder", "lora"), nargs="+", default=["decoder", "lora"])
    add("--rank", type=int, default=16, help="of adapters, on attention+mlp")
    add("--mode", default="auto", help="page size, as in training")
    add("--batch-size", type=int, default=8)
    add("--answer", type=int, default=100, help="scored tokens per sample")
    add("--precision", choices=("fp32", "bf16"), default="fp32")
    add("--compile", action="store_true", help="ours, as in training")
    add("--peers", nargs="+", choices=peers.EXPERTS, default=list(peers.EXPERTS))
    add("--repeats", type=int, default=9)
    add("--device", default="auto")
    add("--threads", type=int, default=0)
    given = parser.parse_args()
    world = start(given.device, given.threads)
    same = {"weights": "fp32", "optimizer": "adamw", "checkpoint_layers": 0, "cached": False}
    same |= {"flex": True, "grid": (1, 1), "pack": False, "attention_window": 0}
    results = [
        measure(Namespace(**vars(given) | same | {"preset": preset, "tune": tune}), world)
        for preset in given.preset
        for tune in given.tune
    ]
    rows = [
        (
            r["preset"],
            r["tune"],
            name,
            f"{1000 * s:.1f} ms",
            f"{s / r['seconds']['deepsynth_min']:.2f}",
        )
        for r in results
        for name, s in r["seconds"].items()
    ]
    print(table(rows, ("preset", "tune", "step of", "median", "x ours")))
    given = {**vars(given), "threads": torch.get_num_threads()}
    versions = environment("torch", "transformers", "peft")
    finish({"bench": "whole_step", **given, "results": results, **versions})


if __name__ == "__main__":
    main()
