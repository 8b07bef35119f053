"""The recipe of `tiny-reader`: a model that learns to read, from nothing but random words.

    python -m deepsynth_min.tiny_reader --out DIR

In: nothing but a seed. Out: DIR/curve.jsonl, the loss and the character error rate as training goes
on; DIR/checkpoints/step-NNNNNN, from the newest of which the same command goes on; at the end
DIR/model, the weights in bf16 with provenance.json beside them. Each is a directory for `--model`.

The one idea: what is to be read cannot be guessed. Made-up words, numbers, and words of the
embedded training documents in no order leave nothing to lower the loss with but the page. All of
the model trains, the encoder included: first pages of 64 px, a visual token with a few letters, to
learn letters; then two lines of two tokens, to learn where to look next; then several such pages.

The text of a page also decides what it is for. A text whose checksum is a multiple of 16 is never
trained on, and the error rate is that of such texts only: they are unseen however short they are.
"""

import json
import subprocess
import sys
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path

import torch
from tqdm import tqdm

from . import checkpoint, freeze
from .config import PRESETS, exit_code
from .corpus import Draw, documents
from .data import SampleBuilder, collate
from .distributed import Stopper, start, stop
from .model import DeepseekOCR
from .optim import LossScaler, clip_and_step, make_adamw
from .options import OneLineParser
from .row import Row
from .search import generate
from .settings import GenerationSettings, Settings, change
from .text_metrics import character_error_rate
from .tokenizer import EMBEDDED, load_tokenizer

# How pages are drawn: a line of text for each row of visual tokens. The same settings make a run on
# documents draw them so.
PAGE = {"font_size": 16, "line_height": 4.0, "margin": 4}
INSTRUCTION = "Read. "
HELD_OUT = 16  # one text in so many is never trained on
UNSEEN = 2**40  # held-out texts are drawn from this number on
WARMUP, LOG_EVERY = 100, 50  # steps


@dataclass(frozen=True)
class Stage:
    """`steps` steps of `batch` samples, each of `least` to `most` characters on pages of `side` px
    (as many pages as they need), at a learning rate on a straight line from `rate` to `last`."""

    steps: int
    side: int
    least: int
    most: int
    batch: int
    rate: float
    last: float


STAGES = (
    Stage(12000, 64, 1, 6, 32, 2e-3, 2e-3),  # 3,000 were measured to be too few
    Stage(6000, 128, 1, 26, 32, 2e-3, 2e-3),
    Stage(12000, 128, 1, 120, 16, 2e-3, 1e-4),
)
ENDS = tuple(accumulate(stage.steps for stage in STAGES))


def place(step: int) -> tuple[Stage, int]:
    """The stage of a step, counted from 0, and the step after its last."""
    return next((stage, end) for stage, end in zip(STAGES, ENDS) if step < end)


def learning_rate(step: int) -> float:
    stage, end = place(step)
    left = (end - step) / stage.steps
    return (stage.last + (stage.rate - stage.last) * left) * min(1.0, (step + 1) / WARMUP)


# -- texts ----------------------------------------------------------------------------------------

_ONSETS = ("b c d f g h j k l m n p r s t v w z ch sh th br cr dr fr gr pr tr bl cl fl gl pl st sp "
           "sch qu x y ñ ç").split() + [""] * 4  # fmt: skip
_VOWELS = "a e i o u a e i o u a e i o ei au ou ie ea é è ê à â á í ó ú ä ö ü î ô y".split()
_CODAS = "n r s l t m d k g ck st nd ng x z ß f p b w".split() + [""] * 12


def made_up_word(draw: Draw) -> str:
    """One to three syllables, as it stands, capitalised or in capitals."""
    word = "".join(draw.pick(_ONSETS) + draw.pick(_VOWELS) + draw.pick(_CODAS)
                   for _ in range(1 + draw.below(3)))  # fmt: skip
    form = draw.below(10)
    return word.capitalize() if form < 4 else word.upper() if form == 4 else word


