"""`python -m deepsynth_min.train`: fine-tunes a model; torchrun -m: on several processes.

The loop: batches -> loss -> gradients -> parameters -> checkpoints.
`train` is the loop, `train_step` one optimizer step; what a run is made of, in the order in which
it is made, is runs/setup.py.

The one idea: one global step is the same whatever it is divided into. Its loss is the sum over its
label tokens divided by their number, counted over all ranks and micro-steps before the first
backward, so that ranks x micro-steps x samples may be shifted at will.
"""

import sys
from dataclasses import replace

import torch
from torch import Tensor
from tqdm import tqdm

from .command_line import parse, parse_training
from .data.loader import Loader
from .data.order import rows_per_epoch
from .errors import UserError, exit_code, number_of
from .model.batch import Batch
from .publish import upload
from .publish.official import stage_for_hub
from .runs.announce import conclude, explained, retried, show_answers
from .runs.evidence import Evidence, profiled
from .runs.metrics import Meter
from .runs.setup import Training
from .runs.storage.mirror import open_mirror
from .runs.storage.run_directory import warn
from .training import distributed as dist, micro_batch
from .training.build import load_run_model
from .training.optim import clip_and_step, cosine_rate, total_norm
from .training.stopping import Stopper
from .tuning import freeze

# torchrun takes 0 for the end of the run: a machine that was not asked to stop shall wait for the
# one that was, or for another in its place, and go on.
STOPPED_ELSEWHERE = 75


def train(training: Training, stopper: Stopper, evidence: Evidence) -> dict[str, float] | None:
    """Steps until the run is finished or asked to stop; evaluates, saves and reports on the way.

    Returns the newest evaluation, None if there was none.
    """
    intervals, world = training.settings.run, training.world
    steps = training.settings.optim.max_steps
    parts = (training.rows, training.builder, training.settings)
    loader = Loader(*parts, world.rank, world.size, training.step, training.feed.prepare)
    counts = training.facts["global_batch"], rows_per_epoch(training.rows)
    meter = Meter(world, training.directory, *counts, training.work)
    last = training.evaluate() if training.step == 0 else None
    shown = world.is_main and sys.stderr.isatty()
    bar = tqdm(total=steps, initial=training.step, desc="training", unit="step", disable=not shown)
    meter.start(training.unlogged)
    failed, error = 0, None
    try:
        while not training.finished:
            evidence.step_begins()
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
                    training.left_out.add(loader.left_out)
                except UserError as too_many:
                    failed, error = 1, too_many
                    break

            # -- forward, backward, reduce, clip, step; where memory ends, in smaller pieces
            with profiled(training.directory, world, training.step + 1, intervals.profile_step):
                while (found := train_step(training, batches, count, pages)) is None:
                    batches = _divide(training, meter, loader)
            meter.add(*found, batches, left_out)
            bar.update()
            evidence.step_ends()
            done = training.step == steps

            # -- log
            if done or training.step % intervals.log_every == 0:
                loss = meter.log(
                    training.step, learning_rate(training, training.step - 1), training.scaler
                )
                bar.set_postfix_str(meter.brief(loss))
                if world.is_main and not shown:  # a log file wants lines, not a bar
                    print(meter.line(training.step, steps, loss), flush=True)
                training.status.write("running", training.step)
                training.check_skipped_steps()

            # -- evaluate
            evaluated, is_best = done or _is_due(training.step, intervals.eval_every), False
            if evaluated:
                last = meter.paused(training.evaluate)
                is_best = training.is_best(last)

            # -- save
            if training.finished or is_best or _is_due(training.step, intervals.save_every):
                result = last if evaluated else None
                meter.paused(lambda: training.save(result, is_best, meter))
            if _is_due(training.step, intervals.check_every):
                meter.paused(lambda: dist.check_same_parameters(world, training.trainable))
    finally:
        bar.close()
        loader.close()
        if training.cache is not None:
            training.cache.close()

    # -- the end, whatever it was
    if not training.finished and training.step and training.checkpoints.tried != training.step:
        training.save(None, False, meter)
    if failed:  # on this rank or on another
        training.checkpoints.wait()
        raise error or SystemExit(2)
    training.checkpoints.finish()
    freeze.check_end(training.model, training.frozen)
    return last


# -- one step -------------------------------------------------------------------------------------


def train_step(
    training: Training, batches: list[Batch], count: float, pages: float
) -> tuple[Tensor, Tensor, float] | None:
    """One optimizer step; returns (this rank's summed loss by micro-step, gradient norm, count), or
    None if a rank ran out of memory: then nothing has changed.

    count, pages: label tokens and pages of the whole global step, over all ranks and micro-steps.
    """
    optim = training.settings.optim

    # -- gradients, summed over all ranks
    losses = micro_batch.attempt(
        training.world, training.reducer, optim, lambda: _backward(training, batches, count)
    )
    if losses is None:
        return None
    if not training.gradients_audited and count and (pages or not training.builder.draws):
        _audit_gradients(training)

    # -- clip and step
    training.checkpoints.before_change()
    norm = clip_and_step(
        training.optimizer, training.scaler, learning_rate(training, training.step), optim.clip
    )
    training.optimizer.zero_grad(set_to_none=True)
    training.step += 1
    return losses, norm, count


