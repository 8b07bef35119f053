"""Settings, or a run that ended, become a model: base weights, quantised or not, and its adapter.

In: settings; a run directory. Out: a model on its device and the directory that configuration and
tokenizer come from.

The one idea: an adapter always stands on a checkpoint that can be found again. A directory or hub
id is one; the random weights of a preset are not, so a run that adapts a preset writes them to
RUN/base once, and everything after it reads them from there.
"""

import math
from dataclasses import replace
from pathlib import Path

import torch

from ..config_file import check_found
from ..data.tokenizer import EMBEDDED
from ..errors import UserError
from ..files.disk import whole_directory
from ..model.deepseek_ocr import DeepseekOCR
from ..model.shape.presets import PRESETS, TINY_READER, find_checkpoint, shape_of
from ..model.weights import load_weights
from ..options import change
from ..settings import AdapterSettings, ModelSettings, OptimSettings, Settings
from ..tuning.adapter import base_digest, load_adapter, read_config
from ..tuning.lora import Base, LoraConfig, attach
from ..tuning.quant import QuantConfig, quantise
from ..tuning.targets import choose
from .checkpoint import save_model
from .distributed import World
from .micro_batch import with_auto
from .precision import hold_as_trained

RATE_FINE_TUNE, RATE_ADAPTER = 2e-5, 1e-4
RATE_TINY_READER = 1.5e-3  # for documents of a kind that is new to it, 8 in a step
RATE_FROM_SCRATCH = 0.6  # divided by the decoder's width: 3e-3 for tiny
BEAMS_TINY_READER = 4  # it writes letters: the likeliest first one may lead astray
ANSWERS, ANSWERS_TINY_READER = 8, 32  # of held-out rows, at each evaluation
DEFAULT_RANK, DEFAULT_TARGETS = 16, ("attention+mlp",)


def is_adapted(tune: str) -> bool:
    return "lora" in tune


def quant_config(settings: Settings) -> QuantConfig | None:
    """How the base is packed; None: not at all."""
    given = settings.adapter
    return QuantConfig(given.quant, given.double_quant) if "qlora" in settings.model.tune else None


# What an automatic value is made from, beside what a run must keep.
MADE_FROM = {"max_steps": ("max_steps", "epochs"), "lr": ("lr",), "beams": ("beams", "temperature")}


def as_before(asked: Settings, asked_before: Settings, before: Settings) -> Settings:
    """The settings of a run that is resumed: what an automatic value became when it started stays,
    unless something else is asked for now."""
    now, then, became = (
        {name: value for part in vars(group).values() for name, value in vars(part).items()}
        for group in (asked, asked_before, before)
    )
    same = [name for name, parts in MADE_FROM.items() if all(now[p] == then[p] for p in parts)]
    return change(asked, **{name: became[name] for name in same})


def resolve(settings: Settings, rows: int, world: World) -> Settings:
    """Settings in which every automatic value is replaced by what it stands for."""
    processes = world.size
    settings = change(settings, batch_size=with_auto(settings.optim, processes, world.device.type))
    settings = change(settings, accumulate=accumulation(settings.optim, processes))
    optim = settings.optim
    steps = optim.max_steps
    if not steps:
        per_epoch = math.ceil(rows / (optim.batch_size * optim.accumulate * processes))
        steps = max(1, round(optim.epochs * per_epoch))
    rate = optim.lr or float(f"{usual_rate(settings):.6g}")
    beams = settings.generation.beams or 1  # of a model that trains: quick, and it grows certain
    return resolve_adapter(usual_answers(change(settings, max_steps=steps, lr=rate, beams=beams)))


