"""What a run is made of, in the order in which it is made; train.py loops over it.

In: settings. Out: a `Training`: processes, data, model, optimizer, checkpoints, and where the run
stands (`step`, `best`). All ranks build the same; rank 0 alone writes.

The idea: everything that can be wrong is found before the first step: each part is checked against
the others as it is made, and the audits compare what will train with what should.
"""

import json
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from ..config_file import check_found
from ..data.augment import check as check_augment
from ..data.order import Order, rows_per_epoch
from ..data.row import RowError
from ..data.sample import check as check_page_as
from ..data.samples import SampleBuilder
from ..data.sources import open_data, pinned
from ..data.tokenizer import load_tokenizer
from ..errors import UserError, number_of
from ..evaluation.evaluator import Evaluator, check_held_out, check_patience
from ..evaluation.figures import cost, describe
from ..files.disk import write_text
from ..model.shape.presets import find_shape
from ..options import change
from ..pages.modes import page_side
from ..reports.sinks import check_sinks
from ..settings import OptimSettings, Settings
from ..training import checkpoint, compile as compiling, distributed as dist, feature_cache, shard
from ..training.build import as_before, build_model, keep_preset, resolve
from ..training.optim import LossScaler, check as check_adamw, make_adamw, own_rates, prepare_state
from ..training.precision import autocast, check_device, set_parameter_types
from ..tuning import freeze
from . import same_run
from .announce import announce, cautions, refuse_missing
from .feed import Feed
from .left_out import LeftOut, refuse_long_answers
from .metrics import Meter
from .recorded import FILE, as_toml
from .storage.disk_space import check_space, checkpoint_bytes
from .storage.mirror import Mirror
from .storage.run_directory import RunDirectory, default_name, warn
from .storage.saving import CheckpointManager
from .storage.status import Status
from .utilisation import Work, device_rate

CHECKS = (check_patience, check_augment, check_page_as, check_sinks, feature_cache.check)
CHECKS += (shard.check, compiling.check, check_adamw)


