"""The recipe of `tiny-reader`: a model that learns to read, from nothing but random words.

    python -m deepsynth_min.tiny_reader --out DIR

In: nothing but a seed. Out: DIR/curve.jsonl, the loss and the error rates as training goes on;
DIR/checkpoints/step-NNNNNN, from the newest of which the same command resumes; at the end
DIR/model, the weights in bf16, provenance.json beside them. Each is a directory for `--model`.

The one idea: a model that has to find out by the loss of its answers alone that there are letters,
that a visual token holds some, and where to look next, learns none of it for hours. So it learns
one after the other, in the stages of a curriculum (curriculum.py).

What it reads, and how much of that it has never seen: random_text.py. How well: reading.py.
"""

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from ..corpus.documents import documents
from ..data.row import Row
from ..data.samples import Sample, SampleBuilder, collate
from ..data.tokenizer import letter_tokenizer, load_tokenizer, tokenizer_files
from ..files.disk import whole_directory
from ..model.batch import Batch
from ..model.deepseek_ocr import DeepseekOCR
from ..model.loss import IGNORE
from ..model.shape.presets import TINY_READER_CONFIG
from ..options import change
from ..settings import Settings
from ..training import checkpoint
from ..training.distributed import start
from ..training.optim import LossScaler, clip_and_step, make_adamw, prepare_state
from ..training.stopping import Stopper
from ..tuning import freeze
from .curriculum import ENDS, READS, STAGES, Stage, learning_rate, stage_at
from .guide import Guide, Targets, copied
from .random_text import SLOTS, UNSEEN, Letters, Words, document
from .reading import READ, Reading, summary_row

LOG_EVERY = 50  # steps

# What a step trains on. Of the first stage: pages [N, 1, s, s] and labels [N, rows, columns,
# SLOTS]; of the others: a batch and, where two heads are guided, each sample's targets.
StepData = tuple[Tensor, Tensor] | tuple[Batch, list[Targets]]