def accumulation(optim: OptimSettings, processes: int) -> int:
    """Micro-steps of an optimizer step. Raises UserError for a --global-batch that cannot be."""
    asked, each = optim.global_batch, optim.batch_size * processes
    if not asked:
        return optim.accumulate
    if optim.accumulate not in (1, asked // each):
        raise UserError("--accumulate: follows from --global-batch; give one of them")
    if asked % each:
        below, above = asked // each * each, -(-asked // each) * each
        nearest = f"{below} and {above} are" if below else f"{above} is the least"
        raise UserError(
            f"--global-batch {asked}: not a multiple of {each} (--batch-size {optim.batch_size} x "
            f"processes {processes}); {nearest}"
        )
    return asked // each


def usual_rate(settings: Settings) -> float:
    """Peak learning rate, if none is given."""
    name = settings.model.model
    if name in PRESETS:
        return RATE_FROM_SCRATCH / PRESETS[name].decoder.hidden_size
    if name == TINY_READER:
        return RATE_TINY_READER
    return RATE_ADAPTER if is_adapted(settings.model.tune) else RATE_FINE_TUNE


def usual_beams(settings: Settings) -> int:
    """Beams of generation by a model that was not trained any further, if none are given."""
    given = settings.generation
    searches = settings.model.model == TINY_READER and not given.temperature
    return given.beams or (BEAMS_TINY_READER if searches else 1)


def usual_answers(settings: Settings) -> Settings:
    """How many held-out rows are answered, and with how many beams, filled in where not given."""
    count = settings.evaluation.answer_samples
    if count < 0:
        count = ANSWERS_TINY_READER if settings.model.model == TINY_READER else ANSWERS
    return change(settings, answer_samples=count, beams=usual_beams(settings))


def resolve_adapter(settings: Settings) -> Settings:
    """Fills in what depends on --adapter. Raises UserError for settings that contradict it."""
    given = settings.adapter
    if not is_adapted(settings.model.tune):
        if given.adapter:
            raise UserError(
                f"--adapter: --tune {settings.model.tune} trains no adapter; "
                "give --tune lora or qlora"
            )
        return settings
    if not given.adapter:
        rank = given.lora_rank or DEFAULT_RANK
        return change(
            settings,
            lora_rank=rank,
            lora_alpha=given.lora_alpha or 2.0 * rank,
            lora_targets=given.lora_targets or DEFAULT_TARGETS,
        )
    found = read_config(find_checkpoint(given.adapter))
    wanted = {
        "lora_rank": (given.lora_rank, found.rank),
        "lora_alpha": (given.lora_alpha, found.alpha),
        "rslora": (given.rslora, found.rslora),
    }
    for name, (asked, held) in wanted.items():
        if asked and asked != held:
            raise UserError(
                f"--{name.replace('_', '-')} {asked}: the adapter {given.adapter} has {held}"
            )
    if given.lora_targets:
        raise UserError(f"--lora-targets: the adapter {given.adapter} decides what it adapts")
    return change(settings, **{name: held for name, (_, held) in wanted.items()})


def build_base(
    given: ModelSettings,
    directory: Path,
    device: torch.device,
    dtype: torch.dtype | None = None,
    packed: QuantConfig | None = None,
) -> DeepseekOCR:
    """A checkpoint's model, read tensor by tensor; packed on the way if asked for.

    given: the attention that the settings ask for.
    """
    with torch.device("meta"):
        model = DeepseekOCR(shape_of(given, directory))
    if packed is not None:
        quantise(model, packed)
    load_weights(model, directory, dtype, device)
    return model


def build_model(settings: Settings, device: torch.device, run: Path) -> tuple[DeepseekOCR, Path]:
    """(model to train, directory of its configuration and tokenizer); a preset is random."""
    name, packed = settings.model.model, quant_config(settings)
    torch.manual_seed(settings.optim.seed)
    if name in PRESETS and not (run / "base").is_dir():
        with torch.device(device):
            model = DeepseekOCR(shape_of(settings.model))
        directory, base = EMBEDDED, None
        if packed is not None:
            quantise(model, packed)
    else:
        directory = base_of(settings, run)
        model = build_base(settings.model, directory, device, packed=packed)
        base = describe_base(settings, directory) if is_adapted(settings.model.tune) else None
    if is_adapted(settings.model.tune):
        _add_adapter(model, settings, base)
    return model, directory


def attach_new(model: DeepseekOCR, given: AdapterSettings, base: Base | None = None) -> None:
    """A new adapter, as the settings (resolved ones) say."""
    config = LoraConfig(
        given.lora_rank, given.lora_alpha, given.lora_dropout, given.rslora, base=base
    )
    attach(model, config, choose(model, given.lora_targets))


def _add_adapter(model: DeepseekOCR, settings: Settings, base: Base | None) -> None:
    given = settings.adapter
    if not given.adapter:
        # Seeded anew: the same A whether the base was drawn just now or read from a file.
        torch.manual_seed(settings.optim.seed + 1)
        attach_new(model, given, base)
    elif base is None:
        raise UserError(
            f"--adapter {given.adapter}: --model {settings.model.model} has random "
            "weights; give the checkpoint that it was trained over"
        )
    else:
        load_adapter(model, find_checkpoint(given.adapter), base, given.lora_dropout)


def base_of(settings: Settings, run: Path) -> Path:
    """The checkpoint that a run trains, or adapts. Raises UserError if it cannot be found."""
    if settings.model.model in PRESETS:
        return run / "base"
    check_found(run / "config.toml", settings, "model")
    return find_checkpoint(settings.model.model, settings.model.revision)


def describe_base(settings: Settings, directory: Path) -> Base:
    name = str(directory) if settings.model.model in PRESETS else settings.model.model
    return Base(name, settings.model.revision or None, base_digest(directory))


def keep_preset(model: DeepseekOCR, settings: Settings, device: torch.device, run: Path) -> None:
    """Writes the random weights that the model's adapter stands on to RUN/base, made once more."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.device(device):
        torch.manual_seed(settings.optim.seed)
        preset = DeepseekOCR(shape_of(settings.model))
    with whole_directory(run / "base") as partial:
        save_model(preset, partial, EMBEDDED)
    model.adapter = replace(model.adapter, base=describe_base(settings, run / "base"))


def load_run_model(
    settings: Settings,
    run: Path,
    checkpoint: Path,
    device: torch.device,
    dtype: torch.dtype | None = None,
    base: Path | None = None,
) -> tuple[DeepseekOCR, Path]:
    """(a run's model as of a checkpoint, directory of its configuration and tokenizer).

    base: original weights for an adapter to stand on, unquantised, in place of the run's own.
    """
    if not is_adapted(settings.model.tune):
        return DeepseekOCR.from_pretrained(checkpoint, dtype, device), checkpoint
    directory = base or base_of(settings, run)
    if not directory.is_dir():
        raise UserError(f"{directory}: the base model of this run is not there")
    packed = None if base else quant_config(settings)
    model = build_base(settings.model, directory, device, dtype, packed)
    load_adapter(model, checkpoint, describe_base(settings, directory))
    if dtype is None:
        hold_as_trained(model, settings)
    return model, directory
