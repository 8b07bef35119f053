"""`python -m deepsynth_min.generate`: a trained model reads texts, rows or images and answers.

In: a run directory or a model, and files: .jsonl and .parquet (rows as for training, answers not
needed), images, or anything else as UTF-8 text; - is text from standard input. Out: the answers on
standard output, or with --out as JSON lines; a progress bar on standard error.

The one idea: a document becomes a prompt as it did in training, by `SampleBuilder.prompt`, with the
run's own page settings, mode and instruction; the command line takes precedence over them. A single
answer is printed token by token.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from . import options
from .data.formats import kind_of
from .data.row import Row
from .data.samples import Sample, SampleBuilder, collate
from .data.sources import open_files
from .data.tokenizer import decode, load_tokenizer
from .errors import UserError, exit_code
from .model.batch import Batch
from .model.deepseek_ocr import DeepseekOCR
from .model.generation import Answer, generate, tokens
from .model.presets import PRESETS, find_checkpoint
from .options import change
from .settings import GenerationSettings, PageSettings, Settings, load_of_run
from .training.build import load_run_model, usual_beams
from .training.distributed import start, stop
from .training.precision import autocast
from .training.run_directory import find_run_checkpoint
from .tuning.adapter import base_digest, load_adapter
from .tuning.lora import Base

IMAGES = {".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".gif"}


@dataclass(frozen=True)
class Reader:
    """A model and all that turns a document into a prompt for it."""

    model: DeepseekOCR
    builder: SampleBuilder
    settings: Settings
    device: torch.device

    def batch(self, samples: list[Sample]) -> Batch:
        """Prompts as a padded batch on the model's device."""
        return collate(samples, self.builder.special).to(self.device)

    def prompt(self, row: Row) -> Sample:
        """A document as a prompt; warns of characters that are not drawn as they should.

        Raises UserError if it fills the model's context, so that there could be no answer.
        """
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
        """Token ids as text, with the model's markers, without what frames a sequence."""
        return decode(self.builder.tokenizer, ids)

    def precision(self) -> torch.autocast:
        """The context of the model's products: as trained; bf16 for weights partly held in it."""
        dtypes = {p.dtype for p in self.model.parameters() if p.is_floating_point()}
        mixed = len(dtypes) > 1 and torch.bfloat16 in dtypes
        return autocast(self.device, "bf16" if mixed else self.settings.optim.precision)

    def answers(self, samples: list[Sample], numbers: list[int]) -> list[Answer]:
        """Of a batch of prompts; `numbers` of the inputs seed the sampling of each."""
        with self.precision():
            return generate(
                self.model,
                self.batch(samples),
                self.settings.generation,
                self.settings.optim.seed,
                numbers,
            )

    def stream(self, sample: Sample) -> Iterator[str]:
        """The text of the answer piece by piece; not for beams, which decide at the end."""
        ids, shown = [], 0
        batch, settings = self.batch([sample]), self.settings
        with self.precision():
            for token in tokens(self.model, batch, settings.generation, settings.optim.seed):
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


def open_inputs(names: list[str], settings: Settings) -> list[tuple[Sequence[Row], int]]:
    """Pairs (rows, number), in the order given. Raises UserError for what cannot be read."""
    inputs = []
    for name in names:
        if kind_of(name):
            rows = open_files(name, settings.data, answered=False)
        elif Path(name).suffix.lower() in IMAGES:
            rows = [Row(name, "", images=(Path(name),))]
        else:
            rows = TextFile(name)
        inputs += [(rows, i) for i in range(len(rows))]
    return inputs


# -- the model ------------------------------------------------------------------------------------


def load(given: argparse.Namespace, values: dict[str, object]) -> Reader:
    """The model that the command line names, on its device.

    given: the command line; values: the settings among it, which take precedence over the run's.
    """
    settings = load_of_run(Path(given.run)) if given.run else Settings()
    if values.get("temperature"):
        values = {"beams": 1, **values}  # even if the run's answers came from a beam search
    settings = change(settings, **values)
    device = start(given.device, given.threads).device
    if given.run:
        model, directory = _model_of_run(given, settings, device)
    else:
        model, directory = _model_of_checkpoint(given, device)
        settings = change(settings, model=given.model)
    model.eval().requires_grad_(False)
    settings = change(settings, beams=usual_beams(settings))
    builder = SampleBuilder(settings, model.config, load_tokenizer(directory))
    return Reader(model, builder, settings, device)


def _model_of_run(
    given: argparse.Namespace, settings: Settings, device: torch.device
) -> tuple[DeepseekOCR, Path]:
    """(model, directory of its tokenizer)"""
    if given.adapter:
        raise UserError("--adapter: a run has its own adapter; give --model")
    run = Path(given.run)
    return load_run_model(settings, run, find_run_checkpoint(run, given.checkpoint), device)


