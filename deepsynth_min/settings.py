"""Settings of a run: one frozen dataclass per concern, and the limits of their values.

In: command line arguments and, with --config, a TOML file. Out: `Settings`, complete and checked.
A run writes them back as config.toml, which --config reads again.

The one idea: the dataclasses below are the only place where a setting is declared; command line and
TOML are made from them (options.py). Precedence: command line, then file, then the default.
"""

import dataclasses
import json
import math
import re
import sys
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Literal

from . import options
from .config import UserError


Tune = Literal[
    "decoder", "projector+decoder", "all", "lora", "qlora", "projector+lora", "projector+qlora"
]


@dataclass(frozen=True)
class ModelSettings:
    model: str = "tiny-reader"  # tiny-reader, checkpoint directory, hub id; with random weights: tiny, deepseek-ocr
    mode: str = "auto"  # page size: tiny|small|base|large|gundam, pixels (a multiple of 64), or auto
    revision: str = ""  # of a hub id: branch, tag or commit; empty: the default branch
    tune: Tune = "decoder"  # which parameters train; with lora, an adapter; with qlora, quantised


@dataclass(frozen=True)
class DataSettings:
    data: str = "embedded"  # embedded, or a .jsonl or .parquet file, a folder of such, or a hub id
    val_data: str = ""  # held-out rows, given like --data; empty: --val-fraction of --data
    data_revision: str = ""  # of a hub id: branch, tag or commit; empty: the default branch
    val_revision: str = ""  # the same of a hub id that --val-data names
    val_fraction: float = 0.05  # share of --data held out, chosen by --seed, at least one row
    val_samples: int = 128  # at most this many held-out samples are scored; 0: all
    text_field: str = "text"  # name of the field with the document
    summary_field: str = "summary"  # name of the field with the answer
    instruction_field: str = "instruction"  # name of the field with a row's own instruction
    instruction: str = "Summarize the document in one sentence. "  # prompt after the page
    images_anywhere: bool = False  # let image paths in rows leave the folder of the data file
    bucket: int = 16  # steps whose samples are sorted by length together, so that less is padded; 0: none
    workers: int = 1  # background threads that render and tokenise ahead
    prefetch: int = 4  # micro-batches prepared ahead
    feature_cache: str = "off"  # keep what a frozen encoder makes of pages: off, memory or a directory
    cache_memory: float = 4.0  # GiB of main memory for that, in each process
    cache_disk: float = 50.0  # GiB that its files in the directory may take together

    def __post_init__(self):
        names = {}
        for option in ("text_field", "summary_field", "instruction_field"):
            other = names.setdefault(getattr(self, option), option)
            if other != option:
                options = ["--" + name.replace("_", "-") for name in (other, option)]
                raise UserError(f"{' and '.join(options)}: both are {getattr(self, option)!r}")


@dataclass(frozen=True)
class PageSettings:
    font_size: int = 0  # px; 0: as the model learned it, or page side / 64, at least 10
    margin: int = -1  # px on each side; -1: as the model learned it, or page side / 32
    line_height: float = 0.0  # line distance in font sizes; 0: as the model learned it, or 1.25
    main_font: str = ""  # font file used before the embedded ones
    font: tuple[str, ...] = ()  # font files tried after the embedded ones, in order
    hinting: Literal["none", "normal", "light", "auto"] = "none"  # only none is the same everywhere
    kerning: bool = False  # use the fonts' kern tables
    align: Literal["left", "justify"] = "left"  # of the lines: ragged or flush right
    columns: int = 1  # text columns on a page
    spaces: Literal["keep", "collapse"] = "keep"  # runs of spaces, and indentation
    newline_mark: str = ""  # drawn for a line end, which then ends no line: for packed pages
    invert: bool = False  # white on black
    on_missing: Literal["box", "error"] = "box"  # for characters that no font has
    max_pages: int = 0  # pages per document; 0: as many as the text needs
    overflow: Literal["error", "truncate", "shrink"] = "error"  # when max_pages are not enough
    max_tiles: int = 6  # most tiles of a page in gundam mode (servers agree up to 6)


