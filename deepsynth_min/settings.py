"""Settings of a run: one frozen dataclass per concern.

In: command line arguments and, with --config, a TOML file. Out: `Settings`, complete and checked.
A run writes them back as config.toml, which --config reads again.

The one idea: the dataclasses below are the only place where a setting is declared, with its help
and its limits; command line and TOML are made from them (options.py). Precedence: command line,
then file, then the default.
"""

import os
import sys
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

from . import options
from .errors import UserError
from .options import setting

Tune = Literal[
    "decoder", "projector+decoder", "all", "lora", "qlora", "projector+lora", "projector+qlora"
]


@dataclass(frozen=True)
class ModelSettings:
    model: str = setting(
        "tiny-reader",
        "tiny-reader, a checkpoint directory or a hub id; random weights: tiny, deepseek-ocr",
    )
    mode: str = setting(
        "auto", "page size: tiny|small|base|large|gundam, pixels (a multiple of 64), or auto"
    )
    revision: str = setting("", "of a hub id: branch, tag or commit; empty: the default branch")
    tune: Tune = setting(
        "decoder", "which parameters train; lora: an adapter; qlora: an adapter on a quantised base"
    )


@dataclass(frozen=True)
class DataSettings:
    data: tuple[str, ...] = setting(
        ("embedded",),
        "embedded; or a file, a folder or a hub id (owner/name) of rows: JSON lines, JSON, CSV, "
        "TSV, Parquet, an image folder; several with weights: a.jsonl b.parquet:0.3",
    )
    val_data: str = setting(
        "", "held-out rows, given like --data; empty: a set's validation split, else --val-fraction"
    )
    data_subset: str = setting("", "subset (configuration) of a data set that has several")
    data_split: str = setting("", "split that trains; empty: train, or all of a set without splits")
    data_revision: tuple[str, ...] = setting(
        (), "of hub ids: branch, tag or commit of each; empty: the default branch"
    )
    val_revision: str = setting("", "the same for a hub id in --val-data")
    val_fraction: float = setting(
        0.05, "share of --data held out, chosen by --seed, at least one row", 0, 0.9
    )
    val_samples: int = setting(128, "at most this many held-out samples are scored; 0: all", 0)
    limit: int = setting(0, "at most this many training rows of each --data; 0: all", 0)
    text_field: str = setting("", "field with the text to draw; empty: found by its name")
    image_field: str = setting("", "field with the image or images; empty: found by its name")
    summary_field: str = setting("", "field with the answer; empty: found by its name")
    instruction_field: str = setting(
        "", "field with a row's own instruction; empty: found by its name"
    )
    page_from: Literal["text", "image"] = setting(
        "text", "what the page is made of where a row has both a text and an image, and an answer"
    )
    instruction: str = setting(
        "Summarize the document in one sentence.",
        "prompt after the page; a leading <image> is left out",
    )
    images_anywhere: bool = setting(
        False, "let image paths in rows leave the folder of the data file"
    )
    on_bad_row: Literal["error", "skip"] = setting(
        "error", "rows that cannot be used stop the run, or are left out and listed"
    )
    on_too_long: Literal["auto", "error", "skip", "truncate"] = setting(
        "auto", "rows that do not fit into the context; auto: as --on-bad-row says"
    )
    max_bad: float = setting(0.01, "share of bad rows above which even skip stops", 0, 1)
    bucket: int = setting(
        16, "length bucketing: steps whose samples are sorted by length together; 0: none", 0
    )
    workers: int = setting(1, "background threads that render and tokenise ahead", 1, 256)
    prefetch: int = setting(4, "micro-batches prepared ahead", 1, 1024)
    feature_cache: str = setting(
        "off", "keep the features of a frozen encoder: off, memory or a directory"
    )
    cache_memory: float = setting(4.0, "GiB of main memory for these features, in each process", 0)
    cache_disk: float = setting(50.0, "GiB that the directory of these features may take", 0)

    def __post_init__(self) -> None:
        if isinstance(self.data, str):  # one alone
            object.__setattr__(self, "data", (self.data,) if self.data else ())
        if not self.data:
            raise UserError("--data: nothing is named")
        names = {}
        for option in ("text_field", "image_field", "summary_field", "instruction_field"):
            if not getattr(self, option):
                continue
            other = names.setdefault(getattr(self, option), option)
            if other != option:
                options = ["--" + name.replace("_", "-") for name in (other, option)]
                raise UserError(f"{' and '.join(options)}: both are {getattr(self, option)!r}")