def _model_of_checkpoint(
    given: argparse.Namespace, device: torch.device
) -> tuple[DeepseekOCR, Path]:
    """(model, directory of its tokenizer), with --adapter in it."""
    if given.model in PRESETS:
        raise UserError(f"--model {given.model}: a preset has random weights")
    directory = find_checkpoint(given.model)
    model = DeepseekOCR.from_pretrained(directory, device=device)
    if given.adapter:
        base = Base(given.model, None, base_digest(directory))
        load_adapter(model, find_checkpoint(given.adapter), base)
    return model, directory


# -- outputs --------------------------------------------------------------------------------------


def record(row: Row, sample: Sample, answer: Answer, text: str) -> dict[str, object]:
    """A line of --out: where the document was, the answer, and what both took."""
    return {
        "input": row.where,
        "summary": text,
        "tokens": len(answer.ids),
        "ended": answer.ended,
        "pages": len(sample.pages),
        "visual_tokens": sample.visual,
    }


def show_one(reader: Reader, row: Row) -> None:
    """Prints the answer to one document, as it is made if it can be."""
    sample = reader.prompt(row)
    if reader.settings.generation.beams > 1:
        print(reader.decode(reader.answers([sample], [0])[0].ids))
        return
    for piece in reader.stream(sample):
        print(piece, end="", flush=True)
    print()


def answer_all(
    reader: Reader, inputs: list[tuple[Sequence[Row], int]], batch_size: int, show: bool
) -> Iterator[dict[str, object]]:
    """A record for each input, in order; show: print its answer too, under the document's name."""
    with tqdm(total=len(inputs), desc="reading", unit="document", file=sys.stderr) as bar:
        for begin in range(0, len(inputs), batch_size):
            rows = [rows[i] for rows, i in inputs[begin : begin + batch_size]]
            samples = [reader.prompt(row) for row in rows]
            numbers = list(range(begin, begin + len(rows)))
            for row, sample, answer in zip(rows, samples, reader.answers(samples, numbers)):
                text = reader.decode(answer.ids)
                if show:
                    tqdm.write(f"==> {row.where} <==\n{text}\n")
                yield record(row, sample, answer, text)
            bar.update(len(rows))


# -- the command ----------------------------------------------------------------------------------


def parser() -> options.OneLineParser:
    """The options of this command and those settings of a run that concern reading."""
    concerns = {"page": PageSettings, "generation": GenerationSettings}
    out = options.make_parser(
        concerns,
        "python -m deepsynth_min.generate",
        "Reads documents with a trained model and prints its answers. Settings default to those of "
        "the run.",
    )
    out.usage = "python -m deepsynth_min.generate (--run DIR | --model DIR) [options] FILE..."
    out.add_argument(
        "files",
        nargs="+",
        metavar="FILE",
        help="a text, an image, or rows (.jsonl, .parquet); -: text from standard input",
    )
    model = out.add_mutually_exclusive_group(required=True)
    model.add_argument("--run", metavar="DIR", default="", help="run directory of a training")
    model.add_argument("--model", metavar="DIR", default="", help="checkpoint directory or hub id")
    for option, metavar, default, text in (
        ("--checkpoint", "WHICH", "last", "of the run: last, best or a step number"),
        ("--adapter", "DIR", "", "directory or hub id of an adapter for --model"),
        ("--out", "FILE", "", "write the answers as JSON lines to this new file"),
        ("--device", "DEVICE", "auto", "auto, cpu, cuda, ..."),
    ):
        text += f" (default: {default})" if default else ""
        out.add_argument(option, metavar=metavar, default=default, help=text)
    add = out.add_argument
    add("--mode", help="page size, as in training (default: the run's, or auto)")
    add("--instruction", metavar="TEXT", help="prompt after the page (default: the run's)")
    add("--batch-size", metavar="N", type=int, default=8, help="documents at a time (default: 8)")
    add("--seed", metavar="N", type=int, help="of sampling (default: the run's, or 0)")
    add("--threads", metavar="N", type=int, default=0, help="CPU threads; 0: all (default: 0)")
    return out


def run(arguments: list[str]) -> None:
    given = parser().parse_args(arguments)
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
            show_one(reader, rows[number])
            return
        for line in answer_all(reader, inputs, given.batch_size, show=not file):
            if file:
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
                file.flush()


def main(arguments: list[str] | None = None) -> int:
    return exit_code(run, arguments, stop)


if __name__ == "__main__":
    sys.exit(main())
