"""The trainer's step without a trainer around it: built from shapes, run over given batches.

In: a configuration, settings, batches. Out: `Step`: a model with random weights, trained as the
settings say, and its step, taken apart where bench/ and roofline.py want to look.

The one idea: the parts are those that runs/setup.py makes and train.py calls, in their order; no
weights are read, so the step of a model costs its shapes alone on the meta device.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..model.batch import Batch
from ..model.deepseek_ocr import DeepseekOCR
from ..model.shape.config import ModelConfig
from ..settings import Settings
from ..training.build import attach_new, is_adapted, quant_config
from ..training.compile import compile_parts, use_flex
from ..training.distributed import GradientReducer, World
from ..training.optim import LossScaler, clip_and_step, make_adamw
from ..training.precision import autocast, set_parameter_types
from ..tuning import freeze
from ..tuning.quant import quantise

PARTS = ("data", "encode", "forward", "backward", "reduce", "optimizer")


class Step:
    """The trainer's step over batches that are given; settings as training/build.py resolves them.

    micro: micro-steps of an optimizer step, a batch each.
    """

    def __init__(
        self,
        config: ModelConfig,
        settings: Settings,
        world: World,
        batches: Sequence[Batch],
        micro: int = 1,
    ):
        self.config, self.settings, self.world = config, settings, world
        self.batches, self.micro, self.done = batches, micro, 0
        optim, tune = settings.optim, settings.model.tune
        self.model = self._model()
        pages = [p for b in batches for p in (b.pages, b.tiles) if p is not None]
        freeze.freeze(self.model, tune, {p.shape[-1] for p in pages})
        set_parameter_types(self.model, optim.precision, optim.weights)
        self.model.recompute = optim.checkpoint_layers
        if optim.flex:
            use_flex(self.model, world.device)
        if optim.compile:
            compile_parts(self.model, optim.precision)
        betas = optim.beta1, optim.beta2
        self.optimizer = make_adamw(self.model, betas, optim.weight_decay, kind=optim.optimizer)
        self.scaler = LossScaler(optim.precision == "fp16", world.device)
        trainable = [p for p in self.model.parameters() if p.requires_grad]
        dtype = torch.bfloat16 if optim.reduce == "bf16" else None
        self.reducer = GradientReducer(world, trainable, dtype)

    def _model(self) -> DeepseekOCR:
        packed = quant_config(self.settings)
        torch.manual_seed(0)
        with torch.device(self.world.device):
            model = DeepseekOCR(self.config)
        if packed is not None:
            quantise(model, packed)
        if is_adapted(self.settings.model.tune):
            attach_new(model, self.settings.adapter)
        return model

    def run(self, lap: Callable[[str], None] = lambda part: None) -> None:
        """One optimizer step; `lap(part)` is called after each part of each micro-step."""
        optim, device = self.settings.optim, self.world.device
        for number in range(1, self.micro + 1):
            batch = self.batches[self.done % len(self.batches)].to(device)
            self.done += 1
            lap("data")
            with autocast(device, optim.precision):
                embedded = self.model.embed(batch)
                lap("encode")
                loss, count, balance = self.model.loss_terms(batch, optim.balance > 0, embedded)
            lap("forward")
            self.reducer.armed = number == self.micro
            loss = loss / (max(count, 1) * self.micro * self.world.size)
            if balance is not None:
                loss = loss + optim.balance * balance
            (loss * self.scaler.scale).backward()
            lap("backward")
        self.reducer.finish()
        lap("reduce")
        clip_and_step(self.optimizer, self.scaler, 1e-4, optim.clip)
        self.optimizer.zero_grad(set_to_none=True)
        lap("optimizer")


def with_features(model: DeepseekOCR, batches: Sequence[Batch]) -> list[Batch]:
    """As --feature-cache would find their pages: on the host, in the encoder's type."""
    dtype, width = model.model.sam_model.pos_embed.dtype, model.config.feature_width

    def known(pages: Tensor | None) -> Tensor | None:
        if pages is None:
            return None
        h, w = pages.shape[2] // 64, pages.shape[3] // 64
        return torch.zeros(len(pages), h, w, width, dtype=dtype)

    return [replace(b, features=known(b.pages), tile_features=known(b.tiles)) for b in batches]