@dataclass(frozen=True)
class PageSettings:
    font_size: int = setting(0, "px; 0: the model's own, or page side / 64, at least 10", 0)
    margin: int = setting(-1, "px on each side; -1: the model's own, or page side / 32", -1)
    line_height: float = setting(0.0, "line distance in font sizes; 0: the model's own, or 1.25", 0)
    main_font: str = setting("", "font file used before the embedded ones")
    font: tuple[str, ...] = setting(
        (), "font files tried after the embedded ones: FILE, FILE@wght=700, FILE.ttc#2"
    )
    extra_fonts: bool = setting(True, "use the fonts of installed extras (scripts, emoji, cjk)")
    hinting: Literal["none", "normal", "light", "auto"] = setting(
        "none", "only none is the same everywhere"
    )
    kerning: bool = setting(False, "use the fonts' kern tables, or else GPOS")
    align: Literal["left", "justify"] = setting("left", "lines ragged at the right, or justified")
    columns: int = setting(1, "text columns on a page", 1)
    spaces: Literal["keep", "collapse"] = setting("keep", "runs of spaces, and indentation")
    newline_mark: str = setting("", "drawn in place of each line end, so that the text runs on")
    invert: bool = setting(False, "white text on black")
    on_missing: Literal["box", "error"] = setting("box", "for characters that no font has")
    max_pages: int = setting(0, "pages per document; 0: as many as the text needs", 0)
    overflow: Literal["error", "truncate", "shrink"] = setting(
        "error", "when max_pages are not enough"
    )
    max_tiles: int = setting(6, "most tiles of a page in gundam mode (servers agree up to 6)", 2, 9)


@dataclass(frozen=True)
class AdapterSettings:
    adapter: str = setting("", "directory or hub id of an adapter to start from, ours or PEFT's")
    lora_rank: int = setting(0, "rank of the updates; 0: that of --adapter, else 16", 0, 1024)
    lora_alpha: float = setting(
        0.0, "updates are scaled by alpha / rank; 0: as --adapter, else 2 * rank", 0
    )
    lora_dropout: float = setting(0.0, "dropout on the adapter's inputs in training", 0, 0.9)
    lora_targets: tuple[str, ...] = setting(
        (), "attention, attention+mlp (default), all, or patterns"
    )
    rslora: bool = setting(False, "rank-stabilised LoRA: updates are scaled by alpha / sqrt(rank)")
    lora_plus_ratio: float = setting(
        1.0, "LoRA+: learning rate of B over A's (its paper: 16)", 0.01
    )
    quant: Literal["nf4", "fp4", "int8"] = setting("nf4", "how qlora stores the frozen weights")
    double_quant: bool = setting(True, "quantise the scales of nf4 and fp4 too, to 8 bits")


@dataclass(frozen=True)
class AugmentSettings:
    augment: bool = setting(False, "distort the pages of training samples, as a scanner would")
    augment_rotation: float = setting(3.0, "degrees, at most, either way", 0, 180)
    augment_perspective: float = setting(
        0.03, "how much nearer one edge may be than the middle", 0, 0.4
    )
    augment_scale: float = setting(0.2, "zoom from 1 - this to 1 + this", 0, 0.9)
    augment_shift: float = setting(0.03, "at most, as a share of half a page", 0, 1)
    augment_brightness: float = setting(
        0.1, "at most, as a share of the range from ink to paper", 0, 1
    )
    augment_contrast: float = setting(0.2, "factor from 1 - this to 1 + this", 0, 1)
    augment_blur: float = setting(0.7, "px, standard deviation of the widest", 0, 20)
    augment_noise: float = setting(
        0.05, "standard deviation of the strongest, as a share of the range", 0, 1
    )
    augment_flip: float = setting(
        0.0, "share of pages that are mirrored, their text with them", 0, 1
    )


@dataclass(frozen=True)
class OptimSettings:
    precision: Literal["fp32", "bf16", "fp16"] = setting("fp32", "type of matrix products")
    weights: Literal["fp32", "bf16"] = setting(
        "fp32", "type of the weights that train; bf16: with stochastic rounding"
    )
    optimizer: Literal["adamw", "adamw8bit", "paged_adamw8bit"] = setting(
        "adamw", "8bit ones: of bitsandbytes"
    )
    batch_size: int = setting(8, "micro-batch: samples per process and micro-step", 1, 65536)
    accumulate: int = setting(1, "gradient accumulation: micro-steps per optimizer step", 1, 65536)
    pack: bool = setting(True, "concatenate the samples of a micro-batch instead of padding them")
    checkpoint_layers: int = setting(
        0, "activation checkpointing: first decoder layers to recompute", 0, 1024
    )
    compile: bool = setting(
        False, "torch.compile for what surrounds matrix products; minutes at first"
    )
    max_steps: int = setting(0, "optimizer steps; 0: as --epochs says", 0)
    epochs: float = setting(1.0, "passes over the training data, unless --max-steps is given", 0)
    lr: float = setting(
        0.0,
        "peak learning rate; 0: lora and tiny-reader 1e-4, random weights 0.6 / decoder width, "
        "others 2e-5",
        0,
    )
    warmup_ratio: float = setting(0.05, "share of the steps in which the rate rises from 0", 0, 1)
    min_lr_ratio: float = setting(0.1, "where the cosine ends, as a share of the peak", 0, 1)
    weight_decay: float = setting(0.01, "on matrices; never on norms, biases and tables", 0)
    beta1: float = setting(0.9, "decay of the mean of gradients", 0, 0.9999)
    beta2: float = setting(0.95, "decay of the mean of squared gradients", 0, 0.99999)
    clip: float = setting(1.0, "largest norm of the gradient; 0: no clipping", 0)
    balance: float = setting(
        0.0, "weight of the experts' load-balancing loss (official training: 0.001)", 0
    )
    shard: bool = setting(False, "shard weights, gradients and moments over the processes (FSDP2)")
    reduce: Literal["fp32", "bf16"] = setting("fp32", "type in which gradients are all-reduced")
    seed: int = setting(0, "of initial weights, sampling and the held-out choice", 0, 2**62)


