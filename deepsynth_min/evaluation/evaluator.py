"""Evaluation: held-out loss, page ablations, and how near generated answers are to the references.

In: a model and held-out rows. Out: one flat dictionary of figures (`Evaluator` names them), and a
few answers to look at.

The one idea: rows are dealt to the ranks in whole batches, sums and counts are added up over ranks
and batches, and only then is divided. So the figures do not depend on the number of processes: the
same batches are scored, and what they give is added in float64.
"""

import math
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from statistics import mean, median
from typing import Protocol

import torch
from tqdm import tqdm

from ..data.loader import held_out_shares
from ..data.row import Row, RowError
from ..data.samples import Sample, SampleBuilder, collate
from ..data.tokenizer import decode, encode, ids_of
from ..errors import UserError
from ..files.index import Fault
from ..model.deepseek_ocr import DeepseekOCR
from ..model.generation import Answer, generate
from ..settings import Settings
from . import ablations, text_metrics

SHOWN = 4  # answers that are kept to look at
HIGHER_IS_BETTER = ("reads/", "rouge", "exact_match", "eos_rate")
NO_ROUGE = "ROUGE needs rouge-score: pip install 'deepsynth-min[eval]'"


class Ranks(Protocol):
    """What an evaluation must know of the processes: training.distributed.World is one."""

    rank: int
    size: int
    device: torch.device
    is_main: bool

    def sum(self, *values: float) -> list[float]: ...


