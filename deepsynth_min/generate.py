"""`python -m deepsynth_min.generate`: a trained model reads texts, rows or images and answers.

In: a run directory or a model, and files: rows as for training (answers not needed), images and
PDFs, or anything else as UTF-8 text; - is standard input. Out: the answers on standard output, or
with --out as JSON lines; a progress bar on standard error.

The one idea: a document becomes a prompt as it did in training, by `SampleBuilder.prompt`, with the
page settings, mode, instruction and generation of the run, or those that lie beside an exported
model or adapter; the command line takes precedence over them. What cannot be read becomes a record
that says why, and the rest goes on. A single answer is printed token by token.
"""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from . import options
from .data.inputs import Input, open_inputs
from .data.row import Row
from .data.samples import Sample
from .errors import UserError, exit_code, find_file, number_of, one_line
from .files.disk import append_whole, check_file, write_bytes, writing
from .model.generation import Answer
from .options import change
from .runs.open_model import add_model_options, open_model
from .runs.reader import Reader, warn
from .runs.storage.taken import better, which_checkpoint
from .settings import GenerationSettings, PageSettings
from .training.distributed import stop


def warn_cut(where: str, length: int) -> None:
    cut = f"cut off after {number_of(length, 'token')}"
    warn(f"{where}: {cut} (--max-new-tokens, or the context is full)")


# -- outputs --------------------------------------------------------------------------------------


def record(row: Row, sample: Sample, answer: Answer, text: str, made_by: str) -> dict[str, object]:
    """A line of --out: where the document was, the answer, beside it the row's own if it has one,
    what they took, and which model with which settings answered."""
    reference = {"reference": row.summary} if row.summary else {}
    return {
        "input": row.where,
        "answer": text,
        **reference,
        "tokens": len(answer.ids),
        "ended": answer.ended,
        "pages": len(sample.pages),
        "visual_tokens": sample.visual,
        "made_by": made_by,
    }


def show_one(reader: Reader, document: Input) -> None:
    """Prints the answer to one document, as it is made if it can be. Raises UserError."""
    sample = reader.prompt(document.row())
    if reader.settings.generation.beams > 1:
        (answer,) = reader.answers([sample], [0])
        print(reader.decode(answer.ids))
        if not answer.ended:
            warn_cut(document.where, len(answer.ids))
        return
    for piece, answer in reader.stream(sample):  # noqa: B007, used below
        print(piece, end="", flush=True)
    print()
    if not answer.ended:
        warn_cut("the answer", len(answer.ids))


def answer_all(
    reader: Reader, inputs: list[tuple[int, Input]], batch_size: int, made_by: str
) -> Iterator[dict[str, object]]:
    """A record for each (number, input), in order; one that cannot be read has an error in it.

    made_by: which model with which settings answers; "" where records are not kept: then each
    answer is printed, under the document's name.
    """
    with tqdm(total=len(inputs), desc="reading", unit="document", file=sys.stderr) as bar:
        for begin in range(0, len(inputs), batch_size):
            ready, records = [], {}
            for number, document in inputs[begin : begin + batch_size]:
                records[number] = None
                try:
                    row = document.row()
                    ready.append((number, row, reader.prompt(row)))
                except UserError as error:
                    tqdm.write(f"error: {one_line(error)}", file=sys.stderr)
                    where = document.where if document.error else row.where
                    records[number] = {"input": where, "error": str(error)}
            numbers = [number for number, _, _ in ready]
            answers = reader.answers([s for _, _, s in ready], numbers) if ready else []
            for (number, row, sample), answer in zip(ready, answers):
                text = reader.decode(answer.ids)
                if not made_by:
                    tqdm.write(f"==> {row.where} <==\n{text}\n")
                if not answer.ended:
                    warn_cut(row.where, len(answer.ids))
                records[number] = record(row, sample, answer, text, made_by)
            yield from records.values()
            bar.update(len(records))


FIRST_KEY = b'{"input": '  # how each line of --out begins


