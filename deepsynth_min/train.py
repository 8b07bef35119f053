"""The loop, and nothing else: batches -> loss -> gradients -> parameters -> checkpoints.

    python -m deepsynth_min.train [--setting value ...]
    torchrun --standalone --nproc-per-node N -m deepsynth_min.train [--setting value ...]

The one idea: one global step is the same whatever it is divided into. Its loss is the sum over its
label tokens divided by their number, counted over all ranks and micro-steps before the first
backward, so that ranks x micro-steps x samples may be shifted at will.
"""

import json
import sys
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from . import settings as settings_
from .data.augment import MIRRORED, augment_batch, check as check_augment
from .data.loader import Loader
from .data.order import Order
from .data.rows import open_rows, pinned
from .data.samples import SampleBuilder
from .data.tokenizer import load_tokenizer
from .errors import UserError, exit_code
from .evaluation import ablations
from .evaluation.evaluator import NO_ROUGE, Evaluator, check_metric, cost, describe
from .files.disk import write_text
from .model.deepseek_ocr import summary_table
from .model.presets import PRESETS
from .options import change
from .pages.modes import page_side
from .publish import upload as hub
from .publish.official import stage_for_hub
from .reports.sinks import check_sinks
from .settings import Settings
from .training import checkpoint, compile as compiling, feature_cache as features, shard
from .training.build import build_model, keep_preset, load_run_model, resolve
from .training.distributed import (
    GradientReducer,
    Stopper,
    World,
    barrier,
    broadcast_text,
    check_same_parameters,
    let_first_speak,
    start,
    stop,
    with_lost_ranks,
)
from .training.metrics import Meter
from .training.optim import LossScaler, clip_and_step, cosine_rate, make_adamw, total_norm
from .training.precision import autocast, set_parameter_types
from .training.run_directory import RunDirectory, default_name, warn
from .training.saving import Saving
from .tuning import freeze