class Evaluator:
    """A model, the rows that it never trains on, and how to score them. Call it for the figures.

    autocast: makes the context in which matrix products are computed in the run's precision.
    """

    def __init__(
        self,
        model: DeepseekOCR,
        rows: Sequence[Row],
        builder: SampleBuilder,
        world: Ranks,
        autocast: Callable[[], AbstractContextManager] = nullcontext,
    ):
        self.model, self.rows, self.builder, self.world = model, rows, builder, world
        self.autocast = autocast
        self.settings: Settings = builder.settings
        self.scorer = text_metrics.rouge_scorer()
        self.kept_answers = SHOWN
        self.allowed = ids_of(builder.tokenizer, self.settings.generation.repeat_allow)
        self.left_out: dict[int, Fault] = {}  # rows of this rank that cannot be used

    def _usable(self, chosen: Iterable[int]) -> tuple[list[int], list[Row], list[Sample]]:
        """(numbers, rows, samples) of those rows that can be used; the others are left out only if
        the settings say so. Raises RowError."""
        numbers, rows, samples = [], [], []
        for i in chosen:
            try:
                row = self.rows[i]
                samples.append(self.builder(row))
                rows.append(row)
                numbers.append(i)
            except RowError as error:
                if not self.builder.skips(error):
                    raise
                self.left_out[i] = Fault(error.where, error.reason, error.kind)
        return numbers, rows, samples

    def _loss(self, samples: list[Sample]) -> float:
        """Summed over the scored tokens of one batch."""
        batch = collate(samples, self.builder.special, pack=self.settings.optim.pack)
        with self.autocast():
            return float(self.model.loss(batch.to(self.world.device))[0])

    def _shares(self, *ends: int) -> list[range]:
        """This rank's batches of the rows 0 .. ends[-1], as row numbers."""
        size = self.settings.optim.batch_size
        return held_out_shares(ends, size, self.world.rank, self.world.size)

    def _bar(self, batches: list[range], title: str) -> Iterable[range]:
        shown = self.world.is_main and sys.stderr.isatty()
        return tqdm(batches, title, leave=False, disable=not shown, unit="batch")

    def losses(self) -> dict[str, float]:
        """Held-out loss over all rows; ablations over the first of them."""
        names = ["loss", "tokens", "samples", "text_tokens", "visual_tokens"]
        parts = ("", "/base", "/tokens")
        names += [f"{kind}{part}" for kind in ablations.ABLATIONS for part in parts]
        sums = Counter(dict.fromkeys(names, 0.0))
        ablated = min(self.settings.evaluation.ablation_samples, len(self.rows))
        partner = ablations.partners(ablated, self.settings.optim.seed) if ablated > 1 else None
        for chosen in self._bar(self._shares(ablated, len(self.rows)), "evaluating"):
            numbers, rows, samples = self._usable(chosen)
            if not samples:
                continue
            loss = self._loss(samples)
            sums.update(loss=loss, tokens=_scored(samples), samples=len(samples))
            if chosen[0] < ablated:
                others = [None if partner is None else int(partner[i]) for i in numbers]
                self._ablate(sums, rows, samples, others, loss)
        found = dict(zip(names, self.world.sum(*(sums[name] for name in names))))
        return _mean_losses(found, ablated)

    def _ablated(self, sample: Sample, kind: str, row: Row, other: int | None) -> Sample | None:
        """The sample with something else for its page; None if it has no page, or if the row
        `other`, whose pages `shuffled` takes, cannot be used."""
        if not sample.visual:
            return None
        try:
            pages_of = self.rows[other] if kind == "shuffled" and other is not None else None
            return ablations.ablate(sample, kind, row, pages_of, self.builder)
        except RowError as error:  # named when its own turn comes
            if not self.builder.skips(error):
                raise
            return None

    def _ablate(
        self,
        sums: Counter,
        rows: list[Row],
        samples: list[Sample],
        others: list[int | None],
        loss: float,
    ) -> None:
        """Adds one batch's losses with something else in the page's place to `sums`.

        others: the rows whose pages `shuffled` takes; loss: of the batch as it is.
        """
        for kind in ablations.ABLATIONS:
            changed = [
                self._ablated(sample, kind, row, other)
                for sample, row, other in zip(samples, rows, others)
            ]
            kept = [sample for sample, new in zip(samples, changed) if new is not None]
            if kept:
                base = loss if len(kept) == len(samples) else self._loss(kept)
                new = self._loss([new for new in changed if new is not None])
                sums.update({kind: new, f"{kind}/base": base, f"{kind}/tokens": _scored(kept)})
        for row, sample in zip(rows, samples):
            if row.text is not None:
                tokens = len(encode(self.builder.tokenizer, row.text))
                sums.update(text_tokens=tokens, visual_tokens=sample.visual)

    def answers(self) -> tuple[dict[str, float], list[dict]]:
        """(figures about generated answers to the first rows, a few of them; these on rank 0)."""
        count = min(self.settings.evaluation.answer_samples, len(self.rows))
        names = [
            *(text_metrics.ROUGE if self.scorer else ()),
            "cer",
            "wer",
            "cer_normalised",
            "exact_match",
            "eos_rate",
            "repetition",
        ]
        names += ["usable"]
        table = [[0.0] * len(names) for _ in range(count)]  # a row is filled in by one rank
        shown = []
        for chosen in self._bar(self._shares(count), "answering"):
            chosen, rows, samples = self._usable(chosen)
            if not rows:
                continue
            prompts = [replace(s, ids=s.ids[: s.prompt]) for s in samples]
            batch = collate(prompts, self.builder.special)
            with self.autocast():
                answers = generate(
                    self.model,
                    batch.to(self.world.device),
                    self.settings.generation,
                    self.settings.optim.seed,
                    chosen,
                    self.allowed,
                )
            for i, row, answer in zip(chosen, rows, answers):
                text = decode(self.builder.tokenizer, answer.ids)
                table[i] = [*self._compare(row.summary, text, answer), 1.0]
                if i < self.kept_answers:
                    entry = {"row": row.where, "reference": row.summary, "answer": text}
                    shown.append({"number": i, **entry, "ended": answer.ended})
        flat = self.world.sum(*(value for values in table for value in values))
        rows = [flat[i : i + len(names)] for i in range(0, len(flat), len(names))]
        columns = list(zip(*(row for row in rows if row[-1])))
        if not columns:
            return {}, []
        result = {name: mean(column) for name, column in zip(names[:-1], columns)}
        result |= {"cer_median": median(columns[names.index("cer")]), "answers": len(columns[0])}
        return result, shown

    def _compare(self, reference: str, text: str, answer: Answer) -> list[float]:
        """The figures of one answer, in the order of `names` in answers()."""
        rouge = text_metrics.rouge(self.scorer, reference, text) if self.scorer else []
        return [
            *rouge,
            text_metrics.character_error_rate(reference, text),
            text_metrics.word_error_rate(reference, text),
            text_metrics.normalised_error_rate(reference, text),
            float(text.strip() == reference.strip()),
            float(answer.ended),
            text_metrics.repetition(answer.ids),
        ]

    @torch.no_grad()
    def __call__(self) -> tuple[dict[str, float], list[dict]]:
        """(figures, answers to look at):

        loss, perplexity         nats per scored token over all held-out rows; exp of it
        reads/KIND               rise of the loss with KIND in the page's place (ablations.py)
        compression              text tokens per visual token of those documents
        rouge1, rouge2, rougeL   F1 of generated answers, if rouge-score is installed
        cer, cer_median          characters to change per character of the reference
        wer                      words to change per word of the reference
        cer_normalised           cer with case, punctuation and white space left out
        exact_match, eos_rate    share of answers equal to the reference; that ended by themselves
        repetition               share of runs of 4 tokens that came before in the same answer
        """
        was_training = self.model.training
        self.model.eval()  # no dropout in adapters
        result = self.losses()
        more, shown = self.answers()
        self.model.train(was_training)
        return result | more, shown


