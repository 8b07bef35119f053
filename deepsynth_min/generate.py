"""`python -m deepsynth_min.generate`: a trained model reads texts, rows or images and answers.

In: a run directory or a model, and files: .jsonl (rows as for training, answers not needed),
images, or anything else as UTF-8 text; - is text from standard input. Out: the answers on standard
output, or with --out as JSON lines; a bar on standard error.

The one idea: a document takes the way it took in training, through `SampleBuilder.prompt`, with the
run's own page, mode and instruction; what is given on the command line comes before them. With one
input the answer appears as it is made.
"""

import argparse
import json
import sys
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from . import options, settings as settings_
from .data.row import Row
from .data.rows import KINDS, open_files
from .data.samples import Sample, SampleBuilder, collate
from .data.tokenizer import load_tokenizer
from .errors import UserError, exit_code
from .model.batch import Batch
from .model.deepseek_ocr import DeepseekOCR
from .model.generation import Answer, generate, tokens
from .model.presets import PRESETS
from .model.weights import find_checkpoint
from .options import change
from .settings import GenerationSettings, PageSettings, Settings
from .training.build import load_run_model, usual_beams
from .training.distributed import start, stop
from .training.precision import autocast
from .training.run_directory import find_run_checkpoint
from .tuning.adapter import base_digest, load_adapter
from .tuning.lora import Base

