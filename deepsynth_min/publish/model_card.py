"""The model card: what a published model is, how it was made, how good it is, how to load it.

In: a run's settings, its directory and a checkpoint. Out: the text of README.md.

The idea: everything in it is read from what the run wrote; nothing is filled in by hand.
"""

import json
from pathlib import Path

from ..files.download import is_hub_id
from ..settings import Settings


def _last_evaluation(run: Path, checkpoint: Path) -> dict:
    """The held-out figures of a checkpoint, as the run logged them; empty if it did not."""
    try:
        step = json.loads((checkpoint / "training.json").read_text(encoding="utf-8"))["step"]
        lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return {}
    found = [line for line in map(json.loads, lines) if line["kind"] == "eval"]
    return next((line for line in reversed(found) if line["step"] == step), {})


def _loading_instructions(adapter: bool, base: str, family: str) -> str:
    if adapter:
        return (
            "With PEFT, over the base model's modules under their official names:\n\n"
            "```python\nfrom peft import PeftModel\n\n"
            'model = PeftModel.from_pretrained(base_model, "THIS_REPOSITORY")\n```\n\n'
            "To train on, with deepsynth_min:\n\n"
            f"```\npython -m deepsynth_min.train --model {base} --tune lora "
            "--adapter THIS_REPOSITORY\n```\n"
        )
    return (
        f"The files have the layout of the official {family}: whatever loads that model loads "
        "this one. With deepsynth_min:\n\n"
        "```\npython -m deepsynth_min.train --model THIS_REPOSITORY\n```\n"
    )


def model_card(
    settings: Settings, run: Path, checkpoint: Path, adapter: bool, family: str = "DeepSeek-OCR"
) -> str:
    """README.md of a repository: what it is, how it was made, how good it is, how to load it.

    adapter: whether it holds an adapter, not a whole model; family: ModelConfig.family. Paths of
    the machine are left out: of files, only the name is given.
    """
    model, optim, page = settings.model, settings.optim, settings.page
    from_hub = is_hub_id(model.model)
    base = model.model if from_hub else Path(model.model).name
    head = [
        "---",
        *([f"base_model: {base}"] if from_hub else []),
        f"library_name: {'peft' if adapter else 'transformers'}",
        "pipeline_tag: image-text-to-text",
        "tags:",
        f"- {family.lower()}",
        "- rendered-text",
        *(["- lora"] if adapter else []),
        "---",
    ]
    rows = {
        "base model": base + (f" at {model.revision}" if model.revision else ""),
        "trained": model.tune,
        "data": ", ".join(Path(name).name for name in settings.data.data),
        "page size": model.mode,
        "font size": page.font_size or "page side / 64",
        "steps": optim.max_steps,
        "peak learning rate": optim.lr,
        "optimizer": optim.optimizer,
        "samples per process and micro-step": optim.batch_size,
        "precision": optim.precision,
        "seed": optim.seed,
    }
    if "lora" in model.tune:
        lora = settings.adapter
        rows |= {
            "LoRA rank": lora.lora_rank,
            "LoRA alpha": lora.lora_alpha,
            "rsLoRA": lora.rslora,
            "LoRA targets": " ".join(lora.lora_targets) or "as in --adapter",
        }
    evaluation = _last_evaluation(run, checkpoint)
    for name in ("loss", "perplexity", "tokens", "samples"):
        if name in evaluation:
            value = evaluation[name]
            rows[f"held-out {name}"] = f"{value:.4f}" if isinstance(value, float) else value
    table = "\n".join(["| | |", "|---|---|", *(f"| {k} | {v} |" for k, v in rows.items())])
    what = "A LoRA adapter for" if adapter else "A fine-tuned"
    return (
        "\n".join(head) + f"\n\n# {what} {family} that reads rendered text\n\n"
        "Made with deepsynth_min: text is drawn on pages, which the model reads as images.\n\n"
        f"{table}\n\nInstruction after the page: `{settings.data.instruction.strip()}`\n\n"
        f"## How to load it\n\n{_loading_instructions(adapter, base, family)}"
    )