class Training:
    """One run: what the loop works on, and the few things it does besides stepping."""

    def __init__(self, settings: Settings):
        self.world = world = start(settings.run.device, settings.run.threads, settings.run.timeout)
        name = settings.run.out or broadcast_text(world, default_name(settings.model.model))
        self.directory = RunDirectory(name, settings.run.resume)
        page_side(settings.model.mode, 64)  # a wrong mode should not wait for the rest
        settings = self._pinned(settings)
        rows, self.held_out = open_rows(settings.data, settings.optim.seed, world.is_main)
        rooms = (features.check, shard.check, compiling.check)
        for check in (check_metric, check_augment, check_sinks, *rooms):
            check(settings)
        self.settings = settings = resolve(change(settings, out=name), len(rows), world.size)
        self.rows = rows
        self.sharded = settings.optim.shard and world.size > 1
        self.built_on = torch.device("cpu") if self.sharded else world.device
        self.model, self.base = build_model(settings, self.built_on, self.directory.path)
        tokenizer = load_tokenizer(self.base)
        self.builder = SampleBuilder(settings, self.model.config, tokenizer)
        self.builder(rows[0])  # a page setting that cannot work is found before anything is written
        self.policy = freeze.freeze(self.model, settings.model.tune)
        optim = settings.optim
        if self.sharded:  # the twin is what evaluates; without shards it is the model itself
            self.twin = shard.shard(self.model, world, settings)
        else:
            set_parameter_types(self.model, optim.precision, optim.weights)
            self.twin = self.model
        self.evaluator = Evaluator(
            self.twin,
            self.held_out,
            self.builder,
            world,
            partial(autocast, world.device, optim.precision),
        )
        self.optimizer = make_adamw(
            self.model,
            (optim.beta1, optim.beta2),
            optim.weight_decay,
            settings.adapter.lora_plus_ratio,
            optim.optimizer,
            optim.seed,
        )
        self.scaler = LossScaler(optim.precision == "fp16", world.device)
        self.saving = Saving(
            self.directory,
            world,
            settings.run,
            self.model,
            self.twin,
            self.base,
            self.optimizer,
            self.scaler,
        )
        self.step, self.best, self.unlogged = 0, None, []
        self.stale = 0  # evaluations since the best
        self.facts = {
            "global_batch": optim.batch_size * optim.accumulate * world.size,
            "seed": optim.seed,
            "rows": len(rows),
            "bucket": settings.data.bucket,
            "tune": settings.model.tune,
            "mode": settings.model.mode,
            "data": rows.signature(),
        }
        self._resume()
        freeze.check_start(self.model, self.optimizer, self.policy)
        check_same_parameters(world, dict(self.model.named_parameters()))
        self.frozen = freeze.fingerprint(self.model)
        self.trainable = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        kind = torch.bfloat16 if optim.reduce == "bf16" else None
        self.model.recompute = optim.checkpoint_layers
        if optim.compile:
            compiling.compile_parts(self.model, optim.precision)
        self.cache = None
        if settings.data.feature_cache != "off":
            self.cache = features.FeatureCache(settings, self.model, world.device, world.size, warn)
        alone = World(0, 1, world.device)  # shards have been summed already
        self.reducer = GradientReducer(
            alone if self.sharded else world, list(self.trainable.values()), kind
        )
        self.audited = False
        barrier(world)  # every rank has looked at --out before rank 0 writes to it
        if world.is_main:
            self._announce()

    def _pinned(self, settings: Settings) -> Settings:
        """A data set on the hub stays at one commit: of this run's start, the same on all ranks."""
        before = self.directory.before
        data = pinned(settings.data, before and before.data)
        commits = broadcast_text(self.world, f"{data.data_revision} {data.val_revision}")
        return change(settings, **dict(zip(("data_revision", "val_revision"), commits.split(" "))))

    def _resume(self) -> None:
        resume, found = self.settings.run.resume, ""
        if self.world.is_main:  # reads every byte of a checkpoint, to see that it is whole
            found = str(self.directory.resume_from(resume) or "")
        found = broadcast_text(self.world, found)
        if found:
            path = Path(found)
            how = {"restore": partial(shard.restore_shards, self.twin)} if self.sharded else {}
            state = checkpoint.load(
                path, self.model, self.optimizer, self.scaler, self.facts, **how
            )
            self.step, self.unlogged = state["step"], state["unlogged"]
            if self.step > self.settings.optim.max_steps:
                raise UserError(
                    f"{found}: step {self.step} is beyond --max-steps "
                    f"{self.settings.optim.max_steps}"
                )
            if state["best_metric"] == self.settings.evaluation.best:
                self.best, self.stale = state["best"], state["stale"]
            self.saving.going_on_from(path, self.step)
        if self.world.is_main and resume != "none":
            print(
                f"resuming after step {self.step} from {found}"
                if found
                else f"{self.directory.path}: no checkpoint to go on from; starting afresh"
            )
            self.directory.go_on_after(self.step if found else -1)

    def _announce(self) -> None:
        self.directory.create(self.settings)
        if self.model.adapter is not None and self.model.adapter.base is None:
            keep_preset(self.model, self.settings, self.built_on, self.directory.path)
        self.directory.save_previews(self.held_out, self.builder)
        s = self.settings
        print(
            f"{s.model.model} on {s.data.data}: {len(self.rows):,} training rows, "
            f"{len(self.held_out):,} held-out rows scored; pages of {self.builder.side} px"
        )
        if s.model.model in PRESETS:
            print("the weights are random: a preset is for trying out, not a trained model")
        if s.augment.augment and s.augment.augment_flip:
            print(f"warning: {MIRRORED}")
        print(f"\n{summary_table(self.model)}\ntrained: {s.model.tune}\n")
        print(
            f"{s.optim.max_steps:,} steps of {self.facts['global_batch']} samples, "
            f"{self.world.size} process(es) on {self.world.device.type}; "
            f"run directory: {self.directory.path}"
        )

    def train_step(self, batches, count: float) -> tuple[torch.Tensor, torch.Tensor, float]:
        """One optimizer step; returns (this rank's summed loss, gradient norm, count).

        count: label tokens of the whole global step, over all ranks and micro-steps.
        """
        optim, world = self.settings.optim, self.world
        # Dropout depends on the step and the rank alone, so that resuming needs no generator state.
        place = (optim.seed * 1_000_003 + self.step) * 65_536 + world.rank
        torch.manual_seed(place % 2**63)
        loss_sum = torch.zeros((), device=world.device)
        for number, batch in enumerate(batches, 1):
            batch = self._augmented(batch.to(world.device), number - 1)
            self.reducer.armed = number == len(batches)
            with autocast(world.device, optim.precision):
                batch = batch if self.cache is None else self.cache.fill(batch)
                loss, _, balance = self.model.loss_terms(batch, optim.balance > 0)
            target = loss / count
            if balance is not None:
                target = target + optim.balance * balance / self.facts["global_batch"]
            (target * self.scaler.scale).backward()
            loss_sum += loss.detach()
        self.reducer.finish()
        if not self.audited:
            self._audit_gradients()
        norm = clip_and_step(self.optimizer, self.scaler, self.rate(self.step), optim.clip)
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return loss_sum, norm, count

    def _augmented(self, batch, micro: int):
        """What a page becomes depends on where its sample stands in the run, on nothing else."""
        settings, world = self.settings, self.world
        size = settings.optim.batch_size * world.size
        first = self.step * self.facts["global_batch"] + micro * size + world.rank
        paper = 0.0 if settings.page.invert else 255.0
        return augment_batch(
            batch,
            settings.augment,
            settings.optim.seed,
            range(first, first + size, world.size),
            paper,
        )

    def rate(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        optim = self.settings.optim
        return cosine_rate(step, optim.max_steps, optim.lr, optim.warmup_ratio, optim.min_lr_ratio)

    def _audit_gradients(self) -> None:
        """After the first backward; with fp16, after the first one that did not overflow."""
        total = total_norm([p.grad for p in self.trainable.values()])
        if not self.scaler.enabled or total.isfinite():
            names = list(self.trainable)
            without = {names[i] for i in self.reducer.without_gradient()}
            freeze.check_gradients(self.model, self.policy, without)
            self.audited = True

    def _check_skips(self) -> None:
        """Ends a run in which step after step is skipped; the rows they had are written down."""
        row, most = int(self.scaler.row), self.settings.run.max_skips
        if row < most:
            return
        order = Order(
            self.rows, self.facts["seed"], self.facts["global_batch"], self.facts["bucket"]
        )
        rows = {step: order.step(step) for step in range(self.step - row, self.step)}
        path = self.directory.path / "skipped.json"
        if self.world.is_main:
            where = {step: [self.rows[i].where for i in chosen] for step, chosen in rows.items()}
            write_text(path, json.dumps(where, indent=1))
        raise RuntimeError(
            f"{row} steps in a row had a loss or gradient that is not finite and were "
            f"skipped; the rows they were made of: {path}"
        )

    def evaluate(self) -> dict[str, float]:
        with shard.filled(self.twin, self.model):
            result, shown = self.evaluator()
        if self.world.is_main:
            self.directory.log("eval", step=self.step, **result)
            self.directory.log("answers", step=self.step, shown=shown)
            self.directory.write_report()
            tqdm.write(f"step {self.step:>6}: {describe(result)}")
        return result

    def _is_best(self, result: dict[str, float]) -> bool:
        """Whether this evaluation is the best one so far; counts those since."""
        score = cost(result, self.settings.evaluation.best)
        better = self.best is None or score < self.best
        self.best, self.stale = (score, 0) if better else (self.best, self.stale + 1)
        return better

    @property
    def finished(self) -> bool:
        """All steps are done, or --patience is at its end."""
        patience = self.settings.evaluation.patience
        return self.step >= self.settings.optim.max_steps or 0 < patience <= self.stale

    def save(self, result: dict[str, float] | None, is_best: bool, meter: Meter) -> None:
        """A checkpoint of the present step; `result` is its evaluation, if there was one."""
        metric = self.settings.evaluation.best
        self.saving.save(
            {
                "step": self.step,
                **self.facts,
                "best": self.best,
                "best_metric": metric,
                "stale": self.stale,
                "score": result and cost(result, metric),
                "unlogged": meter.unlogged(),
            },
            is_best,
        )

    def run(self) -> None:
        settings, world, stopper = self.settings, self.world, Stopper()
        steps, every = settings.optim.max_steps, settings.run
        loader = Loader(
            self.rows,
            self.builder,
            settings,
            world.rank,
            world.size,
            self.step,
            *([] if self.cache is None else [features.keyed]),
        )
        meter = Meter(world, self.directory, self.facts["global_batch"], len(self.rows))
        last = self.evaluate() if self.step == 0 else None
        shown = world.is_main and sys.stderr.isatty()
        bar = tqdm(total=steps, initial=self.step, desc="training", unit="step", disable=not shown)
        meter.start(self.unlogged)
        failed, refused = 0, None
        try:
            while not self.finished:
                batches, refused = self._next(meter, loader)
                count, stopping, failed = world.sum(
                    sum(b.count for b in batches), stopper.asked, refused is not None
                )
                if stopping or failed:
                    break
                meter.add(*self.train_step(batches, count), batches)
                bar.update()
                done = self.step == steps
                if done or self.step % every.log_every == 0:
                    loss = meter.log(self.step, self.rate(self.step - 1), self.scaler)
                    bar.set_postfix(loss=f"{loss:.3f}")
                    if world.is_main and not shown:  # a log file wants lines, not a bar
                        print(f"step {self.step:>6} of {steps}: loss {loss:.4f}", flush=True)
                    self._check_skips()
                evaluated = done or _due(self.step, every.eval_every)
                is_best = False
                if evaluated:
                    last = meter.paused(self.evaluate)
                    is_best = self._is_best(last)
                if self.finished or is_best or _due(self.step, every.save_every):
                    result = last if evaluated else None
                    meter.paused(lambda: self.save(result, is_best, meter))
                if _due(self.step, every.check_every):
                    meter.paused(lambda: check_same_parameters(world, self.trainable))
        finally:
            bar.close()
            loader.close()
            if self.cache is not None:
                self.cache.close()
        if not self.finished and self.step and self.saving.tried != self.step:
            self.save(None, False, meter)
        self.saving.wait()
        if failed:  # on this rank or on another
            raise refused or SystemExit(2)
        freeze.check_end(self.model, self.frozen)
        if world.is_main:
            self._conclude(last)
        barrier(world)  # no process leaves while another still talks to it

    @staticmethod
    def _next(meter: Meter, loader: Loader):
        """(the next step's batches, None), or ([], the error) for a row that cannot be used."""
        try:
            return meter.waiting(loader.__next__), None
        except UserError as error:
            return [], error

    def _conclude(self, last: dict | None) -> None:
        self.directory.write_report()
        where = self.directory.path
        if not self.finished:
            print(f"stopped after step {self.step}; go on with --out {where} --resume auto")
            return
        if self.step < self.settings.optim.max_steps:
            metric = self.settings.evaluation.best
            print(f"ended early: {metric} was not better in {self.stale} evaluations (--patience)")
        if last is None:
            print(f"nothing left to do: --max-steps {self.step} are done")
        elif scored := self.directory.evaluations():
            first = scored[0]  # perhaps of the run that this one goes on with
            print(f"held-out loss {first['loss']:.4f} -> {last['loss']:.4f} nats per token")
        if last is not None:
            notes = [ablations.warning(last), None if self.evaluator.scorer else NO_ROUGE]
            for note in filter(None, notes):
                print(f"warning: {note}")
        print(f"frozen parameters unchanged: {len(self.frozen)} tensors")
        newest = self.saving.newest
        if newest is not None:
            print(f"checkpoint: {newest}")
        print(f"report: {where / 'report.html'}")
        if self.settings.run.push_to_hub and newest is not None:
            model = self.model
            if self.sharded and model.adapter is None:  # whole again, without the other ranks
                model, _ = load_run_model(self.settings, where, newest, torch.device("cpu"))
            staged = stage_for_hub(model, self.base, self.settings, where, newest)
            hub.push(staged, self.settings.run.push_to_hub, self.settings.run.private)


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def run(arguments: list[str]) -> None:
    settings = settings_.parse(arguments)
    try:
        training = Training(settings)
        try:
            training.run()
        finally:
            training.directory.release()
    except (RuntimeError, MemoryError) as error:
        if not _is_out_of_memory(error):
            raise with_lost_ranks(error) from error
        raise UserError(
            "out of memory: lower --batch-size (--accumulate keeps the global batch), --mode or "
            "--max-pages, or use --precision bf16, --tune lora or qlora "
            f"({str(error).splitlines()[0]})"
        ) from None


def _is_out_of_memory(error: Exception) -> bool:
    """On a GPU torch has a class for it, on the CPU only words; numpy raises Python's own."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return "can't allocate memory" in str(error)


def main(arguments: list[str] | None = None) -> int:
    """Exit code: 0 done or cleanly stopped, 2 the user's mistake (one line), else a traceback."""
    return exit_code(run, arguments, stop, let_first_speak)


if __name__ == "__main__":
    sys.exit(main())
