"""The recipe of `tiny-reader`: a model that learns to read, from nothing but random words.

    python -m deepsynth_min.tiny_reader --out DIR

In: nothing but a seed. Out: DIR/curve.jsonl, the loss and the error rates as training goes on;
DIR/checkpoints/step-NNNNNN, from the newest of which the same command goes on; at the end
DIR/model, the weights in bf16, provenance.json beside them. Each is a directory for `--model`.

The one idea: a model that has to find out by the loss of its answers alone that there are letters,
that a visual token holds some, and where to look next, learns none of it for hours. So it is taught
one after the other, in stages (curriculum.py).

What it reads, and how much of that it has never seen: random_text.py. How well: reading.py.
"""

import json
import subprocess
import sys
import time
from dataclasses import asdict, replace
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
from ..model.presets import TINY_READER_CONFIG
from ..options import change
from ..settings import Settings
from ..training import checkpoint
from ..training.distributed import Stopper, start
from ..training.optim import LossScaler, clip_and_step, make_adamw, prepare_state
from ..tuning import freeze
from .curriculum import ENDS, READS, STAGES, Stage, learning_rate, place
from .guide import Guide, copied
from .random_text import SLOTS, UNSEEN, Letters, Words, document
from .reading import READ, Reading, summarised

LOG_EVERY = 50  # steps


