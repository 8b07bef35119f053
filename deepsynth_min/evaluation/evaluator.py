"""Evaluation: held-out loss, page ablations, and how near generated answers are to the references.

In: a model and held-out rows. Out: one flat dictionary of figures (figures.py defines them), and
the answers.

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
from typing import Protocol

import torch
from tqdm import tqdm

from ..data.loader import held_out_shares
from ..data.row import Row, RowError, TooLong
from ..data.samples import Sample, SampleBuilder, collate
from ..data.tokenizer import decode, encode, ids_of
from ..errors import UserError, is_out_of_memory
from ..files.index import Fault
from ..model.deepseek_ocr import DeepseekOCR
from ..model.generation import Answer, generate
from ..pages import vary
from ..settings import Settings
from . import ablations, needles, text_metrics
from .figures import COUNTS, answer_figures

MEANS = ("cer", "wer", "cer_normalised", "precision", "exact_match", "eos_rate", "repetition")
MEASURED = (*MEANS, *COUNTS)  # of every answer
SIZES = ("prompt_tokens", "pages", "text_tokens", "characters", "visual_tokens")


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
        self.allowed = ids_of(builder.tokenizer, self.settings.generation.repeat_allow)
        self.left_out: dict[int, Fault] = {}  # rows of this rank that cannot be used
        self.unseen = vary.parse(self.settings.evaluation.unseen_style, "--unseen-style")
        vary.check(self.unseen, builder.style, "--unseen-style")
        vary.check_unseen(self.unseen, builder.varied, builder.style)
        self.kinds = (*ablations.ABLATIONS, *(["unseen_style"] if self.unseen else []))

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
        return sum(in_halves(samples, self._loss_at_once))

    def _loss_at_once(self, samples: list[Sample]) -> list[float]:
        batch = collate(samples, self.builder.special, pack=self.settings.optim.pack)
        with self.autocast():
            return [float(self.model.loss(batch.to(self.world.device))[0])]

    def _shares(self, *ends: int) -> list[range]:
        """This rank's batches of the rows 0 .. ends[-1], as row numbers."""
        size = self.settings.optim.batch_size
        return held_out_shares(ends, size, self.world.rank, self.world.size)

    def _bar(self, batches: list[range], title: str) -> Iterable[range]:
        shown = self.world.is_main and sys.stderr.isatty()
        return tqdm(batches, title, leave=False, disable=not shown, unit="batch")

    def losses(self) -> dict[str, float]:
        """Held-out loss over all rows; ablations over the first of them."""
        names = ["loss", "tokens", "samples", *SIZES]
        parts = ("", "/base", "/tokens")
        names += [f"{kind}{part}" for kind in self.kinds for part in parts]
        sums = Counter(dict.fromkeys(names, 0.0))
        ablated = min(self.settings.evaluation.ablation_samples, len(self.rows))
        partner = ablations.partners(ablated, self.settings.optim.seed) if ablated > 1 else None
        for chosen in self._bar(self._shares(ablated, len(self.rows)), "evaluating"):
            numbers, rows, samples = self._usable(chosen)
            if not samples:
                continue
            loss = self._loss(samples)
            sums.update(loss=loss, tokens=_scored(samples), samples=len(samples))
            sums.update(self._sizes(rows, samples))
            if self.unseen:
                self._restyle(sums, numbers, rows, samples)
            if chosen[0] < ablated:
                others = [None if partner is None else int(partner[i]) for i in numbers]
                self._ablate(sums, rows, samples, others, loss)
        found = dict(zip(names, self.world.sum(*(sums[name] for name in names))))
        return _mean_losses(found, ablated, self.kinds)

    def _restyle(
        self, sums: Counter, numbers: list[int], rows: list[Row], samples: list[Sample]
    ) -> None:
        """Adds one batch's losses on pages in styles that training never draws to `sums`; rows that
        fit into the context in both styles count."""
        seed, pairs = self.settings.optim.seed, []
        for number, row, sample in zip(numbers, rows, samples):
            if row.text is None:
                continue
            try:
                new = self.builder(row, vary.draw(self.unseen, seed, number, "unseen"))
            except RowError as error:
                if not isinstance(error, TooLong) and not self.builder.skips(error):
                    raise
                continue
            if not (sample.truncated or new.truncated):
                pairs.append((sample, new))
        if pairs:
            kept, new = map(list, zip(*pairs))
            tokens = _scored(kept)
            sums["unseen_style"] += self._loss(new)
            sums["unseen_style/base"] += self._loss(kept)
            sums["unseen_style/tokens"] += tokens

    def _ablated(self, sample: Sample, kind: str, row: Row, other: int | None) -> Sample | None:
        """The sample with something else for its page; None if it has no page, or if the row
        `other`, whose pages `shuffled` takes, cannot be used."""
        if not len(sample.pages):
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

    def _sizes(self, rows: list[Row], samples: list[Sample]) -> Counter:
        """SIZES of one batch; texts and what they cost of those rows that have one."""
        found = Counter()
        for row, sample in zip(rows, samples):
            found.update(prompt_tokens=sample.prompt, pages=len(sample.pages))
            if row.text is not None:
                tokens = len(encode(self.builder.tokenizer, row.text))
                found.update(
                    text_tokens=tokens, characters=len(row.text), visual_tokens=sample.visual
                )
        return found

    def answers(self) -> tuple[dict[str, float], list[dict]]:
        """(figures about generated answers to the first rows, the answers of this rank)."""
        count = min(self.settings.evaluation.answer_samples, len(self.rows))
        names = [*text_metrics.ROUGE, *MEASURED, *needles.PLACE, "usable"]
        table = [[0.0] * len(names) for _ in range(count)]  # a row is filled in by one rank
        found = []
        for chosen in self._bar(self._shares(count), "answering"):
            chosen, rows, samples = self._usable(chosen)
            if not rows:
                continue
            prompts = [replace(s, ids=s.ids[: s.prompt]) for s in samples]
            answers = in_halves(list(zip(chosen, prompts)), self._answer)
            for i, row, answer in zip(chosen, rows, answers):
                text = decode(self.builder.tokenizer, answer.ids)
                scores = self._compare(row, text, answer)
                table[i] = [scores[name] for name in names]
                entry = {"number": i, "row": row.where, "reference": row.summary, "answer": text}
                entry |= {"instruction": row.instruction} if row.instruction else {}
                found.append({**entry, "ended": answer.ended, "cer": scores["cer"]})
        flat = self.world.sum(*(value for values in table for value in values))
        rows = [flat[i : i + len(names)] for i in range(0, len(flat), len(names))]
        columns = dict(zip(names, zip(*(row for row in rows if row[-1]))))
        if not columns:
            return {}, []
        del columns["usable"]
        places = list(zip(*(columns.pop(name) for name in needles.PLACE)))
        by_place = needles.accuracy(places, columns["exact_match"])
        return answer_figures(columns) | by_place, found

    def _answer(self, numbered: list[tuple[int, Sample]]) -> list[Answer]:
        """Answers to prompts, each with the number of its row, all of them at once."""
        numbers, prompts = zip(*numbered)
        batch = collate(prompts, self.builder.special).to(self.world.device)
        settings = self.settings.generation, self.settings.optim.seed
        with self.autocast():
            return generate(self.model, batch, *settings, list(numbers), self.allowed)

    def _compare(self, row: Row, text: str, answer: Answer) -> dict[str, float]:
        """The numbers of one answer: ROUGE, MEASURED, where its fact stands."""
        return {
            **text_metrics.compared(row.summary, text),
            **dict(zip(needles.PLACE, row.needle or (0.0, 0))),
            "eos_rate": float(answer.ended),
            "repetition": text_metrics.repetition(answer.ids),
            "usable": 1.0,
        }

    @torch.no_grad()
    def __call__(self) -> tuple[dict[str, float], list[dict]]:
        """(figures, answers of this rank).

        Figures are named and defined in figures.py; NAME_low and NAME_high are the ends of the 95 %
        interval of NAME. An answer: number and name of its row, reference, answer, whether it ended
        by itself, its character error rate.
        """
        was_training = self.model.training
        self.model.eval()  # no dropout in adapters
        result = self.losses()
        more, answers = self.answers()
        self.model.train(was_training)
        return result | more, answers


