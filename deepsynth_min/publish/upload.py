"""Uploading: a directory that is complete, with a model card, to a repository on the hub.

In: a directory that export.py or a training run has written. Out: a commit that holds its files.

    python -m deepsynth_min.hub --directory DIR --repo OWNER/NAME [--private]

The one idea: the upload comes last and owns nothing. The files are whole on the disk before it
starts, so a failure loses nothing, and the command above tries again; files that the hub has
already are not sent twice. The token is HF_TOKEN's (or that of `hf auth login`), read by huggingface_hub,
which also honours HF_ENDPOINT; it is never printed and never written.
"""

import json
import sys
import time
from pathlib import Path

from .config import UserError, exit_code, without_credentials
from .download import without_token
from .options import OneLineParser
from .presets import PRESETS
from .settings import Settings

ATTEMPTS, PAUSE = 3, 2.0  # seconds before the second attempt; twice as long before the third
_FINAL = range(400, 500)  # the client's own fault; trying again changes nothing, but for:
_PASSING = (408, 409, 425, 429)


# -- the model card -------------------------------------------------------------------------------


def _last_evaluation(run: Path, checkpoint: Path) -> dict:
    """The held-out figures of a checkpoint, as the run logged them; empty if it did not."""
    try:
        step = json.loads((checkpoint / "training.json").read_text(encoding="utf-8"))["step"]
        lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return {}
    found = [line for line in map(json.loads, lines) if line["kind"] == "eval"]
    return next((line for line in reversed(found) if line["step"] == step), {})


def _is_hub_id(name: str) -> bool:
    return name not in PRESETS and name.count("/") == 1 and not Path(name).exists()


def _how_to_load(adapter: bool, base: str) -> str:
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
        "The files have the layout of deepseek-ai/DeepSeek-OCR: whatever loads that model loads "
        "this one. With deepsynth_min:\n\n"
        "```\npython -m deepsynth_min.train --model THIS_REPOSITORY\n```\n"
    )


def model_card(settings: Settings, run: Path, checkpoint: Path, adapter: bool) -> str:
    """README.md of a repository: what it is, how it was made, how good it is, how to load it.

    Paths of the machine are left out: of files, only the name is told.
    """
    model, optim, page = settings.model, settings.optim, settings.page
    known = _is_hub_id(model.model)
    base = model.model if known else Path(model.model).name
    head = ["---", *([f"base_model: {base}"] if known else []),
            f"library_name: {'peft' if adapter else 'transformers'}",
            "pipeline_tag: image-text-to-text", "tags:", "- deepseek-ocr", "- rendered-text",
            *(["- lora"] if adapter else []), "---"]  # fmt: skip
    rows = {
        "base model": base + (f" at {model.revision}" if model.revision else ""),
        "trained": model.tune, "data": Path(settings.data.data).name, "page size": model.mode,
        "font size": page.font_size or "page side / 64", "steps": optim.max_steps,
        "peak learning rate": optim.lr, "optimizer": optim.optimizer,
        "samples per process and micro-step": optim.batch_size,
        "precision": optim.precision, "seed": optim.seed,
    }  # fmt: skip
    if "lora" in model.tune:
        own = settings.adapter
        rows |= {"LoRA rank": own.lora_rank, "LoRA alpha": own.lora_alpha, "rsLoRA": own.rslora,
                 "LoRA targets": " ".join(own.lora_targets) or "as in --adapter"}  # fmt: skip
    measured = _last_evaluation(run, checkpoint)
    for name in ("loss", "perplexity", "tokens", "samples"):
        if name in measured:
            value = measured[name]
            rows[f"held-out {name}"] = f"{value:.4f}" if isinstance(value, float) else value
    table = "\n".join(["| | |", "|---|---|", *(f"| {k} | {v} |" for k, v in rows.items())])
    what = "A LoRA adapter for" if adapter else "A fine-tuned"
    return (
        "\n".join(head) + f"\n\n# {what} DeepSeek-OCR that reads rendered text\n\n"
        "Made with deepsynth_min: text is drawn on pages, which the model reads as images.\n\n"
        f"{table}\n\nInstruction after the page: `{settings.data.instruction.strip()}`\n\n"
        f"## How to load it\n\n{_how_to_load(adapter, base)}"
    )


# -- the upload -----------------------------------------------------------------------------------


def _explain(error: BaseException) -> tuple[str, int | None]:
    """(first lines of an error and of what caused it, the server's status code if it gave one)"""
    lines, status = [], None
    while error is not None:
        lines.append((str(error).strip() or type(error).__name__).splitlines()[0])
        status = status or getattr(getattr(error, "response", None), "status_code", None)
        error = error.__cause__
    return ": ".join(dict.fromkeys(lines)), status


def push(directory: Path, repo: str, private: bool = False, pause: float = PAUSE) -> None:
    """Uploads every file of `directory`; prints where to. Raises UserError saying how to go on."""
    from huggingface_hub import HfApi
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
    api = HfApi()
    for attempt in range(1, ATTEMPTS + 1):
        try:
            api.create_repo(repo, private=private, exist_ok=True)
            api.upload_folder(repo_id=repo, folder_path=directory,
                              commit_message=f"deepsynth_min: {directory.name}")  # fmt: skip
            print(without_credentials(f"uploaded to {api.endpoint}/{repo}"))
            return
        except Exception as error:  # its network stack's own kinds; none may lose the message below
            reason, status = _explain(error)
            if status in _FINAL and status not in _PASSING:
                break
            if attempt < ATTEMPTS:
                time.sleep(pause * 2 ** (attempt - 1))
    again = f"python -m deepsynth_min.hub --directory {directory} --repo {repo}"
    again += " --private" if private else ""
    raise UserError(without_token(
        f"upload to {repo} failed ({reason}); nothing is lost, try again with: {again}"))  # fmt: skip


def run(arguments: list[str]) -> None:
    parser = OneLineParser(
        "python -m deepsynth_min.hub", description="Uploads a finished directory to the hub."
    )
    parser.add_argument("--directory", required=True, metavar="DIR", help="what to upload")
    parser.add_argument("--repo", required=True, metavar="OWNER/NAME", help="where to")
    parser.add_argument("--private", action="store_true", help="if the repository is new")
    given = parser.parse_args(arguments)
    directory = Path(given.directory)
    if not any(directory.glob("*.safetensors")):
        raise UserError(f"--directory {directory}: no model or adapter in it")
    push(directory, given.repo, given.private)


def main(arguments: list[str] | None = None) -> int:
    return exit_code(run, arguments)


if __name__ == "__main__":
    sys.exit(main())