@dataclass(frozen=True)
class AdapterSettings:
    adapter: str = ""  # directory or hub id of an adapter to start from, ours or PEFT's
    lora_rank: int = 0  # width of the adapters; 0: that of --adapter, else 16
    lora_alpha: float = 0.0  # an update counts alpha / rank times; 0: as --adapter, else 2 * rank
    lora_dropout: float = 0.0  # share of an adapter's inputs that is dropped in training
    lora_targets: tuple[str, ...] = ()  # attention, attention+mlp (default), all, or patterns
    rslora: bool = False  # an update counts alpha / sqrt(rank) times
    lora_plus_ratio: float = 1.0  # learning rate of B in units of A's (LoRA+: 16)
    quant: Literal["nf4", "fp4", "int8"] = "nf4"  # how qlora stores the frozen weights
    double_quant: bool = True  # store the scales of nf4 and fp4 in 8 bits too


@dataclass(frozen=True)
class AugmentSettings:
    augment: bool = False  # change the pages of training samples, as a scanner would
    augment_rotation: float = 3.0  # degrees, at most, either way
    augment_perspective: float = 0.03  # how much nearer one edge may be than the middle
    augment_scale: float = 0.2  # from 1 - this to 1 + this
    augment_shift: float = 0.03  # share of half a page
    augment_brightness: float = 0.1  # share of the range from ink to paper
    augment_contrast: float = 0.2  # from 1 - this to 1 + this
    augment_blur: float = 0.7  # px, standard deviation of the widest
    augment_noise: float = 0.05  # standard deviation of the strongest, as a share of the range
    augment_flip: float = 0.0  # share of pages that are mirrored, their text with them


@dataclass(frozen=True)
class OptimSettings:
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"  # compute type
    weights: Literal["fp32", "bf16"] = "fp32"  # what trains is kept in; bf16: rounded at random
    optimizer: Literal["adamw", "adamw8bit", "paged_adamw8bit"] = "adamw"  # 8bit: bitsandbytes'
    batch_size: int = 8  # samples per process and micro-step
    accumulate: int = 1  # micro-steps per optimizer step
    pack: bool = True  # lay the samples of a micro-step one after another instead of padding them
    checkpoint_layers: int = 0  # first decoder layers whose activations are computed again, not kept
    compile: bool = False  # torch.compile for what surrounds matrix products; minutes at first
    max_steps: int = 0  # optimizer steps; 0: as --epochs says
    epochs: float = 1.0  # passes over the training data, unless --max-steps is given
    lr: float = 0.0  # peak rate; 0: 2e-5, lora 1e-4, tiny-reader 1e-4, random weights 0.6 / decoder width
    warmup_ratio: float = 0.05  # share of the steps in which the rate rises from 0
    min_lr_ratio: float = 0.1  # share of the peak that the cosine ends at
    weight_decay: float = 0.01  # on matrices; never on norms, biases and tables
    beta1: float = 0.9  # decay of the mean of gradients
    beta2: float = 0.95  # decay of the mean of squared gradients
    clip: float = 1.0  # largest gradient norm; 0: no clipping
    balance: float = 0.0  # weight of the experts' balance loss (official training: 0.001)
    shard: bool = False  # divide weights, gradients and moments among the processes (FSDP2)
    reduce: Literal["fp32", "bf16"] = "fp32"  # type in which gradients travel between processes
    seed: int = 0  # of initial weights, sampling and the held-out choice


Metric = Literal[
    "loss", "reads/blank", "reads/shuffled", "rouge1", "rouge2", "rougeL", "cer", "cer_median",
    "exact_match",
]  # fmt: skip


@dataclass(frozen=True)
class EvaluationSettings:
    ablation_samples: int = 32  # held-out rows scored again without their page, to see if it reads
    answer_samples: int = 8  # held-out rows that an answer is generated for
    best: Metric = "loss"  # the checkpoint with the best such figure is kept
    patience: int = 0  # stop after so many evaluations that were not the best; 0: never

    def __post_init__(self):
        kind, needed = self.best.split("/")[0], None
        if kind == "reads" and self.ablation_samples < 2:
            needed = "--ablation-samples of 2 or more"
        if kind not in ("reads", "loss") and not self.answer_samples:
            needed = "--answer-samples"
        if needed:
            raise UserError(f"--best {self.best}: needs {needed}")


