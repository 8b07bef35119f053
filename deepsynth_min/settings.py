"""Settings of a run: one frozen dataclass per concern.

In: nothing. Out: `Settings` with their defaults; command_line.py makes those that were asked for.

The one idea: the dataclasses below are the only place where a setting is declared, with its help
and its limits; command line and TOML are made from them (options.py). A setting
that decides a run's samples, loss or optimizer state is `fixed`: a resumed run must keep it. The
rest is `free`.
"""

import re
from dataclasses import dataclass, field, fields
from typing import Literal, get_args

from .data_settings import AugmentSettings, DataSettings, PageSettings
from .errors import UserError
from .options import fixed, free

Adapted = Literal["lora", "qlora", "projector+lora", "projector+qlora"]
Tune = Literal["decoder", "projector+decoder", "all-but-sam", "all", Adapted]


@dataclass(frozen=True)
class ModelSettings:
    model: str = fixed(
        "tiny-reader",
        "tiny-reader, a checkpoint directory or a hub id; random weights: tiny, tiny-2, "
        "tiny-unlimited, deepseek-ocr, deepseek-ocr-2, unlimited-ocr",
    )
    mode: str = fixed("auto", "page size: tiny|small|base|large|gundam, a multiple of 64 px; auto")
    revision: str = fixed("", "--model's branch, tag or commit on the hub; empty: the default")
    attention_window: int = fixed(
        0, "tokens of its answer that a token sees, as in Unlimited-OCR; 0: as config.json says", 0
    )
    context: int = fixed(0, "tokens of prompt and answer at most; 0: as config.json says", 0)
    tune: Tune = fixed(
        "decoder",
        "which parameters train; all-but-sam: all but the encoder's first half, which reads pixels "
        "(the official recipe); lora: an adapter; qlora: an adapter on a quantised base",
    )


@dataclass(frozen=True)
class AdapterSettings:
    adapter: str = fixed("", "directory or hub id of an adapter to start from, ours or PEFT's")
    lora_rank: int = fixed(0, "rank of the updates; 0: that of --adapter, else 16", 0, 1024)
    lora_alpha: float = fixed(0.0, "scale is alpha / rank; 0: as --adapter, else 2 * rank", 0)
    lora_dropout: float = fixed(0.0, "dropout on the adapter's inputs in training", 0, 0.9)
    lora_targets: tuple[str, ...] = fixed(
        (),
        "of the decoder: attention; attention+mlp (default): also dense MLPs and shared experts, "
        "but no routed experts; all: these too; besides: encoder, or encoder-but-sam; or patterns "
        "of official module paths: layers.0.*, vision_model.*.qkv_proj, re:REGULAR_EXPRESSION",
    )
    rslora: bool = fixed(False, "rank-stabilised LoRA: updates are scaled by alpha / sqrt(rank)")
    lora_plus_ratio: float = free(1.0, "LoRA+: rate of B over A's (its paper: 16)", 0.01)
    quant: Literal["nf4", "fp4", "int8"] = fixed("nf4", "how qlora stores the frozen weights")
    double_quant: bool = fixed(True, "quantise the scales of nf4 and fp4 too, to 8 bits")


@dataclass(frozen=True)
class OptimSettings:
    precision: Literal["fp32", "bf16", "fp16"] = fixed("fp32", "type of matrix products")
    weights: Literal["fp32", "bf16"] = fixed(
        "fp32", "type of the weights that train; bf16: with stochastic rounding"
    )
    optimizer: Literal["adamw", "adamw8bit", "paged_adamw8bit"] = fixed(
        "adamw", "AdamW; adamw8bit: moments in 8 bits; paged: bitsandbytes', may leave the GPU"
    )
    batch_size: int = free(
        8,
        "micro-batch: samples per process and micro-step, halved where memory runs out; 0 or auto: "
        "as many of --global-batch as memory takes, on a CPU at most 8",
        0,
        65536,
        auto=True,
    )
    accumulate: int = free(1, "gradient accumulation: micro-steps per optimizer step", 1, 65536)
    global_batch: int = free(
        0,
        "samples of an optimizer step, over all processes: --accumulate follows from it, from "
        "--batch-size and from how many processes there are; 0: it follows from these",
        0,
    )
    pack: bool = free(True, "concatenate the samples of a micro-batch instead of padding them")
    checkpoint_layers: int = free(
        0, "activation checkpointing: first decoder layers to recompute", 0, 1024
    )
    compile: bool = free(
        False,
        "torch.compile encoder blocks, norms, MLPs and experts (torch 2.13 or later); first steps "
        "take minutes; computed for an H100, not measured: a LoRA step of 16 pages takes 92 in "
        "place of 102 ms",
    )
    flex: bool = free(
        True,
        "on a GPU with Triton, a frozen SAM's attention in one compiled kernel, and the decoder's "
        "with a reference sliding window; the first step is seconds longer; computed for an H100, "
        "not measured: a LoRA step of 16 pages takes 102 in place of 126 ms",
    )
    max_steps: int = free(0, "optimizer steps; 0: as --epochs says", 0)
    epochs: float = free(1.0, "passes over the training data, unless --max-steps is given", 0)
    lr: float = free(
        0.0,
        "peak learning rate; 0: 0.6 / decoder width for random weights, 1.5e-3 for tiny-reader, "
        "1e-4 for adapters, else 2e-5",
        0,
    )
    lr_projector: float = free(0.0, "peak rate of the projector, if it trains; 0: as --lr", 0)
    lr_encoder: float = free(
        0.0, "peak rate of what trains in the encoder, adapters too; 0: as --lr", 0
    )
    warmup_ratio: float = free(0.05, "share of the steps in which the rate rises from 0", 0, 1)
    min_lr_ratio: float = free(0.1, "where the cosine ends, as a share of the peak", 0, 1)
    weight_decay: float = free(
        0.01, "AdamW's, of matrices; never of norms, biases and embeddings (token, position)", 0
    )
    beta1: float = fixed(0.9, "decay of the mean of gradients", 0, 0.9999)
    beta2: float = fixed(0.95, "decay of the mean of squared gradients", 0, 0.99999)
    clip: float = free(1.0, "largest norm of the gradient; 0: no clipping", 0)
    balance: float = fixed(0.0, "weight of the experts' load-balancing loss (official: 0.001)", 0)
    shard: bool = free(False, "shard weights, gradients and moments over the processes (FSDP2)")
    reduce: Literal["fp32", "bf16"] = free("fp32", "type in which gradients are all-reduced")
    seed: int = fixed(
        0, "new weights, order, held-out rows, dropout and sampling follow from it", 0, 2**62
    )