IMAGES = {".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".gif"}


@dataclass(frozen=True)
class Reader:
    """A model and all that turns a document into its prompt."""

    model: DeepseekOCR
    builder: SampleBuilder
    settings: Settings
    device: torch.device

    def batch(self, samples: list[Sample]) -> Batch:
        return collate(samples, self.builder.special).to(self.device)

    def prompt(self, row: Row) -> Sample:
        """Raises UserError if the document leaves no room for an answer; says what is not drawn."""
        sample, context = self.builder.prompt(row), self.builder.context
        if len(sample.ids) >= context:
            raise UserError(
                f"{row.where}: {len(sample.pages)} pages ({sample.visual} visual tokens) and the "
                f"instruction make {len(sample.ids)} tokens; the model's context is {context} "
                "(--max-pages N --overflow truncate|shrink limits the pages)"
            )
        if sample.missing:
            tqdm.write(
                f"warning: {row.where}: {sample.missing} characters could not be drawn as "
                "they should; --font FILE adds a font",
                file=sys.stderr,
            )
        return sample

    def decode(self, ids: list[int]) -> str:
        return self.builder.tokenizer.decode(ids, skip_special_tokens=True)

    def precision(self) -> torch.autocast:
        """As trained; weights partly held in bf16 were computed with in bf16."""
        kinds = {p.dtype for p in self.model.parameters() if p.is_floating_point()}
        mixed = len(kinds) > 1 and torch.bfloat16 in kinds
        return autocast(self.device, "bf16" if mixed else self.settings.optim.precision)

    def answers(self, samples: list[Sample], numbers: list[int]) -> list[Answer]:
        with self.precision():
            return generate(
                self.model,
                self.batch(samples),
                self.settings.generation,
                self.settings.optim.seed,
                numbers,
            )

    def stream(self, sample: Sample):
        """Yields the text of the answer piece by piece; not for beams, which decide at the end."""
        ids, shown = [], 0
        with self.precision():
            for token in tokens(
                self.model, self.batch([sample]), self.settings.generation, self.settings.optim.seed
            ):
                if int(token) == self.builder.special.eos:
                    break
                ids.append(int(token))
                text = self.decode(ids)
                if not text.endswith("\ufffd"):  # a character whose bytes are not all there yet
                    yield text[shown:]
                    shown = len(text)
        yield self.decode(ids)[shown:]


# -- inputs ---------------------------------------------------------------------------------------


class TextFile:
    """One row: the text of a file, or of standard input."""

    def __init__(self, name: str):
        self.name = "standard input" if name == "-" else name
        try:
            data = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
            self.text = data.decode("utf-8-sig")
        except OSError as error:
            raise UserError(f"{name}: {error.strerror}") from None
        except UnicodeDecodeError as error:
            raise UserError(f"{name}: not UTF-8 at byte {error.start}") from None
        if not self.text.strip():
            raise UserError(f"{self.name}: no text in it")

    def __len__(self) -> int:
        return 1

    def __getitem__(self, i: int) -> Row:
        return Row(self.name, "", self.text)


def open_inputs(names: list[str], settings: Settings) -> list:
    """Pairs (rows, number), in the order given. Raises UserError for what cannot be read."""
    found = []
    for name in names:
        if Path(name).suffix.lower() in KINDS:
            rows = open_files(name, settings.data, answered=False)
        elif Path(name).suffix.lower() in IMAGES:
            rows = [Row(name, "", images=(Path(name),))]
        else:
            rows = TextFile(name)
        found += [(rows, i) for i in range(len(rows))]
    return found


def load(given: argparse.Namespace, values: dict) -> Reader:
    """The model that the command line names, on its device."""
    run = Path(given.run) if given.run else None
    if run and not (run / "config.toml").is_file():
        raise UserError(f"{run}: not a run directory (no config.toml)")
    if values.get("temperature"):
        values = {"beams": 1, **values}  # whatever the run did
    settings = change(settings_.load(run / "config.toml") if run else Settings(), **values)
    world = start(given.device, given.threads)
    if run:
        if given.adapter:
            raise UserError("--adapter: a run has its own adapter; give --model")
        checkpoint = find_run_checkpoint(run, given.checkpoint)
        model, directory = load_run_model(settings, run, checkpoint, world.device)
    else:
        if given.model in PRESETS:
            raise UserError(f"--model {given.model}: a preset has random weights")
        directory = find_checkpoint(given.model)
        model = DeepseekOCR.from_pretrained(directory, device=world.device)
        settings = change(settings, model=given.model)
        if given.adapter:
            base = Base(given.model, None, base_digest(directory))
            load_adapter(model, find_checkpoint(given.adapter), base)
    model.eval().requires_grad_(False)
    settings = change(settings, beams=usual_beams(settings))
    builder = SampleBuilder(settings, model.config, load_tokenizer(directory))
    return Reader(model, builder, settings, world.device)


# -- outputs --------------------------------------------------------------------------------------


def record(row: Row, sample: Sample, answer: Answer, text: str) -> dict:
    """A line of --out."""
    return {
        "input": row.where,
        "summary": text,
        "tokens": len(answer.ids),
        "ended": answer.ended,
        "pages": len(sample.pages),
        "visual_tokens": sample.visual,
    }


def show_one(reader: Reader, row: Row) -> None:
    """Prints the answer as it is made."""
    sample = reader.prompt(row)
    if reader.settings.generation.beams > 1:
        print(reader.decode(reader.answers([sample], [0])[0].ids))
        return
    for piece in reader.stream(sample):
        print(piece, end="", flush=True)
    print()


def answer_all(reader: Reader, inputs: list, size: int, show: bool):
    """Yields a record for each input, in order."""
    with tqdm(total=len(inputs), desc="reading", unit="document", file=sys.stderr) as bar:
        for begin in range(0, len(inputs), size):
            rows = [rows[i] for rows, i in inputs[begin : begin + size]]
            samples = [reader.prompt(row) for row in rows]
            numbers = list(range(begin, begin + len(rows)))
            for row, sample, answer in zip(rows, samples, reader.answers(samples, numbers)):
                text = reader.decode(answer.ids)
                if show:
                    tqdm.write(f"==> {row.where} <==\n{text}\n")
                yield record(row, sample, answer, text)
            bar.update(len(rows))


def parser() -> options.OneLineParser:
    concerns = {"page": PageSettings, "generation": GenerationSettings}
    out = options.make_parser(
        concerns,
        "python -m deepsynth_min.generate",
        "Read documents with a trained model. Page settings, mode and instruction default to those "
        "of the run.",
    )
    out.usage = "python -m deepsynth_min.generate --run DIR | --model DIR [options] FILE..."
    out.add_argument("files", nargs="+", metavar="FILE", help="text, rows or image; -: text")
    which = out.add_mutually_exclusive_group(required=True)
    which.add_argument("--run", metavar="DIR", default="", help="run directory of a training")
    which.add_argument("--model", metavar="DIR", default="", help="checkpoint directory or hub id")
    for option, default, text in (
        ("--checkpoint", "last", "of the run: last, best or a step number"),
        ("--adapter", "", "directory or hub id of an adapter over --model"),
        ("--out", "", "write JSON lines to this new file"),
        ("--device", "auto", "auto, cpu, cuda, ..."),
    ):
        out.add_argument(option, default=default, help=f"{text} (default: {default!r})")
    out.add_argument("--mode", help="page size, as in training (default: the run's, or auto)")
    out.add_argument("--instruction", help="prompt after the page (default: the run's)")
    out.add_argument("--batch-size", type=int, default=8, help="documents at a time (default: 8)")
    out.add_argument("--seed", type=int, help="of sampling (default: the run's, or 0)")
    out.add_argument("--threads", type=int, default=0, help="CPU threads (default: all)")
    return out


def run(arguments: list[str]) -> None:
    out = parser()
    given = out.parse_args(arguments)
    if given.batch_size < 1:
        raise UserError(f"--batch-size: {given.batch_size} is below 1")
    values = options.checked(vars(given), (PageSettings, GenerationSettings))
    values |= {
        name: getattr(given, name) for name in ("mode", "instruction", "seed") if name in given
    }
    reader = load(given, values)
    inputs = open_inputs(given.files, reader.settings)
    try:
        target = open(given.out, "x", encoding="utf-8") if given.out else nullcontext()
    except OSError as error:
        raise UserError(f"--out {given.out}: {error.strerror}") from None
    with target as file:
        if len(inputs) == 1 and not file:
            rows, number = inputs[0]
            return show_one(reader, rows[number])
        for found in answer_all(reader, inputs, given.batch_size, show=not file):
            if file:
                file.write(json.dumps(found, ensure_ascii=False) + "\n")
                file.flush()


def main(arguments: list[str] | None = None) -> int:
    return exit_code(run, arguments, stop)


if __name__ == "__main__":
    sys.exit(main())