@dataclass(frozen=True)
class GenerationSettings:
    max_new_tokens: int = 200  # an answer ends here at the latest
    beams: int = 0  # beam search with so many; 1: none; 0: 4 for tiny-reader unless it samples, else 1
    temperature: float = 0.0  # of sampling; 0: none
    top_p: float = 1.0  # sample among the likeliest tokens that have this probability together
    no_repeat_ngram: int = 0  # an answer never repeats so many tokens in a row; 0: it may
    length_penalty: float = 1.0  # beams compare log probability / length to this power

    def __post_init__(self):
        if self.beams > 1 and self.temperature:
            raise UserError("--beams: a beam search does not sample; leave --temperature at 0")


@dataclass(frozen=True)
class RunSettings:
    out: str = ""  # run directory; empty: runs/MODEL-DATE-TIME
    eval_every: int = 100  # steps between evaluations; 0: only at start and end
    save_every: int = 100  # steps between checkpoints; 0: only at the end
    keep: int = 2  # newest checkpoints kept, beside the best
    async_save: bool = True  # write checkpoints from a copy in host memory while training goes on
    check_every: int = 1000  # steps between checks that all processes hold equal weights; 0: none
    max_skips: int = 50  # end the run after so many steps in a row that were not finite
    timeout: int = 600  # seconds that a process waits for the others before it gives up
    log_every: int = 10  # steps between lines of metrics.jsonl
    resume: str = "none"  # auto: go on from the newest checkpoint in --out; or a checkpoint; or none
    push_to_hub: str = ""  # at the end, upload model or adapter to this repository (owner/name)
    private: bool = False  # make that repository private, if it is new
    tensorboard: bool = False  # write the figures for TensorBoard too, to tensorboard/ in --out
    wandb: str = ""  # send the figures to this project of Weights & Biases too
    device: str = "auto"  # auto, cpu, cuda, ...
    threads: int = 0  # CPU threads per process; 0: share the cores between the processes


@dataclass(frozen=True)
class Settings:
    model: ModelSettings = field(default_factory=ModelSettings)
    data: DataSettings = field(default_factory=DataSettings)
    page: PageSettings = field(default_factory=PageSettings)
    adapter: AdapterSettings = field(default_factory=AdapterSettings)
    augment: AugmentSettings = field(default_factory=AugmentSettings)
    optim: OptimSettings = field(default_factory=OptimSettings)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
    generation: GenerationSettings = field(default_factory=GenerationSettings)
    run: RunSettings = field(default_factory=RunSettings)


INF = math.inf
LIMITS: options.Limits = {  # setting -> (least, most)
    "val_samples": (0, INF), "bucket": (0, INF), "workers": (1, 256), "prefetch": (1, 1024),
    "cache_memory": (0, INF), "cache_disk": (0, INF),
    "font_size": (0, INF), "margin": (-1, INF), "max_pages": (0, INF), "max_tiles": (2, 9),
    "columns": (1, INF), "batch_size": (1, 65536), "accumulate": (1, 65536), "checkpoint_layers": (0, 1024),
    "max_steps": (0, INF),
    "epochs": (0, INF), "lr": (0, INF), "weight_decay": (0, INF), "clip": (0, INF),
    "balance": (0, INF), "eval_every": (0, INF), "save_every": (0, INF), "keep": (1, INF),
    "log_every": (1, INF), "max_skips": (1, INF), "timeout": (1, 10**7), "check_every": (0, INF),
    "threads": (0, 1024), "val_fraction": (0, 0.9), "warmup_ratio": (0, 1), "min_lr_ratio": (0, 1),
    "beta1": (0, 0.9999), "beta2": (0, 0.99999), "line_height": (0, INF), "seed": (0, 2**62),
    "lora_rank": (0, 1024), "lora_alpha": (0, INF), "lora_dropout": (0, 0.9),
    "lora_plus_ratio": (0.01, INF), "ablation_samples": (0, INF), "answer_samples": (0, INF),
    "patience": (0, INF), "augment_rotation": (0, 180), "augment_perspective": (0, 0.4),
    "augment_scale": (0, 0.9), "augment_shift": (0, 1), "augment_brightness": (0, 1),
    "augment_contrast": (0, 1), "augment_blur": (0, 20), "augment_noise": (0, 1),
    "augment_flip": (0, 1), "max_new_tokens": (1, INF), "beams": (0, INF), "temperature": (0, INF),
    "top_p": (0, 1), "no_repeat_ngram": (0, INF),
}  # fmt: skip