class Training:
    """The recipe on its way; everything it does at a step depends on (seed, step) alone."""

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
        self.asker = nn.Linear(width, SLOTS * vocabulary)
        tokenizer, config = load_tokenizer(self.tokenizer_files), self.model.config
        self.builder = SampleBuilder(change(Settings(), instruction=READ), config, tokenizer)
        self.letters = Letters(self.words, self.builder)
        self.guide = Guide(self.model)
        self.reading = Reading(self.model, self.builder, self.words)
        self.encoded: dict[int, Tensor] = {}  # documents' pages as the frozen encoder sees them
        self.facts = {"recipe": [asdict(stage) for stage in STAGES], "seed": seed}
        self.step = 0
        found = checkpoint.newest_whole(out / "checkpoints")
        if found:
            self.step = checkpoint.read_facts(found)["step"]
            print(f"going on after step {self.step} from {found}")
        self._begin_stage()
        if found:
            checkpoint.load(found, self.model, self.optimizer, self.scaler, self.facts)

    def _begin_stage(self) -> None:
        """What trains, and a new optimizer for it; no documents that have been seen."""
        self.encoded.clear()
        stage, _ = place(min(self.step, ENDS[-1] - 1))
        freeze.freeze(self.model, stage.tune)
        self.optimizer = make_adamw(self.model, (0.9, 0.98), 0.01)
        prepare_state(self.optimizer)
        self.scaler = LossScaler(False, self.world.device)
        if stage.name == "letters":
            self.asker_optimizer = torch.optim.AdamW(
                self.asker.parameters(), betas=(0.9, 0.98), fused=True
            )

    # -- steps

    def _batch(self, step: int):
        stage, end = place(step)
        numbers = range(step * 4096, step * 4096 + stage.batch)
        if stage.name == "letters":
            return [torch.stack(parts) for parts in zip(*map(self.letters.page, numbers))]
        texts = [self.words.text(n, stage.least, stage.most) for n in numbers]
        rows = [Row("random words", text, text) for text in texts]
        drawn = (step - (end - stage.steps)) * stage.documents
        chosen = [stage.first + n % stage.distinct for n in range(drawn, drawn + stage.documents)]
        rows += [summarised(document(n)) for n in chosen]
        known = (*[-1] * len(texts), *chosen)
        samples = [self.builder(row) for row in rows]
        batch = collate(samples, self.builder.special, known).packed()
        return batch, [self._looks(*pair) for pair in zip(rows, samples)] if stage.guided else []

    def _looks(self, row: Row, sample: Sample) -> list[tuple[int, list[int]]]:
        """(position that predicts a letter, visual tokens where it stands) of a sample's answer."""
        places = self.letters.places_of(row.text)
        return [
            (sample.prompt + i - 1, sorted({places[k] for k in where}))
            for i, where in copied(row.text, row.summary)
        ]

    def _asked(self, pages: Tensor) -> Tensor:
        """uint8 [N, 1, s, s] -> logits of each visual token's letters [N, rows, columns, SLOTS,
        V]."""
        tokens, _, _ = self.model._page_grid(pages)
        return self.asker(tokens).unflatten(-1, (SLOTS, -1))

    def _encoded(self, batch: Batch) -> Batch:
        """With what a frozen encoder makes of the pages; of documents that come again it is kept.

        The pages of a sample together: twice as fast as one by one, and the same at any time.
        """
        if self.model.encoder_trains:
            return batch
        stage, _ = place(self.step)
        again = stage.steps * stage.documents > stage.distinct
        counts, features = torch.tensor(batch.owners).bincount().tolist(), []
        for number, pages in zip(batch.rows, batch.pages.split(counts)):
            found = self.encoded.get(number)
            if found is None:
                with torch.no_grad():
                    found = self.model.page_features(pages, together=len(pages))
                if number >= 0 and again:
                    self.encoded[number] = found
            features.append(found)
        return replace(batch, features=torch.cat(features))

    def _train_step(self, batch) -> tuple[float, int]:
        """One optimizer step; the loss summed over label tokens, and how many there are."""
        rate, (stage, _) = learning_rate(self.step), place(self.step)
        if stage.name == "letters":
            pages, labels = batch
            count = int((labels != IGNORE).sum())
            total = F.cross_entropy(
                self._asked(pages).flatten(0, -2),
                labels.flatten(),
                ignore_index=IGNORE,
                reduction="sum",
            )
            (total / count).backward()
            clip_and_step(self.asker_optimizer, self.scaler, rate, 1.0)
            self.asker_optimizer.zero_grad(set_to_none=True)
        else:
            batch, looks = batch
            with self.guide:
                total, count = self.model.loss(self._encoded(batch))
            loss = total / count
            if any(looks):
                missed, letters = self.guide.loss(batch.lengths, looks)
                loss = loss + stage.guided * missed / letters
            loss.backward()
        clip_and_step(self.optimizer, self.scaler, rate, 1.0)
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return float(total.detach()), int(count)

    # -- how well it does

    @torch.no_grad()
    def letters_misread(self, count: int = 16) -> float:
        """Share of wrong answers of the visual tokens of unseen pages: the first stage's
        measure."""
        pages, labels = zip(*(self.letters.page(UNSEEN + n) for n in range(count)))
        labels = torch.stack(labels)
        wrong = self._asked(torch.stack(pages)).argmax(-1) != labels
        return float(wrong[labels != IGNORE].float().mean())

    def measures(self, stage: Stage) -> dict:
        if stage.name == "letters":
            return {"letters_misread": round(self.letters_misread(), 4)}
        rate, shown = self.reading.error_rate(
            stage.least, stage.most, 24 if stage.documents else 64
        )
        found = {"cer": round(rate, 4), "shown": shown}
        if self.step == READS:
            found["misread"] = self.reading.misread()
        if stage.documents:
            named, stated, summaries = self.reading.told(32)
            found |= {"named": round(named, 4), "stated": round(stated, 4)}
            found["shown"] = shown[:1] + summaries
        return found

    # -- the run

    def _log(self, **entry) -> None:
        with open(self.out / "curve.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": self.step, **entry}, ensure_ascii=False) + "\n")

    def _evaluate_and_save(self) -> None:
        """In the middle of the first stage nothing is saved: it takes minutes, and begins again."""
        stage, end = place(self.step - 1)
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
        taken = checkpoint.take(self.model, self.optimizer, self.scaler, facts, copied=False)
        checkpoint.save(self.out / "checkpoints", taken, self.model, self.tokenizer_files)
        checkpoint.prune(self.out / "checkpoints", 2, None)

    def run(self, evaluate_every: int) -> None:
        """Trains to the end of the last stage, or until SIGTERM; then writes `model`."""
        stopper, losses, counted, since = Stopper(), 0.0, 0, time.perf_counter()
        shown = sys.stderr.isatty()
        bar = tqdm(total=ENDS[-1], initial=self.step, desc="reading", disable=not shown)
        with bar:
            while self.step < ENDS[-1] and not stopper.asked:
                # Made here and not ahead: on two cores a third thread slows the products more.
                total, count = self._train_step(self._batch(self.step))
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
        named, stated, _ = self.reading.told(len(documents("val")))
        made = {
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
            (partial / "provenance.json").write_text(json.dumps(made, indent=1) + "\n")
        print(f"{self.out / 'model'}, after step {self.step}: {json.dumps(made, indent=1)}")


def commit() -> str:
    """The commit of the code at work; empty where it lies in no git repository."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()
    except OSError:  # no git
        return ""
