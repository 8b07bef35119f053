"""The loop: batches -> loss -> gradients -> parameters -> checkpoints.

    python -m deepsynth_min.train [--setting value ...]
    torchrun --standalone --nproc-per-node N -m deepsynth_min.train [--setting value ...]

`train` is the loop, `train_step` one optimizer step; what a run is made of, in the order in which
it is made, is training/setup.py.

The one idea: one global step is the same whatever it is divided into. Its loss is the sum over its
label tokens divided by their number, counted over all ranks and micro-steps before the first
backward, so that ranks x micro-steps x samples may be shifted at will.
"""

import sys

import torch
from torch import Tensor
from tqdm import tqdm

from . import settings as settings_
from .data.augment import augment_batch
from .data.loader import Loader
from .data.order import rows_per_epoch
from .errors import UserError, exit_code
from .model.batch import Batch
from .publish import upload
from .publish.official import stage_for_hub
from .training import distributed as dist, feature_cache
from .training.announce import conclude, explained
from .training.build import load_run_model
from .training.metrics import Meter
from .training.optim import clip_and_step, cosine_rate, total_norm
from .training.setup import Training
from .tuning import freeze


def train(run: Training) -> None:
    """Steps until the run is finished or asked to stop; evaluates, saves and reports on the way."""
    every, world, stopper = run.settings.run, run.world, dist.Stopper()
    steps = run.settings.optim.max_steps
    finish = [] if run.cache is None else [feature_cache.keyed]
    loader = Loader(run.rows, run.builder, run.settings, world.rank, world.size, run.step, *finish)
    meter = Meter(world, run.directory, run.facts["global_batch"], rows_per_epoch(run.rows))
    last = run.evaluate() if run.step == 0 else None
    shown = world.is_main and sys.stderr.isatty()
    bar = tqdm(total=steps, initial=run.step, desc="training", unit="step", disable=not shown)
    meter.start(run.unlogged)
    failed, error = 0, None
    try:
        while not run.finished:
            # -- the next batches, and over all ranks: their label tokens and pages, a signal, rows
            #    that are left out, or one that ends the run
            batches, error = _next(meter, loader)
            count, pages, stopping, failed, left_out = world.sum(
                sum(batch.num_scored for batch in batches),
                sum(len(batch.pages) for batch in batches),
                stopper.asked,
                error is not None,
                len(loader.left_out),
            )
            if stopping or failed:
                break
            if left_out:
                try:
                    run.left_out.add(loader.left_out)
                except UserError as too_many:
                    failed, error = 1, too_many
                    break

            # -- forward, backward, reduce, clip, step
            meter.add(*train_step(run, batches, count, pages), batches, left_out)
            bar.update()
            done = run.step == steps

            # -- log
            if done or run.step % every.log_every == 0:
                loss = meter.log(run.step, learning_rate(run, run.step - 1), run.scaler)
                bar.set_postfix(loss=f"{loss:.3f}")
                if world.is_main and not shown:  # a log file wants lines, not a bar
                    print(f"step {run.step:>6} of {steps}: loss {loss:.4f}", flush=True)
                run.check_skipped_steps()

            # -- evaluate
            evaluated, is_best = done or _is_due(run.step, every.eval_every), False
            if evaluated:
                last = meter.paused(run.evaluate)
                is_best = run.is_best(last)

            # -- save
            if run.finished or is_best or _is_due(run.step, every.save_every):
                result = last if evaluated else None
                meter.paused(lambda: run.save(result, is_best, meter))
            if _is_due(run.step, every.check_every):
                meter.paused(lambda: dist.check_same_parameters(world, run.trainable))
    finally:
        bar.close()
        loader.close()
        if run.cache is not None:
            run.cache.close()

    # -- the end, whatever it was
    if not run.finished and run.step and run.checkpoints.tried != run.step:
        run.save(None, False, meter)
    run.checkpoints.wait()
    if failed:  # on this rank or on another
        raise error or SystemExit(2)
    freeze.check_end(run.model, run.frozen)
    if world.is_main:
        _conclude(run, last)
    dist.barrier(world)  # no process leaves while another still talks to it


# -- one step -------------------------------------------------------------------------------------