def number(draw: Draw) -> str:
    digits = "".join(draw.pick("0123456789") for _ in range(1 + draw.below(4)))
    form = draw.below(6)
    more = "".join(draw.pick("0123456789") for _ in range(3 if form == 0 else 2))
    return {0: f"{digits}{draw.pick(',.')}{more}", 1: f"{digits}{draw.pick(':.')}{more}",
            2: f"{draw.pick('£«“(-')}{digits}"}.get(form, digits)  # fmt: skip


def is_held_out(text: str) -> bool:
    return zlib.crc32(text.encode()) % HELD_OUT == 0


class Words:
    """Random texts: text n is a function of (seed, n, its least and its greatest length)."""

    def __init__(self, seed: int):
        self.seed = seed
        self.known = sorted({word for d in documents("train") for word in d.text.split()})

    def _word(self, draw: Draw) -> str:
        kind = draw.below(10)
        if 5 <= kind < 8:
            return draw.pick(self.known)  # with what punctuation it has there
        word = made_up_word(draw) if kind < 5 else number(draw)
        return word + draw.pick(".,;:!»’-") if draw.below(8) == 0 else word

    def _drawn(self, draw: Draw, least: int, most: int) -> str:
        size, text = least + draw.below(most - least + 1), ""
        while len(text) <= size:
            text += self._word(draw) + " "
        return text[:size].strip()

    def text(self, n: int, least: int, most: int) -> str:
        """From UNSEEN on the held-out texts, before it all others."""
        draw = Draw(self.seed * 2**48 + n)
        while True:
            text = self._drawn(draw, least, most)
            if text and is_held_out(text) == (n >= UNSEEN):
                return text


# -- training -------------------------------------------------------------------------------------


