"""The model card: what a published model is, how it was made, how good it is, how to ask it.

In: a run's directory, a checkpoint, and what makes the run's prompts. Out: the text of README.md.

The idea: everything in it is read from what the run wrote or made by what makes its prompts;
nothing is filled in by hand. The command in it gives the answers that the run gives, but for what
rounding weights to bf16 changes.
"""

import json
import shlex
from pathlib import Path

from ..data.row import PLACEHOLDER, prompt_after_pages
from ..data.samples import SampleBuilder
from ..files.download import is_hub_id
from ..model.shape.presets import TINY_READER
from ..pages.fonts.font_file import EMBEDDED
from ..runs.recorded import FILE
from ..runs.storage.taken import better, standing
from ..settings import Settings

HERE, BASE = "THIS_REPOSITORY", "BASE_MODEL"  # for the reader to fill in


def _last_evaluation(run: Path, checkpoint: Path) -> dict:
    """The held-out figures of a checkpoint, as the run logged them; empty if it did not."""
    try:
        step = json.loads((checkpoint / "training.json").read_text(encoding="utf-8"))["step"]
        lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return {}
    found = [line for line in map(json.loads, lines) if line["kind"] == "eval"]
    return next((line for line in reversed(found) if line["step"] == step), {})


def served_prompt(builder: SampleBuilder) -> str:
    """The prompt of one page as servers take it, with <image> in the page's place."""
    asked = prompt_after_pages(builder.settings.data.instruction, 0, "--instruction")
    return PLACEHOLDER + asked + builder.trained_with.prompt_end


def _quoted(text: str) -> str:
    """A text as JSON in a code block of its own: no space and no line end in it can get lost."""
    return f"```json\n{json.dumps(text, ensure_ascii=False)}\n```\n"


def _fonts(settings: Settings) -> list[str]:
    """The options for font files, by name: files are the reader's own."""
    page, words = settings.page, []
    if page.main_font and page.main_font not in EMBEDDED:
        words += ["--main-font", Path(page.main_font).name]
    if any(font not in EMBEDDED for font in page.font):
        words += ["--font", *(Path(font).name for font in page.font)]
    return words


def _asking(settings: Settings, base: str, adapter: bool) -> str:
    """The command that answers as the run does."""
    model = ["--model", base, "--adapter", HERE] if adapter else ["--model", HERE]
    fonts = _fonts(settings)
    # Where --font takes several files, FILE must not be taken for one.
    words = ["python", "-m", "deepsynth_min.generate", *fonts, *model]
    text = (
        f"With deepsynth_min, which finds mode, style of the page, instruction and generation in "
        f"{FILE}; FILE is a text, an image, a PDF or a file of rows:\n\n"
        f"```sh\n{shlex.join(words)} FILE\n```\n\n"
    )
    if fonts:
        text += f"The font files are not in this repository; {FILE} has their digests.\n\n"
    return text


def _loading_instructions(adapter: bool, base: str, family: str, tune: str) -> str:
    if adapter:
        return (
            "With PEFT, over the base model's modules under their official names:\n\n"
            "```python\nfrom peft import PeftModel\n\n"
            f'model = PeftModel.from_pretrained(base_model, "{HERE}")\n```\n\n'
            "To train on, with deepsynth_min:\n\n"
            f"```\npython -m deepsynth_min.train --model {base} --tune {tune} "
            f"--adapter {HERE}\n```\n"
        )
    return (
        f"The files have the layout of the official {family}: whatever loads that model loads "
        "this one. To train on, with deepsynth_min:\n\n"
        f"```\npython -m deepsynth_min.train --model {HERE}\n```\n"
    )