def _scored(samples: list[Sample]) -> int:
    """Tokens that the loss is summed over: answers with their EOS."""
    return sum(len(sample.ids) - sample.prompt for sample in samples)


def _mean_losses(sums: dict[str, float], ablated: int) -> dict[str, float]:
    """Figures from the sums over all ranks."""
    if not sums["tokens"]:
        raise UserError("no held-out row can be used; give others with --val-data")
    loss = sums["loss"] / sums["tokens"]
    result = {
        "loss": loss,
        "perplexity": math.exp(min(loss, 700.0)),
        "tokens": int(sums["tokens"]),
        "samples": int(sums["samples"]),
    }
    for kind in ablations.ABLATIONS:
        if tokens := sums[f"{kind}/tokens"]:
            result[f"reads/{kind}"] = (sums[kind] - sums[f"{kind}/base"]) / tokens
    if sums["visual_tokens"]:
        result["compression"] = sums["text_tokens"] / sums["visual_tokens"]
    return result | ({"ablated": ablated} if ablated else {})


def cost(result: dict[str, float], metric: str) -> float:
    """The figure by which checkpoints are compared, turned so that lower is better."""
    return -result[metric] if metric.startswith(HIGHER_IS_BETTER) else result[metric]


def check_metric(settings: Settings) -> None:
    """Raises UserError if --best names a figure that will not be there, or if there will be no
    evaluations for --patience to count."""
    if settings.evaluation.patience and not settings.run.eval_every:
        raise UserError("--patience: counts evaluations, and --eval-every 0 makes none on the way")
    if settings.evaluation.best.startswith("rouge") and text_metrics.rouge_scorer() is None:
        raise UserError(f"--best {settings.evaluation.best}: {NO_ROUGE}")


def check_held_out(rows: Sequence[Row], settings: Settings) -> None:
    """Raises UserError if no row is held out and a setting asks for what is measured on them."""
    chosen = settings.evaluation
    for option, given in (("--patience", chosen.patience), ("--best", chosen.best != "loss")):
        if given and not len(rows):
            raise UserError(f"{option}: nothing is held out (--val-fraction 0); give --val-data")


def describe(result: dict[str, float]) -> str:
    """The figures that are worth a line while training."""
    parts = [f"held-out loss {result['loss']:.4f} (perplexity {result['perplexity']:.2f})"]
    names = {
        "reads/shuffled": "reads/shuffled {:+.4f}",
        "reads/blank": "reads/blank {:+.4f}",
        "rougeL": "ROUGE-L {:.3f}",
        "cer": "CER {:.3f}",
        "eos_rate": "ended {:.0%}",
    }
    return ", ".join(parts + [form.format(result[n]) for n, form in names.items() if n in result])