def answered(path: Path, made_by: str) -> dict[str, bytes]:
    """Input -> its line, of those that an interrupted --out has answers to ("summary" in files of
    before); those with an error, and a last line that was cut off, are gone from the file.

    Raises UserError, and leaves the file as it is, if something else stands in it, or answers of
    another model or of other settings than `made_by` says; files of before do not name theirs.
    """
    kept, unknown = {}, 0
    with writing("--out", path):
        *lines, rest = find_file(path, "--out ").read_bytes().split(b"\n")
        if not (rest.startswith(FIRST_KEY) or FIRST_KEY.startswith(rest)):
            lines.append(rest)  # was not cut off: it is something else
        for number, line in enumerate(lines, 1):
            entry, where = _entry(line), f"--out {path}:{number}"
            if entry is None:
                raise UserError(
                    f"{where}: not a line of answers; --resume goes on only in a file that this "
                    "command wrote"
                )
            if "error" in entry:
                continue
            if entry.get("made_by", made_by) != made_by:
                raise UserError(
                    f"{where}: was answered by another model or with other settings; give the same "
                    "ones, or another --out"
                )
            unknown += "made_by" not in entry
            kept[entry["input"]] = line + b"\n"
        write_bytes(path, b"".join(kept.values()))
    if unknown:
        warn(
            f"--out {path}: {number_of(unknown, 'line')} of before, which may be of another model "
            "or of other settings"
        )
    return kept


def _entry(line: bytes) -> dict | None:
    """A line of --out; None if it is something else."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(entry, dict) or not isinstance(entry.get("input"), str):
        return None
    return entry if entry.keys() & {"answer", "summary", "error"} else None


# -- the command ----------------------------------------------------------------------------------


def parser() -> options.OneLineParser:
    """The options of this command and those settings of a run that concern reading."""
    concerns = {"page": PageSettings, "generation": GenerationSettings}
    out = options.make_parser(
        concerns,
        "python -m deepsynth_min.generate",
        "Reads documents with a trained model and prints its answers. Settings default to those of "
        "the run, or those that model or adapter bring in deepsynth_min.toml; an answer may be as "
        "long as the context allows.",
        without=("max_new_tokens",),
        of_run=True,
    )
    out.usage = "python -m deepsynth_min.generate (--run DIR | --model DIR) [options] FILE..."
    text = "a text, an image, a PDF, or rows as --data has them; -: standard input"
    out.add_argument("files", nargs="+", metavar="FILE", help=text)
    add_model_options(out)
    add = out.add_argument
    add(
        "--out", metavar="FILE", default="", help="write the answers as JSON lines to this new file"
    )
    text = "tokens of an answer at most (default: what the context leaves)"
    add("--max-new-tokens", metavar="N", type=int, help=text)
    text = "go on in an --out that is there, of the same model and settings; documents are known "
    text += "by their names"
    add("--resume", action="store_true", default=False, help=text)
    return out


def run(arguments: list[str]) -> None:
    given = parser().parse_args(arguments)
    values = options.checked(vars(given), (PageSettings, GenerationSettings))
    if given.resume and not given.out:
        raise UserError("--resume: there is nothing to go on with without --out")
    if given.out:
        check_file("--out", given.out)
    opened = open_model(given, values)
    metric = opened.settings.evaluation.best
    if given.run and better(Path(given.run), opened.checkpoint, metric):
        print(which_checkpoint(Path(given.run), opened.checkpoint, metric), file=sys.stderr)
    if "max_new_tokens" not in values:  # an answer ends where the context does, at the latest
        longest = change(opened.settings, max_new_tokens=opened.builder.context)
        opened = replace(opened, settings=longest)
    reader = Reader(opened)
    inputs = list(enumerate(open_inputs(given.files, reader.settings)))
    made_by = opened.fingerprint() if given.out else ""  # reads of every weight
    done, mode = {}, "xb"
    if given.resume and os.path.exists(given.out):
        done, mode = answered(Path(given.out), made_by), "ab"
        inputs = [(n, i) for n, i in inputs if i.where not in done]
    with writing("--out", given.out):
        target = open(given.out, mode, buffering=0) if given.out else nullcontext()
    with target as file:
        if len(inputs) == 1 and not file:
            show_one(reader, inputs[0][1])
            return
        failed, size = 0, reader.settings.optim.batch_size
        for line in answer_all(reader, inputs, size, made_by):
            failed += "error" in line
            if file:
                with writing("--out", given.out):
                    append_whole(file, json.dumps(line, ensure_ascii=False) + "\n")
    if failed:
        raise UserError(f"{failed} of {number_of(len(inputs), 'document')} could not be read")


def main(arguments: list[str] | None = None) -> int:
    return exit_code(run, arguments, stop)


if __name__ == "__main__":
    sys.exit(main())