LossMetric = Literal["loss", "reads/blank", "reads/shuffled"]
ErrorRate = Literal["cer", "cer_median", "cer_corpus", "cer_normalised", "wer", "wer_corpus"]
AnswerMetric = Literal["rouge1", "rouge2", "rougeL", "exact_match", ErrorRate]
Metric = Literal[LossMetric, AnswerMetric]


@dataclass(frozen=True)
class EvaluationSettings:
    ablation_samples: int = free(32, "held-out rows scored again with another page, or none", 0)
    answer_samples: int = free(
        -1, "held-out rows answered (cer, rougeL: 95 % intervals); -1: 8, of tiny-reader 32", -1
    )
    unseen_style: tuple[str, ...] = free(
        (),
        "score the held-out rows once more in page styles drawn from this, given like --vary, and "
        "such as training never draws (reads/unseen_style)",
    )
    best: Metric = free(
        "loss",
        "figure that picks the best checkpoint: the lowest loss or error rate (cer, wer: mean of "
        "the answers' rates; _corpus: edits of all / length of all references), else the highest",
    )
    patience: int = free(0, "early stopping: evaluations without a new best; 0: never", 0)

    def __post_init__(self) -> None:
        no_pages = self.best.startswith("reads/") and self.ablation_samples < 2
        if no_pages or self.best in get_args(AnswerMetric) and not self.answer_samples:
            needed = "--ablation-samples of 2 or more" if no_pages else "--answer-samples"
            raise UserError(f"--best {self.best}: needs {needed}")


@dataclass(frozen=True)
class GenerationSettings:
    max_new_tokens: int = free(200, "an answer ends here at the latest", 1)
    beams: int = free(0, "width of beam search; 0: 4 for tiny-reader as it comes, else 1", 0)
    temperature: float = free(0.0, "of sampling; 0: no sampling, greedy or beam search", 0)
    top_p: float = free(1.0, "nucleus sampling: the likeliest of this total probability", 0, 1)
    no_repeat_ngram: int = free(0, "no run of so many tokens twice in an answer; 0: it may", 0)
    repeat_window: int = free(0, "look for such repeats in the last N tokens; 0: in all", 0)
    repeat_allow: tuple[str, ...] = free((), "tokens that may repeat, e.g. <td>,</td>")
    length_penalty: float = free(1.0, "beams compare log probability / length ** this")

    def __post_init__(self) -> None:
        if self.beams > 1 and self.temperature:
            raise UserError("--beams: a beam search does not sample; leave --temperature at 0")


@dataclass(frozen=True)
class RunSettings:
    out: str = free("", "run directory; empty: runs/MODEL-DATE-TIME")
    eval_every: int = free(100, "steps between evaluations; 0: only at start and end", 0)
    save_every: int = free(100, "steps between checkpoints; 0: only at new bests and the end", 0)
    keep: int = free(2, "newest checkpoints kept, beside the best", 1)
    async_save: bool = free(True, "write checkpoints in the background, from a copy in memory")
    check_every: int = free(1000, "steps between checks that ranks agree on weights; 0: none", 0)
    max_skips: int = free(50, "end after so many steps in a row without a finite gradient", 1)
    timeout: int = free(600, "seconds that a process waits for another, then gives up", 1, 10**7)
    profile_step: int = free(0, "write a profile of this step to profile/ of --out; 0: of none", 0)
    log_every: int = free(10, "steps between lines of metrics.jsonl", 1)
    resume: str = free("none", "auto (go on in --out as its run), a checkpoint, a run, or none")
    mirror: str = free(
        "",
        "URL to copy checkpoints and figures to as they appear: s3://, gs://, hf://, file://; one "
        "that does not answer for two minutes ends the start, later it costs a warning",
    )
    push_to_hub: str = free("", "upload model or adapter at the end, to this owner/name")
    private: bool = free(False, "make that repository private, if it is new")
    tensorboard: bool = free(False, "log to TensorBoard too, in tensorboard/ of --out")
    wandb: str = free("", "log to this project of Weights & Biases too")
    device: str = free("auto", "auto, cpu, cuda, ...")
    threads: int = free(0, "CPU threads per process; 0: an equal share of the cores", 0, 1024)

    def __post_init__(self) -> None:
        # No name, password or signature: a setting is written to files, and shown.
        if self.mirror and not re.fullmatch(r"(s3|gs|hf|file)://[^@?#]*[^@?#/]", self.mirror):
            raise UserError(
                "--mirror: not s3://BUCKET/PATH, gs://..., hf://... or file:///PATH without @, ? "
                "and #; credentials come from the environment or the libraries' own files"
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


CONCERNS = {f.name: f.default_factory for f in fields(Settings)}