def _backward(training: Training, batches: list[Batch], count: float) -> Tensor:
    """The micro-steps, each of which adds to the gradients; returns the summed loss of each."""
    optim, world = training.settings.optim, training.world
    losses = []
    for number, batch in enumerate(batches, 1):
        # Dropout depends on the micro-batch's place in the run alone, on whichever rank it is, so
        # that resuming needs no generator state.
        place = (number - 1) * world.size + world.rank
        seed = (optim.seed * 1_000_003 + training.step) * 65_536 + place
        torch.manual_seed(seed % 2**63)
        batch = training.feed(batch, training.settings, training.step, number - 1)
        training.reducer.armed = number == len(batches)  # reduces while the last one is under way
        with training.autocast():
            loss, _, balance = training.model.loss_terms(batch, optim.balance > 0)
        # Normalised here, by the count over all ranks: the sum over ranks is the global mean.
        target = loss / max(count, 1)  # 0 if every row of the step is left out
        if balance is not None:
            target = target + optim.balance * balance / training.facts["global_batch"]
        (target * training.scaler.scale).backward()
        losses.append(loss.detach())
    return torch.stack(losses)


def learning_rate(training: Training, step: int) -> float:
    """Learning rate of a step, counted from 0: linear warm-up, then a cosine."""
    optim = training.settings.optim
    return cosine_rate(step, optim.max_steps, optim.lr, optim.warmup_ratio, optim.min_lr_ratio)


def _audit_gradients(training: Training) -> None:
    """After the first backward; with fp16, after the first one that did not overflow."""
    total = total_norm([p.grad for p in training.trainable.values()])
    if not training.scaler.enabled or total.isfinite():
        names = list(training.trainable)
        without = {names[i] for i in training.reducer.without_gradient()}
        freeze.check_gradients(training.model, training.policy, without)
        training.gradients_audited = True


# -- around the loop ------------------------------------------------------------------------------


def _next(meter: Meter, loader: Loader) -> tuple[list[Batch], UserError | None]:
    """(the next step's batches, None), or ([], the error) for a row that cannot be used."""
    try:
        return meter.waiting(loader.__next__), None
    except UserError as error:
        return [], error


def _divide(training: Training, meter: Meter, loader: Loader) -> list[Batch]:
    """This step's batches in smaller micro-batches, as all later steps will have them."""
    before, training.settings = training.settings.optim, micro_batch.smaller(training.settings)
    if training.world.is_main:
        warn(retried(training.step, before, training.settings.optim))
    loader.divide(training.settings, training.step)
    return meter.waiting(loader.__next__)


def _conclude(training: Training, last: dict | None) -> None:
    training.directory.write_report()
    where, newest = training.directory.path, training.checkpoints.newest
    metric = training.settings.evaluation.best
    if not training.finished:
        print(f"stopped after step {training.step}; go on with --out {where} --resume auto")
        return
    if training.step < training.settings.optim.max_steps:
        stale = number_of(training.stale, "evaluation")
        print(f"ended early: {metric} was not better in {stale} (--patience)")
    if len(training.held_out):
        show_answers(training.directory, training.held_out)
        conclude(training.directory, training.step, last, metric)
    print(f"frozen parameters unchanged: {number_of(len(training.frozen), 'tensor')}")
    if newest is not None:
        print(f"checkpoint: {newest}")
    print(f"report: {where / 'report.html'}")
    if training.settings.run.push_to_hub and newest is not None:
        model = training.model
        if training.sharded and model.adapter is None:  # whole again, without the other ranks
            model, _ = load_run_model(training.settings, where, newest, torch.device("cpu"))
        staged = stage_for_hub(model, training.base, training.settings, where, newest)
        upload.push(staged, training.settings.run.push_to_hub, training.settings.run.private)


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def run(arguments: list[str]) -> None:
    settings, asked = parse_training(arguments)
    if asked is not None:
        from .planning.dry_run import dry_run  # a training needs none of it

        dry_run(settings, asked)
        return
    try:
        world = dist.start(settings.run.device, settings.run.threads, settings.run.timeout)
        mirror, has_brought = open_mirror(settings.run, world)
        if has_brought:  # now there is a run in --out, whose settings count
            settings = parse(arguments)
            device = dist.choose_device(settings.run.device, settings.run.threads)
            world = replace(world, device=device)
        training = Training(settings, world, mirror)
        try:
            dist.barrier(training.world)  # rank 0 has made the run directory
            if mirror:
                mirror.begin(training.directory.path)
            evidence = Evidence(training.directory, training.world, settings.run.timeout)
            with Stopper(training.world.is_main) as stopper, evidence:
                with training.status.followed(training, stopper):
                    last = train(training, stopper, evidence)
                    if training.world.is_main:
                        _conclude(training, last)
            dist.barrier(training.world)  # no process leaves while another still talks to it
            if not training.finished and not dist.any_here(training.world, stopper.asked):
                raise SystemExit(STOPPED_ELSEWHERE)
        finally:
            if mirror:  # after the barrier: the others need not wait for what is still to be sent
                mirror.close()
            training.directory.release()
    except (RuntimeError, MemoryError) as error:
        raise explained(error) from error


def main(arguments: list[str] | None = None) -> int:
    """Exit code: 0 done or cleanly stopped, 2 the user's mistake (one line), 130 Ctrl-C before the
    loop, 75 stopped since a process of another machine was asked to, else a traceback."""
    return exit_code(run, arguments, dist.stop, dist.let_first_speak)


if __name__ == "__main__":
    sys.exit(main())