Metric = Literal[
    "loss",
    "reads/blank",
    "reads/shuffled",
    "rouge1",
    "rouge2",
    "rougeL",
    "cer",
    "cer_median",
    "exact_match",
]


@dataclass(frozen=True)
class EvaluationSettings:
    ablation_samples: int = setting(
        32, "held-out rows scored again without their page: does the model read it?", 0
    )
    answer_samples: int = setting(8, "held-out rows that an answer is generated for", 0)
    best: Metric = setting("loss", "metric that decides which checkpoint is kept as the best")
    patience: int = setting(0, "early stopping: evaluations without a new best; 0: never", 0)

    def __post_init__(self) -> None:
        metric, needed = self.best.split("/")[0], None
        if metric == "reads" and self.ablation_samples < 2:
            needed = "--ablation-samples of 2 or more"
        if metric not in ("reads", "loss") and not self.answer_samples:
            needed = "--answer-samples"
        if needed:
            raise UserError(f"--best {self.best}: needs {needed}")


@dataclass(frozen=True)
class GenerationSettings:
    max_new_tokens: int = setting(200, "an answer ends here at the latest", 1)
    beams: int = setting(
        0, "width of the beam search; 1: none; 0: 4 for tiny-reader unless it samples, else 1", 0
    )
    temperature: float = setting(0.0, "of sampling; 0: greedy, or beam search", 0)
    top_p: float = setting(
        1.0, "nucleus sampling: the likeliest tokens that have this probability together", 0, 1
    )
    no_repeat_ngram: int = setting(
        0, "an answer never repeats so many tokens in a row; 0: it may", 0
    )
    length_penalty: float = setting(1.0, "beams compare log probability / length ** this")

    def __post_init__(self) -> None:
        if self.beams > 1 and self.temperature:
            raise UserError("--beams: a beam search does not sample; leave --temperature at 0")


@dataclass(frozen=True)
class RunSettings:
    out: str = setting("", "run directory; empty: runs/MODEL-DATE-TIME")
    eval_every: int = setting(100, "steps between evaluations; 0: only at start and end", 0)
    save_every: int = setting(100, "steps between checkpoints; 0: only at the end", 0)
    keep: int = setting(2, "newest checkpoints kept, beside the best", 1)
    async_save: bool = setting(
        True, "write checkpoints from a copy in host memory while training goes on"
    )
    check_every: int = setting(
        1000, "steps between checks that all processes hold equal weights; 0: none", 0
    )
    max_skips: int = setting(50, "end after so many steps in a row without a finite gradient", 1)
    timeout: int = setting(
        600, "seconds that a process waits for the others before it gives up", 1, 10**7
    )
    log_every: int = setting(10, "steps between lines of metrics.jsonl", 1)
    resume: str = setting(
        "none", "auto: go on from the newest checkpoint in --out; or a checkpoint; or none"
    )
    push_to_hub: str = setting(
        "", "at the end, upload model or adapter to this repository (owner/name)"
    )
    private: bool = setting(False, "make that repository private, if it is new")
    tensorboard: bool = setting(False, "log to TensorBoard too, in tensorboard/ of --out")
    wandb: str = setting("", "log to this project of Weights & Biases too")
    device: str = setting("auto", "auto, cpu, cuda, ...")
    threads: int = setting(
        0, "CPU threads per process; 0: share the cores between the processes", 0, 1024
    )


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


def parse(arguments: list[str] | None = None) -> Settings:
    """Command line -> Settings. Raises UserError; --help prints and exits."""
    concerns = {f.name: type(f.default_factory()) for f in fields(Settings)}
    parser = options.make_parser(
        concerns,
        "python -m deepsynth_min.train",
        "Fine-tune DeepSeek-OCR on rendered text. Without arguments: the small model that "
        "comes with the package, on the embedded corpus. With torchrun: several processes.",
    )
    parser.add_argument("--config", metavar="FILE", help="TOML file with settings, e.g. a run's")
    given = vars(parser.parse_args(sys.argv[1:] if arguments is None else arguments))
    values = options.read_toml(given.pop("config"), concerns) if "config" in given else {}
    values |= options.checked(given, concerns.values())
    return Settings(
        **{
            title: concern(**{f.name: values[f.name] for f in fields(concern) if f.name in values})
            for title, concern in concerns.items()
        }
    )


def load(path: Path) -> Settings:
    """The settings in a TOML file. Raises UserError."""
    return parse(["--config", str(path)])


def load_of_run(directory: Path) -> Settings:
    """The settings that a run wrote into its directory. Raises UserError if it is none."""
    path = directory / "config.toml"
    if not os.path.isfile(path):
        raise UserError(f"{directory}: not a run directory (no config.toml)")
    return load(path)