class Training:
    """A run of the recipe; everything it does at a step depends on (seed, step) alone.

    threads: of the CPU; 0: as many as there are cores. Resumes from the newest checkpoint in `out`.
    """

    def __init__(self, out: Path, seed: int, threads: int):
        self.world = start("cpu", threads)
        self.out, self.seed, self.words = out, seed, Words(seed)
        self.tokenizer_files = out / "tokenizer"
        self.tokenizer_files.mkdir(parents=True, exist_ok=True)
        for name, content in tokenizer_files(letter_tokenizer()).items():
            (self.tokenizer_files / name).write_text(content, encoding="utf-8")
        torch.manual_seed(seed)
        self.model = DeepseekOCR(TINY_READER_CONFIG)
        width, vocabulary = self.model.lm_head.in_features, self.model.lm_head.out_features
        self.letter_head = nn.Linear(width, SLOTS * vocabulary)  # of the first stage alone
        tokenizer, config = load_tokenizer(self.tokenizer_files), self.model.config
        self.builder = SampleBuilder(change(Settings(), instruction=READ), config, tokenizer)
        self.letters = Letters(self.words, self.builder)
        self.guide = Guide(self.model)
        self.reading = Reading(self.model, self.builder, self.words)
        self.features: dict[int, Tensor] = {}  # of documents' pages, from the frozen encoder
        self.facts = {"recipe": [stage.as_stored() for stage in STAGES], "seed": seed}
        self.step = 0
        found = checkpoint.newest_whole(out / "checkpoints")
        if found:
            self.step = checkpoint.read_facts(found)["step"]
            print(f"going on after step {self.step} from {found}")
        self._begin_stage()
        if found:
            checkpoint.load(found, self.model, self.optimizer, self.scaler, self.facts)

    def _begin_stage(self) -> None:
        """Freezes what does not train, makes a new optimizer, forgets the kept features."""
        self.features.clear()
        stage, _ = stage_at(min(self.step, ENDS[-1] - 1))
        freeze.freeze(self.model, stage.tune)
        self.optimizer = make_adamw(self.model, (0.9, 0.98), 0.01)
        prepare_state(self.optimizer)
        self.scaler = LossScaler(False, self.world.device)
        if stage.name == "letters":
            self.letter_head_optimizer = torch.optim.AdamW(
                self.letter_head.parameters(), betas=(0.9, 0.98), fused=True
            )

    # -- steps

    def _data(self, step: int) -> StepData:
        stage, end = stage_at(step)
        numbers = range(step * 4096, step * 4096 + stage.batch)
        if stage.name == "letters":
            pages, labels = zip(*map(self.letters.page, numbers))
            return torch.stack(pages), torch.stack(labels)
        texts = [self.words.text(n, stage.min_chars, stage.max_chars) for n in numbers]
        rows = [Row("random words", text, text) for text in texts]
        used = (step - (end - stage.steps)) * stage.documents  # in the stage's steps so far
        order = range(used, used + stage.documents)
        chosen = [stage.first_document + n % stage.distinct for n in order]
        rows += [summary_row(document(n)) for n in chosen]
        row_numbers = (*[-1] * len(texts), *chosen)  # -1: random words, which never come again
        samples = [self.builder(row) for row in rows]
        batch = collate(samples, self.builder.special, row_numbers).packed()
        if not stage.guide_weight:
            return batch, []
        return batch, [self._targets(row, sample) for row, sample in zip(rows, samples)]

    def _targets(self, row: Row, sample: Sample) -> Targets:
        """(position that predicts a letter, visual tokens where it stands) of a sample's answer."""
        positions = self.letters.visual_positions(row.text)
        return [
            (sample.prompt + i - 1, sorted({positions[k] for k in sources}))
            for i, sources in copied(row.text, row.summary)
        ]

    def _letter_logits(self, pages: Tensor) -> Tensor:
        """uint8 [N, 1, s, s] -> [N, rows, columns, SLOTS, V], of each visual token's letters."""
        tokens, _, _ = self.model._page_grid(pages)
        return self.letter_head(tokens).unflatten(-1, (SLOTS, -1))

    def _with_features(self, batch: Batch) -> Batch:
        """The batch with the frozen encoder's features; those of documents that come again are
        kept.

        The pages of a sample together: twice as fast as one by one, and the same at any time.
        """
        if self.model.encoder_trains:
            return batch
        stage, _ = stage_at(self.step)
        come_again = stage.steps * stage.documents > stage.distinct
        counts, features = torch.tensor(batch.owners).bincount().tolist(), []
        for number, pages in zip(batch.rows, batch.pages.split(counts)):
            found = self.features.get(number)
            if found is None:
                with torch.no_grad():
                    found = self.model.page_features(pages, together=len(pages))
                if number >= 0 and come_again:
                    self.features[number] = found
            features.append(found)
        return replace(batch, features=torch.cat(features))

    def _train_step(self, data: StepData) -> tuple[float, int]:
        """One optimizer step; the loss summed over label tokens, and how many there are."""
        rate, (stage, _) = learning_rate(self.step), stage_at(self.step)
        if stage.name == "letters":
            pages, labels = data
            count = int((labels != IGNORE).sum())
            total = F.cross_entropy(
                self._letter_logits(pages).flatten(0, -2),
                labels.flatten(),
                ignore_index=IGNORE,
                reduction="sum",
            )
            (total / count).backward()
            clip_and_step(self.letter_head_optimizer, self.scaler, rate, 1.0)
            self.letter_head_optimizer.zero_grad(set_to_none=True)
        else:
            batch, targets = data
            with self.guide:
                total, count = self.model.loss(self._with_features(batch))
            loss = total / count
            if any(targets):
                guide_loss, letters = self.guide.loss(batch.lengths, targets)
                loss = loss + stage.guide_weight * guide_loss / letters
            loss.backward()
        clip_and_step(self.optimizer, self.scaler, rate, 1.0)
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return float(total.detach()), int(count)

    # -- measures

    @torch.no_grad()
    def letters_misread(self, count: int = 16) -> float:
        """Share of wrong letters of the visual tokens of `count` unseen pages: the measure of the
        first stage."""
        pages, labels = zip(*(self.letters.page(UNSEEN + n) for n in range(count)))
        labels = torch.stack(labels)
        wrong = self._letter_logits(torch.stack(pages)).argmax(-1) != labels
        return float(wrong[labels != IGNORE].float().mean())

    def measures(self, stage: Stage) -> dict[str, object]:
        """What curve.jsonl shows of the model in this stage."""
        if stage.name == "letters":
            return {"letters_misread": round(self.letters_misread(), 4)}
        rate, shown = self.reading.error_rate(
            stage.min_chars, stage.max_chars, 24 if stage.documents else 64
        )
        found = {"cer": round(rate, 4), "shown": shown}
        if self.step == READS:
            found["misread"] = self.reading.misread()
        if stage.documents:
            named, stated, summaries = self.reading.summary_accuracy(32)
            found |= {"named": round(named, 4), "stated": round(stated, 4)}
            found["shown"] = shown[:1] + summaries
        return found

    # -- the run

    def _log(self, **entry: object) -> None:
        with open(self.out / "curve.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": self.step, **entry}, ensure_ascii=False) + "\n")

    def _evaluate_and_save(self) -> None:
        """In the middle of the first stage nothing is saved: it takes minutes, and begins again."""
        stage, end = stage_at(self.step - 1)
        found = self.measures(stage)
        self._log(stage=stage.name, **found)
        tqdm.write(f"step {self.step}, {stage.name}: {json.dumps(found, ensure_ascii=False)}")
        if self.step == end:
            self._begin_stage()
        elif stage.name == "letters":
            return
        facts = {
            **self.facts,
            "step": self.step,
            "best": None,
            "best_metric": "cer",
            "stale": 0,
            "score": None,
            "unlogged": [],
        }
        taken = checkpoint.take_snapshot(
            self.model, self.optimizer, self.scaler, facts, copied=False
        )
        checkpoint.save(self.out / "checkpoints", taken, self.model, self.tokenizer_files)
        checkpoint.prune(self.out / "checkpoints", 2, None)

    def run(self, evaluate_every: int) -> None:
        """Trains to the end of the last stage, or until a signal; then writes `model`.

        evaluate_every: steps between measures, each with a checkpoint.
        """
        losses, counted, since = 0.0, 0, time.perf_counter()
        shown = sys.stderr.isatty()
        bar = tqdm(total=ENDS[-1], initial=self.step, desc="reading", disable=not shown)
        with bar, Stopper() as stopper:
            while self.step < ENDS[-1] and not stopper.asked:
                # Made here and not ahead: on two cores a third thread slows the products more.
                total, count = self._train_step(self._data(self.step))
                losses, counted = losses + total, counted + count
                bar.update()
                if self.step % LOG_EVERY == 0:
                    seconds = time.perf_counter() - since
                    self._log(loss=round(losses / counted, 4), seconds=round(seconds, 2))
                    if not shown:
                        print(
                            f"step {self.step} of {ENDS[-1]}: loss {losses / counted:.4f}, "
                            f"{seconds / LOG_EVERY:.2f} s a step",
                            flush=True,
                        )
                    losses, counted, since = 0.0, 0, time.perf_counter()
                if self.step % evaluate_every == 0 or self.step in ENDS or stopper.asked:
                    self._evaluate_and_save()
                    since = time.perf_counter()
        self._write_model()

    def _write_model(self) -> None:
        """The weights in bf16, and how they came about."""
        self.model.to(torch.bfloat16).float()  # measured as it will be stored
        misread = self.reading.misread()
        named, stated, _ = self.reading.summary_accuracy(len(documents("val")))
        provenance = {
            "command": f"python -m deepsynth_min.tiny_reader --out DIR --seed {self.seed}",
            "seed": self.seed,
            "step": self.step,
            "of": ENDS[-1],
            "commit": commit(),
            "misread": misread,
            "summaries": {
                "persons and towns of 256 unseen documents' summaries named": named,
                "capitalised words and numbers that stand in the document": stated,
            },
            "torch": torch.__version__,
        }
        self.model.to(torch.bfloat16)
        with whole_directory(self.out / "model") as partial:
            checkpoint.save_model(self.model, partial, self.tokenizer_files)
            (partial / "provenance.json").write_text(json.dumps(provenance, indent=1) + "\n")
        print(f"{self.out / 'model'}, after step {self.step}: {json.dumps(provenance, indent=1)}")


def commit() -> str:
    """The commit of this code; empty where it lies in no git repository."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()
    except OSError:  # no git
        return ""
