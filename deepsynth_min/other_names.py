"""What other trainers call the settings: a table, for the message about an unknown one.

In: a name without dashes in front, with - for _. Out: what it is here: an option, perhaps with its
value, or a phrase about one.

Collected from transformers, PEFT, TRL, LLaMA-Factory, ms-swift, axolotl, torchtune and unsloth.
"""

_LENGTH = (
    "--max-pages N, with --on-too-long for what still does not fit: the context is the model's"
)
_COSINE = "the rate always falls as a cosine: --warmup-ratio, --min-lr-ratio"
_BATCH = "--batch-size (per process and micro-step; --accumulate multiplies it)"
_WARMUP = "--warmup-ratio, a share of the steps"
_RECOMPUTE = "--checkpoint-layers N"
_LOGS = "--tensorboard or --wandb PROJECT"
_KEEP_BEST = "--best FIGURE; the best checkpoint is always kept"

OTHER_NAMES = {
    # data
    **dict.fromkeys(("dataset", "datasets", "dataset-name", "dataset-path"), "--data"),
    **dict.fromkeys(("data-path", "data-dir", "data-files", "train-file", "train-data"), "--data"),
    **dict.fromkeys(("validation-file", "eval-data", "eval-dataset", "val-file"), "--val-data"),
    **dict.fromkeys(("val-dataset", "test-file"), "--val-data"),
    **dict.fromkeys(("val-size", "val-set-size", "split-dataset-ratio"), "--val-fraction"),
    **dict.fromkeys(("max-samples", "max-train-samples"), "--limit"),
    "max-eval-samples": "--val-samples",
    **dict.fromkeys(("max-length", "max-seq-length", "max-seq-len", "cutoff-len"), _LENGTH),
    **dict.fromkeys(("model-max-length", "sequence-len", "block-size"), _LENGTH),
    **dict.fromkeys(("prompt", "system", "system-prompt", "template"), "--instruction"),
    **dict.fromkeys(("image-size", "resolution", "max-pixels"), "--mode"),
    **dict.fromkeys(("num-workers", "dataloader-num-workers", "num-proc"), "--workers"),
    "preprocessing-num-workers": "--workers",
    "dataloader-prefetch-factor": "--prefetch",
    **dict.fromkeys(("packing", "sample-packing"), "--pack"),
    "group-by-length": "--bucket",
    # model and adapter
    **dict.fromkeys(("model-name-or-path", "model-name", "model-id", "model-path"), "--model"),
    **dict.fromkeys(("base-model", "pretrained-model-name-or-path"), "--model"),
    "model-revision": "--revision",
    **dict.fromkeys(("finetuning-type", "train-type", "tuner-type"), "--tune"),
    **dict.fromkeys(("use-lora", "use-peft", "lora", "peft"), "--tune lora"),
    **dict.fromkeys(("load-in-4bit", "use-4bit", "qlora", "quantization-bit"), "--tune qlora"),
    "load-in-8bit": "--tune qlora --quant int8",
    "bnb-4bit-quant-type": "--quant",
    **dict.fromkeys(("bnb-4bit-use-double-quant", "use-double-quant"), "--double-quant"),
    **dict.fromkeys(("freeze-vit", "freeze-vision-tower", "freeze-encoder"), "--tune decoder"),
    **dict.fromkeys(("lora-r", "lora-dim", "peft-lora-r"), "--lora-rank"),
    **dict.fromkeys(("lora-target", "lora-target-modules", "target-modules"), "--lora-targets"),
    **dict.fromkeys(("use-rslora", "use-rs-lora"), "--rslora"),
    "loraplus-lr-ratio": "--lora-plus-ratio",
    **dict.fromkeys(("adapter-name-or-path", "lora-path", "lora-model-dir"), "--adapter"),
    # steps
    **dict.fromkeys(("learning-rate", "max-lr", "base-lr"), "--lr"),
    **dict.fromkeys(("vit-lr", "vision-lr", "vision-tower-lr"), "--lr-encoder"),
    **dict.fromkeys(("aligner-lr", "merger-lr", "mm-projector-lr"), "--lr-projector"),
    **dict.fromkeys(("num-epochs", "num-train-epochs", "max-epochs", "n-epochs"), "--epochs"),
    **dict.fromkeys(("train-iters", "max-iters", "num-steps", "total-steps"), "--max-steps"),
    **dict.fromkeys(("per-device-train-batch-size", "train-batch-size"), _BATCH),
    **dict.fromkeys(("per-device-eval-batch-size", "micro-batch-size", "bs"), _BATCH),
    **dict.fromkeys(("global-batch-size", "total-batch-size"), _BATCH),
    **dict.fromkeys(
        ("gradient-accumulation-steps", "grad-accum", "grad-acc-steps"), "--accumulate"
    ),
    **dict.fromkeys(("gradient-accumulation", "accumulation-steps"), "--accumulate"),
    **dict.fromkeys(("warmup-steps", "lr-warmup-steps", "num-warmup-steps"), _WARMUP),
    **dict.fromkeys(("lr-scheduler-type", "lr-scheduler", "lr-scheduler-kwargs"), _COSINE),
    **dict.fromkeys(("min-lr", "lr-min"), "--min-lr-ratio, a share of --lr"),
    **dict.fromkeys(("max-grad-norm", "grad-clip", "clip-grad", "gradient-clipping"), "--clip"),
    **dict.fromkeys(("wd", "decay"), "--weight-decay"),
    "adam-beta1": "--beta1",
    "adam-beta2": "--beta2",
    **dict.fromkeys(("optim", "optimizer-type"), "--optimizer"),
    **dict.fromkeys(("random-seed", "data-seed"), "--seed"),
    "bf16": "--precision bf16",
    "fp16": "--precision fp16",
    "fp32": "--precision fp32",
    **dict.fromkeys(("mixed-precision", "dtype", "torch-dtype"), "--precision"),
    **dict.fromkeys(("gradient-checkpointing", "activation-checkpointing"), _RECOMPUTE),
    **dict.fromkeys(("use-gradient-checkpointing", "recompute"), _RECOMPUTE),
    "torch-compile": "--compile",
    **dict.fromkeys(("deepspeed", "fsdp", "zero-stage", "fsdp-config"), "--shard"),
    "router-aux-loss-coef": "--balance",
    # the run
    **dict.fromkeys(("output-dir", "output", "save-dir", "logging-dir", "run-name"), "--out"),
    **dict.fromkeys(("save-steps", "save-interval", "checkpoint-every"), "--save-every"),
    "save-strategy": "--save-every N, in steps",
    **dict.fromkeys(("eval-steps", "eval-interval", "val-check-interval"), "--eval-every"),
    **dict.fromkeys(("eval-strategy", "evaluation-strategy"), "--eval-every N, in steps"),
    **dict.fromkeys(("logging-steps", "log-interval", "log-steps"), "--log-every"),
    "save-total-limit": "--keep",
    **dict.fromkeys(("load-best-model-at-end", "save-best"), _KEEP_BEST),
    "metric-for-best-model": "--best",
    "early-stopping-patience": "--patience",
    **dict.fromkeys(("resume-from-checkpoint", "resume-from", "auto-resume"), "--resume"),
    **dict.fromkeys(("report-to", "logger", "log-with"), _LOGS),
    **dict.fromkeys(("wandb-project", "use-wandb"), "--wandb PROJECT"),
    "use-tensorboard": "--tensorboard",
    **dict.fromkeys(("hub-model-id", "push-to-hub-model-id"), "--push-to-hub OWNER/NAME"),
    "hub-private-repo": "--private",
    "ddp-timeout": "--timeout",
    # answers
    **dict.fromkeys(("num-beams", "beam-size"), "--beams"),
    "do-sample": "--temperature T, above 0",
    "no-repeat-ngram-size": "--no-repeat-ngram",
    **dict.fromkeys(("max-tokens", "max-output-tokens"), "--max-new-tokens"),
}