def checked(given: dict, concerns) -> dict[str, object]:
    """What `given` says about the fields of some concerns. Raises UserError."""
    return {f.name: options.check(f.name, f.type, given[f.name], "", LIMITS)
            for concern in concerns for f in fields(concern) if f.name in given}  # fmt: skip


def parse(arguments: list[str] | None = None) -> Settings:
    """Command line -> Settings. Raises UserError; --help prints and exits."""
    concerns = {f.name: type(f.default_factory()) for f in fields(Settings)}
    parser = options.make_parser(
        concerns,
        "python -m deepsynth_min.train",
        "Fine-tune DeepSeek-OCR on rendered text. Without arguments: the small model that "
        "comes with the package, on the embedded corpus. Use torchrun to train with several processes.",
    )
    parser.add_argument("--config", metavar="FILE", help="TOML file with settings, e.g. a run's")
    given = vars(parser.parse_args(sys.argv[1:] if arguments is None else arguments))
    values = options.read_toml(given.pop("config"), concerns, LIMITS) if "config" in given else {}
    values |= checked(given, concerns.values())
    return Settings(**{
        title: concern(**{f.name: values[f.name] for f in fields(concern) if f.name in values})
        for title, concern in concerns.items()
    })  # fmt: skip


def load(path: Path) -> Settings:
    """The settings that a run wrote."""
    return parse(["--config", str(path)])


def change(settings: Settings, **values) -> Settings:
    """A copy with some settings changed, whatever concern they belong to."""
    parts = {}
    for f in fields(Settings):
        part = getattr(settings, f.name)
        own = {k: values.pop(k) for k in [g.name for g in fields(part)] if k in values}
        parts[f.name] = dataclasses.replace(part, **own)
    assert not values, f"unknown settings {list(values)}"
    return Settings(**parts)


def to_toml(settings: Settings) -> str:
    """The full settings as TOML, one table per concern, comments included."""
    lines = []
    for f in fields(settings):
        part = getattr(settings, f.name)
        assert is_dataclass(part)
        comments = options.comments(type(part))
        lines.append(f"[{f.name}]")
        for g in fields(part):
            value = getattr(part, g.name)
            # JSON strings, numbers, booleans and lists of strings are valid TOML.
            text = json.dumps(
                list(value) if isinstance(value, tuple) else value, ensure_ascii=False
            ).replace("\x7f", "\\u007f")  # the one that TOML wants escaped and JSON does not
            lines.append(f"{g.name} = {text}  # {comments[g.name]}")
        lines.append("")
    return "\n".join(lines)


# -- modes ----------------------------------------------------------------------------------------

MODES = {"tiny": 512, "small": 640, "base": 1024, "large": 1280, "gundam": 1024}
TILE = 640  # px, side of a gundam tile


def page_side(mode: str, native: int) -> int:
    """Side in px of a page (gundam: of the global view). Raises UserError for an unknown mode."""
    if mode == "auto":
        return native
    if mode in MODES:
        return MODES[mode]
    if re.fullmatch("[0-9]{1,4}", mode) and 0 < int(mode) <= 8192 and int(mode) % 64 == 0:
        return int(mode)
    raise UserError(
        f"--mode: {mode!r} is neither {', '.join(MODES)}, auto nor a multiple of 64 (up to 8192)"
    )