class Training:
    """One run: what the loop works on, and what it does besides stepping."""

    def __init__(self, settings: Settings, world: dist.World, mirror: Mirror | None):
        self.world, self.mirror = world, mirror  # the latter on rank 0, if there is one
        self._open_data(settings)  # run directory, rows, complete settings
        self._build_model()  # base weights, adapter, tokenizer, samples
        self._prepare_parameters()  # what trains, in which type, divided or whole
        self._make_optimizer()
        self._resume()
        self._audit_start()
        self._make_step_parts()  # compiled parts, feature cache, gradient reduction
        dist.barrier(self.world)  # every rank has looked at --out before rank 0 writes to it
        if self.world.is_main:
            self._announce()
        total = sum(len(rows) + len(rows.faults) for rows in self.data.files)
        self.left_out = LeftOut(
            self.directory.path, self.data.faults, total, self.settings.data, self.world
        )
        steps = self.settings.optim.max_steps
        self.status = Status(self.directory, steps, self.world.is_main)

    # -- set-up, in order -------------------------------------------------------------------------

    def _open_data(self, settings: Settings) -> None:
        world = self.world
        check_device(world.device, settings.optim.precision)
        name = settings.run.out or dist.broadcast_text(world, default_name(settings.model.model))
        self.directory = RunDirectory(name, settings.run.resume)
        found = self.directory.looks_like(settings.run.resume)
        self.asked, before = settings, self.directory.before
        if before:
            config, own = self.directory.path / "config.toml", "model data val_data adapter"
            check_found(config, settings, *own.split(), "main_font", "font")
        # A wrong mode, or a model of another kind, should not wait for the rest.
        page_side(settings.model.mode, find_shape(settings.model)[0].page_format)
        # A data set on the hub stays at one commit: of the run's start, the same on all ranks.
        data = pinned(settings.data, before and before.data)
        text = json.dumps([data.data_revision, data.val_revision])
        commits = json.loads(dist.broadcast_text(world, text))
        settings = change(settings, data_revision=tuple(commits[0]), val_revision=commits[1])
        self.data = open_data(settings.data, settings.optim.seed, world.is_main)
        self.rows, self.held_out = self.data.train, self.data.held_out
        for check in CHECKS:
            check(settings)
        check_held_out(self.held_out, settings)
        if before and found:
            settings = as_before(settings, self.directory.asked, before)
        settings = change(settings, out=name)
        self.settings = resolve(settings, rows_per_epoch(self.rows), world)
        optim = self.settings.optim
        self.facts = {  # what the sequence of samples depends on; a resumed run must agree
            "global_batch": optim.batch_size * optim.accumulate * world.size,
            "seed": optim.seed,
            "rows": len(self.rows),
            "bucket": settings.data.bucket,
            "tune": settings.model.tune,
            "mode": settings.model.mode,
            "data": self.rows.signature(),
        }
        self.compared = None  # the checkpoint of which it is known that it is of the same run
        if found:
            self._check_same_run(found)

    def _check_same_run(self, path: Path) -> None:
        """Raises UserError if the checkpoint is of another run."""
        before, resume = same_run.Before(path), self.settings.run.resume
        there = same_run.contents(self.settings, self.directory.path, self.data, before.model)
        where = f"--out {self.directory.path}" if resume == "auto" else f"--resume {path}"
        global_batch = self.facts["global_batch"]
        same_run.check(where, before, self.settings, there, len(self.rows), global_batch)
        self.compared = path

    def _build_model(self) -> None:
        self.sharded = self.settings.optim.shard and self.world.size > 1
        self.built_on = torch.device("cpu") if self.sharded else self.world.device
        self.model, self.base = build_model(self.settings, self.built_on, self.directory.path)
        there = same_run.contents(self.settings, self.directory.path, self.data)
        self.stands_on = {"settings": same_run.fixed_settings(self.settings), "contents": there}
        tokenizer = load_tokenizer(self.base)
        self.builder = SampleBuilder(self.settings, self.model.config, tokenizer)
        refuse_long_answers(self.data, self.settings.data, self.builder)
        self.builder.check_looks()
        refuse_missing(self.rows, self.settings, self.builder.style)
        try:  # a page setting that cannot work is found before any writing
            self.builder(self.rows[0])
        except RowError as error:
            if not self.builder.skips(error):
                raise

    def _prepare_parameters(self) -> None:
        """Freezes; then `eval_model` is the model itself, or beside shards an undivided one."""
        optim, world = self.settings.optim, self.world
        sides = {self.builder.side} | ({self.builder.format.tile} if self.builder.gundam else set())
        self.policy = freeze.freeze(self.model, self.settings.model.tune, sides)
        if self.sharded:
            self.eval_model = shard.shard(self.model, world, self.settings)
        else:
            set_parameter_types(self.model, optim.precision, optim.weights)
            self.eval_model = self.model
        self.trainable = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        self.autocast = partial(autocast, world.device, optim.precision)
        self.evaluator = Evaluator(
            self.eval_model, self.held_out, self.builder, world, self.autocast
        )

    def _make_optimizer(self) -> None:
        optim, lora_plus = self.settings.optim, self.settings.adapter.lora_plus_ratio
        betas, rates = (optim.beta1, optim.beta2), own_rates(self.model, optim)
        self.optimizer = make_adamw(
            self.model, betas, optim.weight_decay, lora_plus, optim.optimizer, optim.seed, rates
        )
        prepare_state(self.optimizer)  # now: a memory or disk that is too small shows before a step
        self.scaler = LossScaler(optim.precision == "fp16", self.world.device)
        parts = self.model, self.eval_model, self.base, self.optimizer, self.scaler
        notes = {FILE: as_toml(self.settings)}
        self.checkpoints = CheckpointManager(
            self.directory, self.world, self.settings.run, *parts, notes, self.mirror
        )

    def _resume(self) -> None:
        self.step, self.best, self.unlogged, self.stale = 0, None, [], 0  # stale: since the best
        resume, found = self.settings.run.resume, ""
        if self.world.is_main:  # reads every byte of a checkpoint, to see that it is whole
            elsewhere = self.mirror and self.mirror.newest_between
            found = str(self.directory.resume_from(resume, elsewhere) or "")
        found = dist.broadcast_text(self.world, found)
        if found:
            self._load(Path(found))
        if self.world.is_main and resume != "none":
            print(
                f"resuming after step {self.step} from {found}"
                if found
                else f"{self.directory.path}: no checkpoint to go on from; starting afresh"
            )
            self.directory.go_on_after(self.step if found else -1, self.settings.evaluation.best)

    def _load(self, path: Path) -> None:
        if path != self.compared:  # the newest one is damaged
            self._check_same_run(path)
        parts = (self.model, self.optimizer, self.scaler, self.facts)
        if self.sharded:
            restore = partial(shard.restore_shards, self.eval_model)
            state = checkpoint.load(path, *parts, restore=restore)
        else:
            state = checkpoint.load(path, *parts)
        self.step, self.unlogged = state["step"], state["unlogged"]
        max_steps = self.settings.optim.max_steps
        if self.step > max_steps:
            raise UserError(f"{path}: step {self.step} is beyond --max-steps {max_steps}")
        if state["best_metric"] == self.settings.evaluation.best:
            self.best, self.stale = state["best"], state["stale"]
        self.checkpoints.going_on_from(path, self.step)

    def _audit_start(self) -> None:
        """Policy, autograd and optimizer agree; all ranks hold the same; frozen bytes are noted."""
        tune = self.settings.model.tune
        freeze.check_start(self.model, self.optimizer, self.policy, tune)
        dist.check_same_parameters(self.world, dict(self.model.named_parameters()))
        self.frozen = freeze.fingerprint(self.model)
        self.gradients_audited = False

    def _make_step_parts(self) -> None:
        optim, world = self.settings.optim, self.world
        self.model.recompute = optim.checkpoint_layers
        if optim.flex and not self.sharded:
            compiling.use_flex(self.model, world.device)
        if optim.compile:
            compiling.compile_parts(self.model, optim.precision)
        self.cache = None
        if self.settings.data.feature_cache != "off":
            self.cache = feature_cache.FeatureCache(
                self.settings, self.model, world.device, world.size, warn
            )
        self.feed = Feed(world, self.builder, self.cache, self.autocast)
        rate = device_rate(world.device, optim.precision)
        self.work = Work(self.model, self.settings.model.tune, rate, self.cache)
        dtype = torch.bfloat16 if optim.reduce == "bf16" else None
        alone = dist.World(0, 1, world.device)  # shards have been summed already
        reduced_over = alone if self.sharded else world
        self.reducer = dist.GradientReducer(reduced_over, list(self.trainable.values()), dtype)

    def _announce(self) -> None:
        parts = self.model, self.eval_model, self.optimizer, self.scaler, self.base
        space = "", ""
        if not self.finished:
            keep = self.settings.run.keep
            space = check_space(checkpoint_bytes(*parts), self.directory.checkpoints, keep)
        self.directory.create(self.asked, self.settings, has_ended=self.finished)
        optim = self.asked.optim
        if optim.max_steps and optim.epochs != OptimSettings().epochs:
            print(f"--max-steps {optim.max_steps} wins over --epochs {optim.epochs:g}")
        for line in self.data.notes:
            print(line)
        for line in cautions(self.settings, self.base, self.step, self.rows, self.builder.style):
            warn(line)
        if self.model.adapter is not None and self.model.adapter.base is None:
            keep_preset(self.model, self.settings, self.built_on, self.directory.path)
        self.directory.save_previews(self.held_out, self.builder)
        counts = len(self.rows), len(self.held_out), self.builder.side, self.facts["global_batch"]
        own = self.world, self.directory, self.work.rate
        announce(self.settings, self.model, *counts, *own, space[0])
        if space[1]:
            warn(space[1])

    # -- beside the steps --------------------------------------------------------------------------

    @property
    def finished(self) -> bool:
        """All steps are done, or --patience is at its end."""
        patience = self.settings.evaluation.patience
        return self.step >= self.settings.optim.max_steps or 0 < patience <= self.stale

    def evaluate(self) -> dict[str, float] | None:
        """Scores the held-out rows, and writes down what came out; None if there are none."""
        if not len(self.held_out):
            return None
        with shard.filled(self.eval_model, self.model):
            result, answers = self.evaluator()
        answers = dist.gather_lists(self.world, answers)
        if "skip" in (self.settings.data.on_bad_row, self.settings.data.on_too_long):
            self.left_out.add(list(self.evaluator.left_out.values()))
        if self.world.is_main:
            self.directory.log("eval", step=self.step, **result)
            answers.sort(key=lambda answer: answer["number"])
            self.directory.log_answers(self.step, answers)
            self.directory.write_report()
            tqdm.write(f"step {self.step:>6}: {describe(result)}")
        return result

    def is_best(self, result: dict[str, float] | None) -> bool:
        """Whether this evaluation is the best one so far; counts those since."""
        if result is None:
            return False
        score = cost(result, self.settings.evaluation.best)
        better = self.best is None or score < self.best
        if better and self.world.is_main:
            self.directory.keep_best_answers()
        self.best, self.stale = (score, 0) if better else (self.best, self.stale + 1)
        return better

    def save(self, result: dict[str, float] | None, is_best: bool, meter: Meter) -> None:
        """A checkpoint of the present step; `result` is its evaluation, if there was one."""
        metric = self.settings.evaluation.best
        state = {"best": self.best, "best_metric": metric, "stale": self.stale}
        state |= {"score": result and cost(result, metric), "unlogged": meter.unlogged()}
        self.checkpoints.save({"step": self.step, **self.facts, **self.stands_on, **state}, is_best)

    def check_skipped_steps(self) -> None:
        """Ends a run in which step after step is skipped; the rows they had are written down."""
        streak = int(self.scaler.streak)
        if streak < self.settings.run.max_skips:
            return
        facts, path = self.facts, self.directory.path / "skipped.json"
        order = Order(self.rows, facts["seed"], facts["global_batch"], facts["bucket"])
        if self.world.is_main:
            chosen = {step: order.step(step) for step in range(self.step - streak, self.step)}
            where = {step: [self.rows[i].where for i in rows] for step, rows in chosen.items()}
            self.directory.attempt(lambda: write_text(path, json.dumps(where, indent=1)), path.name)
        raise RuntimeError(
            f"{number_of(streak, 'step')} in a row had a loss or gradient that is not finite and "
            f"were skipped; the rows they were made of: {path}"
        )