def train_step(
    run: Training, batches: list[Batch], count: float, pages: float
) -> tuple[Tensor, Tensor, float]:
    """One optimizer step; returns (this rank's summed loss, gradient norm, count).

    count, pages: label tokens and pages of the whole global step, over all ranks and micro-steps.
    """
    optim, world = run.settings.optim, run.world
    # Dropout depends on the step and the rank alone, so that resuming needs no generator state.
    seed = (optim.seed * 1_000_003 + run.step) * 65_536 + world.rank
    torch.manual_seed(seed % 2**63)
    loss_sum = torch.zeros((), device=world.device)

    # -- micro-steps: each backward adds to the gradients
    for number, batch in enumerate(batches, 1):
        batch = _augmented(run, batch.to(world.device), number - 1)
        run.reducer.armed = number == len(batches)  # reduces while the last one is under way
        with run.autocast():
            batch = batch if run.cache is None else run.cache.fill(batch)
            loss, _, balance = run.model.loss_terms(batch, optim.balance > 0)
        # Normalised here, by the count over all ranks: the sum over ranks is the global mean.
        target = loss / max(count, 1)  # 0 if every row of the step is left out
        if balance is not None:
            target = target + optim.balance * balance / run.facts["global_batch"]
        (target * run.scaler.scale).backward()
        loss_sum += loss.detach()

    # -- gradients, summed over all ranks
    run.reducer.finish()
    if not run.gradients_audited and count and pages:
        _audit_gradients(run)

    # -- clip and step
    norm = clip_and_step(run.optimizer, run.scaler, learning_rate(run, run.step), optim.clip)
    run.optimizer.zero_grad(set_to_none=True)
    run.step += 1
    return loss_sum, norm, count


def learning_rate(run: Training, step: int) -> float:
    """Learning rate of a step, counted from 0: linear warm-up, then a cosine."""
    optim = run.settings.optim
    return cosine_rate(step, optim.max_steps, optim.lr, optim.warmup_ratio, optim.min_lr_ratio)


def _augmented(run: Training, batch: Batch, micro: int) -> Batch:
    """What a page becomes depends on where its sample stands in the run, on nothing else."""
    settings, world = run.settings, run.world
    size = settings.optim.batch_size * world.size
    first = run.step * run.facts["global_batch"] + micro * size + world.rank
    numbers, paper = range(first, first + size, world.size), 0.0 if settings.page.invert else 255.0
    if batch.places:
        numbers = [numbers[place] for place in batch.places]
    return augment_batch(batch, settings.augment, settings.optim.seed, numbers, paper)


def _audit_gradients(run: Training) -> None:
    """After the first backward; with fp16, after the first one that did not overflow."""
    total = total_norm([p.grad for p in run.trainable.values()])
    if not run.scaler.enabled or total.isfinite():
        names = list(run.trainable)
        without = {names[i] for i in run.reducer.without_gradient()}
        freeze.check_gradients(run.model, run.policy, without)
        run.gradients_audited = True


# -- around the loop ------------------------------------------------------------------------------


def _next(meter: Meter, loader: Loader) -> tuple[list[Batch], UserError | None]:
    """(the next step's batches, None), or ([], the error) for a row that cannot be used."""
    try:
        return meter.waiting(loader.__next__), None
    except UserError as error:
        return [], error


def _conclude(run: Training, last: dict | None) -> None:
    run.directory.write_report()
    where, newest = run.directory.path, run.checkpoints.newest
    if not run.finished:
        print(f"stopped after step {run.step}; go on with --out {where} --resume auto")
        return
    if run.step < run.settings.optim.max_steps:
        metric = run.settings.evaluation.best
        print(f"ended early: {metric} was not better in {run.stale} evaluations (--patience)")
    conclude(run.directory, run.step, last, run.evaluator.scorer is not None)
    print(f"frozen parameters unchanged: {len(run.frozen)} tensors")
    if newest is not None:
        print(f"checkpoint: {newest}")
    print(f"report: {where / 'report.html'}")
    if run.settings.run.push_to_hub and newest is not None:
        model = run.model
        if run.sharded and model.adapter is None:  # whole again, without the other ranks
            model, _ = load_run_model(run.settings, where, newest, torch.device("cpu"))
        staged = stage_for_hub(model, run.base, run.settings, where, newest)
        upload.push(staged, run.settings.run.push_to_hub, run.settings.run.private)


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def run(arguments: list[str]) -> None:
    settings = settings_.parse(arguments)
    try:
        training = Training(settings)
        try:
            train(training)
        finally:
            training.directory.release()
    except (RuntimeError, MemoryError) as error:
        raise explained(error) from error


def main(arguments: list[str] | None = None) -> int:
    """Exit code: 0 done or cleanly stopped, 2 the user's mistake (one line), else a traceback."""
    return exit_code(run, arguments, dist.stop, dist.let_first_speak)


if __name__ == "__main__":
    sys.exit(main())