def _scored(samples: list[Sample]) -> int:
    """Tokens that the loss is summed over: answers with their EOS."""
    return sum(len(sample.ids) - sample.prompt for sample in samples)


def in_halves(items: list, act: Callable[[list], list]) -> list:
    """act(items); where memory ends, of the first half and then of the second."""
    try:
        return act(items)
    except (RuntimeError, MemoryError) as error:
        if len(items) < 2 or not is_out_of_memory(error):
            raise
    half = len(items) // 2
    return [*in_halves(items[:half], act), *in_halves(items[half:], act)]


def _mean_losses(sums: dict[str, float], ablated: int, kinds: Iterable[str]) -> dict[str, float]:
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
    for kind in kinds:
        if tokens := sums[f"{kind}/tokens"]:
            result[f"reads/{kind}"] = (sums[kind] - sums[f"{kind}/base"]) / tokens
    if visual := sums["visual_tokens"]:
        result["compression"] = sums["text_tokens"] / visual
        result["characters_per_token"] = sums["characters"] / visual
    result["prompt_tokens"] = sums["prompt_tokens"] / sums["samples"]
    result["pages"] = int(sums["pages"])
    return result | ({"ablated": ablated} if ablated else {})


def check_patience(settings: Settings) -> None:
    """Raises UserError if there will be no evaluations for --patience to count."""
    if settings.evaluation.patience and not settings.run.eval_every:
        raise UserError("--patience: counts evaluations, and --eval-every 0 makes none on the way")


def check_held_out(rows: Sequence[Row], settings: Settings) -> None:
    """Raises UserError if no row is held out and a setting asks for what is measured on them."""
    chosen = settings.evaluation
    for option, given in (("--patience", chosen.patience), ("--best", chosen.best != "loss")):
        if given and not len(rows):
            raise UserError(f"{option}: nothing is held out (--val-fraction 0); give --val-data")