def _serving(builder: SampleBuilder) -> str:
    """What a server must be told."""
    page, generation = builder.settings.page, builder.settings.generation
    text = (
        "## How to serve it\n\n"
        f"Mode {_mode(builder)}. A text must be drawn as in training: `python -m "
        f"deepsynth_min.render --model {HERE} --data FILE --to pages.parquet` does it. The prompt, "
        f"as JSON, with one {PLACEHOLDER} for each page:\n\n{_quoted(served_prompt(builder))}\n"
    )
    if builder.trained_with.prompt_end:
        text += (
            "It ends in white space, which the official code strips; without it the answers are "
            "others.\n\n"
        )
    how = f"beam search of width {generation.beams}" if generation.beams > 1 else "greedy decoding"
    if generation.temperature:
        how = f"sampling at temperature {generation.temperature:g}, top-p {generation.top_p:g}"
    if generation.no_repeat_ngram:
        how += f", no {generation.no_repeat_ngram}-gram twice"
    fit = "" if page.fit == "auto" else f" Images become square by --fit {page.fit}."
    return text + f"Generation: {how}.{fit}\n\n"


def _mode(builder: SampleBuilder) -> str:
    name = builder.settings.model.mode
    tiles = f" and tiles, at most {builder.most_tiles}" if builder.gundam else ""
    return f"{name}: {builder.side} px{tiles}"


def _description(builder: SampleBuilder, run: Path, checkpoint: Path, base: str) -> dict:
    """The rows of the table."""
    settings, style = builder.settings, builder.style
    model, optim, metric = settings.model, settings.optim, settings.evaluation.best
    size = f"{style.font_size} px" + (", or smaller" if style.overflow == "shrink" else "")
    other = better(run, checkpoint, metric)
    rows = {
        "base model": base + (f" at {model.revision}" if model.revision else ""),
        "trained": model.tune,
        "data": ", ".join(Path(name).name for name in settings.data.data),
        "page": _mode(builder),
        "font size": size,
        "margin": f"{style.margin} px",
        "line height": f"{style.line_height:g} font sizes",
        "steps": optim.max_steps,
        "peak learning rate": optim.lr,
        **({"that of the projector": optim.lr_projector} if optim.lr_projector else {}),
        **({"that of the encoder": optim.lr_encoder} if optim.lr_encoder else {}),
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
    rows["checkpoint"] = standing(run, checkpoint, metric) + (f"; {other}" if other else "")
    evaluation = _last_evaluation(run, checkpoint)
    for name in ("loss", "perplexity", "tokens", "samples"):
        if name in evaluation:
            value = evaluation[name]
            rows[f"held-out {name}"] = f"{value:.4f}" if isinstance(value, float) else value
    return rows


def model_card(builder: SampleBuilder, run: Path, checkpoint: Path, adapter: bool) -> str:
    """README.md of a repository: what it is, how it was made, how good it is, how to ask it.

    builder: makes the run's prompts, with its settings; adapter: whether the repository holds an
    adapter, not a whole model. Paths of the machine are left out: of files, only the name is given.
    """
    settings, family = builder.settings, builder.config.family
    tune = settings.model.tune
    name = settings.model.model
    from_hub = is_hub_id(name)
    base = name if from_hub else Path(name).name
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
    rows = _description(builder, run, checkpoint, base)
    table = "\n".join(["| | |", "|---|---|", *(f"| {k} | {v} |" for k, v in rows.items())])
    what = "A LoRA adapter for" if adapter else "A fine-tuned"
    to_load = base if from_hub or name == TINY_READER else BASE
    note = f"{BASE} is {base}, which is not on the hub.\n\n" if adapter and to_load == BASE else ""
    return (
        "\n".join(head) + f"\n\n# {what} {family} that reads rendered text\n\n"
        "Made with deepsynth_min: text is drawn on pages, which the model reads as images.\n\n"
        f"{table}\n\nThe instruction after the page, as JSON:\n\n"
        f"{_quoted(settings.data.instruction)}\n"
        f"## How to ask it\n\n{_asking(settings, to_load, adapter)}{note}"
        f"{'' if adapter else _serving(builder)}"
        f"## How to load it\n\n{_loading_instructions(adapter, to_load, family, tune)}"
    )