class Training:
    """The recipe on its way; everything it does at a step depends on (seed, step) alone."""

    def __init__(self, out: Path, seed: int, threads: int):
        self.world = start("cpu", threads)
        self.out, self.seed, self.words = out, seed, Words(seed)
        torch.manual_seed(seed)
        self.model = DeepseekOCR(PRESETS["tiny-reader"])
        freeze.freeze(self.model, "all")
        self.optimizer = make_adamw(self.model, (0.9, 0.97), 0.01)
        self.scaler = LossScaler(False, self.world.device)
        tokenizer = load_tokenizer(EMBEDDED)
        self.builders = {
            side: SampleBuilder(change(Settings(), mode=str(side), instruction=INSTRUCTION, **PAGE),
                                self.model.config, tokenizer)
            for side in {stage.side for stage in STAGES}
        }  # fmt: skip
        self.step = 0
        self.facts = {"recipe": [asdict(stage) for stage in STAGES], "seed": seed}
        if found := checkpoint.newest_whole(out / "checkpoints"):
            state = checkpoint.load(found, self.model, self.optimizer, self.scaler, self.facts)
            self.step = state["step"]
            print(f"going on after step {self.step} from {found}")

    def _batch(self, step: int):
        stage, _ = place(step)
        build = self.builders[stage.side]
        texts = [self.words.text(step * 4096 + i, stage.least, stage.most)
                 for i in range(stage.batch)]  # fmt: skip
        return collate([build(Row("random words", text, text)) for text in texts], build.special)

    def _train_step(self, batch) -> torch.Tensor:
        """One optimizer step; the loss summed over the label tokens."""
        total, count = self.model.loss(batch)
        (total / count).backward()
        clip_and_step(self.optimizer, self.scaler, learning_rate(self.step), 1.0)
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return total.detach()

    @torch.no_grad()
    def error_rate(self, stage: Stage, count: int = 64) -> tuple[float, list]:
        """(character edits per character over `count` unseen texts, four of them as read)."""
        build = self.builders[stage.side]
        texts = [self.words.text(UNSEEN + i, stage.least, stage.most) for i in range(count)]
        prompts = [build.prompt(Row("unseen words", text, text)) for text in texts]
        how = GenerationSettings(max_new_tokens=8 + stage.most)
        answers = generate(self.model, collate(prompts, build.special), how)
        read = [build.tokenizer.decode(answer.ids, skip_special_tokens=True) for answer in answers]
        edits = sum(character_error_rate(t, r) * len(t) for t, r in zip(texts, read))
        return edits / sum(map(len, texts)), list(zip(texts, read))[:4]

    def _log(self, **entry) -> None:
        with open(self.out / "curve.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": self.step, **entry}, ensure_ascii=False) + "\n")

    def _evaluate_and_save(self) -> None:
        stage, _ = place(self.step - 1)
        rate, shown = self.error_rate(stage)
        self._log(side=stage.side, most=stage.most, cer=round(rate, 4), shown=shown)
        tqdm.write(f"step {self.step}: {rate:.1%} of the characters of unseen pages misread, "
                   f"e.g. {shown[0][0]!r} as {shown[0][1]!r}")  # fmt: skip
        facts = {**self.facts, "step": self.step, "best": None, "best_metric": "cer", "stale": 0,
                 "score": rate, "unlogged": []}  # fmt: skip
        taken = checkpoint.take(self.model, self.optimizer, self.scaler, facts, copied=False)
        checkpoint.save(self.out / "checkpoints", taken, self.model, EMBEDDED)
        checkpoint.prune(self.out / "checkpoints", 2, None)

    def run(self, evaluate_every: int) -> None:
        """Trains to the end of the last stage, or until SIGTERM; then writes `model`."""
        stopper, losses, counted, since = Stopper(), 0.0, 0, time.perf_counter()
        shown = sys.stderr.isatty()
        bar = tqdm(total=ENDS[-1], initial=self.step, desc="reading", disable=not shown)
        with ThreadPoolExecutor(1) as pool, bar:
            ahead = pool.submit(self._batch, self.step) if self.step < ENDS[-1] else None
            while self.step < ENDS[-1] and not stopper.asked:
                batch = ahead.result()
                ahead = pool.submit(self._batch, min(self.step + 1, ENDS[-1] - 1))
                losses, counted = losses + float(self._train_step(batch)), counted + batch.count
                bar.update()
                if self.step % LOG_EVERY == 0:
                    seconds = time.perf_counter() - since
                    self._log(loss=round(losses / counted, 4), seconds=round(seconds, 2))
                    if not shown:
                        print(f"step {self.step} of {ENDS[-1]}: loss {losses / counted:.4f}, "
                              f"{seconds / LOG_EVERY:.2f} s a step", flush=True)  # fmt: skip
                    losses, counted, since = 0.0, 0, time.perf_counter()
                if self.step % evaluate_every == 0 or self.step in ENDS or stopper.asked:
                    self._evaluate_and_save()
                    since = time.perf_counter()
        self._write_model()

    def _write_model(self) -> None:
        """The weights in bf16, and how they came about."""
        stage, _ = place(max(0, self.step - 1))
        self.model.to(torch.bfloat16)
        rate, _ = self.error_rate(stage)
        made = {"command": f"python -m deepsynth_min.tiny_reader --out DIR --seed {self.seed}",
                "seed": self.seed, "step": self.step, "of": ENDS[-1], "commit": commit(),
                "cer": rate, "pages": asdict(stage) | PAGE, "torch": torch.__version__}  # fmt: skip
        with checkpoint.whole_directory(self.out / "model") as partial:
            checkpoint.save_model(self.model, partial, EMBEDDED)
            (partial / "provenance.json").write_text(json.dumps(made, indent=1) + "\n")
        print(f"{self.out / 'model'}: {rate:.1%} of the characters misread after step {self.step}")


def commit() -> str:
    """The commit of the code at work; empty where it lies in no git repository."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()
    except OSError:  # no git
        return ""


def run(arguments: list[str]) -> None:
    parser = OneLineParser(prog="python -m deepsynth_min.tiny_reader",
                           description="Teach the preset tiny-reader to read.")  # fmt: skip
    parser.add_argument("--out", type=Path, required=True,
                        help="directory; goes on with what is there")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of weights and words (default: 0)")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (default: all)")
    parser.add_argument("--evaluate-every", type=int, default=300,
                        help="steps between error rates, each with a checkpoint")  # fmt: skip
    given = parser.parse_args(arguments)
    given.out.mkdir(parents=True, exist_ok=True)
    Training(given.out, given.seed, given.threads).run(given.evaluate_every)


def main(arguments: list[str] | None = None) -> int:
    return exit_code(run, arguments, stop)


if __name__ == "__main__":
    sys.exit(main())
