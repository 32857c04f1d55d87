"""The training loop, step by step, and the beginning and the end of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import jax

from sdjax import config
from sdjax.config.sections.target import SOLUTION
from sdjax.errors import Stopped, UserError
from sdjax.io import run_dir
from sdjax.io.storage import Folder
from sdjax.learner.checkpoint import Checkpoints
from sdjax.logs import profiler
from sdjax.logs.writers import RolloutWriter, Timers, Writer
from sdjax.training import alerts, host_step, regeneration, replay, resume, update_log
from sdjax.training.alerts import AlarmOutcome
from sdjax.training.callbacks import Callbacks
from sdjax.training.evaluation import EvaluationHistory, HeldOut
from sdjax.training.host_step import StepSetup
from sdjax.training.resume import Progress
from sdjax.training.stopping import Stop

WHERE = "--replay shows where, once optim.most_skipped in a row have ended the run"


@dataclass(frozen=True, kw_only=True)
class RunOutputs:
    """The places that a training writes to."""

    folder: Folder
    saved: Checkpoints
    writer: Writer
    rollouts: RolloutWriter
    evaluations: EvaluationHistory
    callbacks: Callbacks


def train(setup: StepSetup, progress: Progress, out: RunOutputs, stop: Stop) -> None:
    """Takes the remaining steps and updates `progress`; raises Stopped after a signal."""
    cfg, model = setup.cfg, setup.model
    with profiler.rounds(cfg.profile) as begin_round:
        weights = model.sampler.weights(progress.state.model_params())
        # Pending is step 0 of a new run, or a step whose evaluation a signal interrupted.
        first, pending = progress.step, progress.unscored is not None
        last = pending and end_step(setup, progress, out, weights)
        while progress.step < cfg.steps and not last:
            stop.check()
            begin_round(progress.step - first)
            setup = host_step.without_teacher(setup) if progress.teacher_off else setup
            cfg = setup.cfg

            # Draw and grade completions, and write what the teacher reads.
            compiles = out.writer.say if progress.step == first else None
            timers = Timers("first step, which compiles: ", compiles)
            with timers("rollout"):
                sampled = host_step.sample_groups(setup, weights, progress.step)
            with timers("reprompt"):
                inputs = host_step.build_reprompts(setup, sampled, progress.step)
            if cfg.reprompt.regenerate and SOLUTION in inputs.contexts:
                with timers("regenerate"):
                    inputs = regeneration.regenerate(setup, weights, inputs, progress.step)

            # Update the parameters. The sampler's weights are freed first, to make room.
            weights = None
            with timers("update"):
                result = host_step.take_updates(setup, progress.state, inputs, progress.step)
            lines = update_log.lines(result.record, model.tokenizer, cfg.log)
            out.rollouts.write(progress.step + 1, lines)
            out.writer.show(progress.step + 1, update_log.shown(result.record.groups))
            metrics = host_step.step_metrics(inputs, result, timers.take(), cfg)
            alerts.check_gap(metrics, cfg.rollout.server)
            progress.skips = progress.skips.after(result.skipped)
            metrics["optim/skipped_total"] = float(progress.skips.total)
            updates, left = cfg.steps * cfg.optim.minibatches, cfg.steps - progress.step - 1
            if progress.skips.end_run(cfg.optim.most_skipped, updates, left):
                out.writer.write(progress.step + 1, metrics)
                replay.give_up(setup, progress, result, out.folder)
            warnings = alerts.warnings(sampled.groups, inputs.reprompts, cfg)
            if not warnings:
                warnings = alerts.no_gradient(metrics, distilled=inputs.reprompts is not None)
            if any(result.skipped):
                warnings |= alerts.skipped_updates(result.skipped, WHERE)

            # Advance. The step's batches and records are freed before new weights are made.
            progress.state = setup.functions.after(result.state)
            progress.data, progress.unscored = setup.order.get_state(), metrics
            progress.step += 1
            del sampled, inputs, result, lines
            weights = model.sampler.weights(progress.state.model_params())

            # Evaluate, log, checkpoint.
            last = end_step(setup, progress, out, weights, warnings)
        if progress.step < cfg.steps:
            by = out.callbacks.ended_by or "alarm.stop"
            out.writer.say(f"stopped by {by} after step {progress.step} of {cfg.steps}")
        stop.check()


@contextmanager
def running(
    setup: StepSetup,
    sets: Sequence[HeldOut],
    folder: Folder,
    saved: Checkpoints,
    fingerprints: Mapping[str, str],
) -> Iterator[tuple[Progress, RunOutputs]]:
    """Yields a run's progress and its outputs; exports the model at the end of the block.

    See `saving` for the end of a block that fails.

    Args:
        setup: What every step reads.
        sets: The held-out examples of its evaluations.
        folder: The run directory.
        saved: Its checkpoints; the run starts at the newest whole one.
        fingerprints: Of what it reads.
    """
    cfg, primary = setup.cfg, jax.process_index() == 0
    progress = resume.start(setup, saved)
    # A run without a checkpoint has its record already, and a finished one keeps it.
    if progress.step and (progress.step < cfg.steps or progress.unscored is not None):
        run_dir.record(folder, cfg, progress.step, fingerprints)
    logs_rollouts = primary and cfg.log.rollouts
    logged = progress.logged if cfg.resume else None
    writer = Writer(folder.local, cfg.log, steps=cfg.steps, primary=primary, after=logged, job=cfg)
    out = RunOutputs(
        folder=folder,
        saved=saved,
        writer=writer,
        rollouts=RolloutWriter(
            folder.local, primary=logs_rollouts, after=progress.step if cfg.resume else None
        ),
        evaluations=EvaluationHistory(
            model=setup.model,
            sets=sets,
            cfg=cfg.eval,
            thinking=cfg.rollout.enable_thinking,
            out=folder.local,
            history=progress.history,
            lexicon=cfg.lexicon,
            show=writer.samples,
            harness=cfg.lm_eval,
        ),
        callbacks=Callbacks(cfg=cfg),
    )
    with saving(progress, cfg, saved, lambda: checkpoint(setup, progress, out, passing=True)):
        with out.writer, out.rollouts:
            yield progress, out
        saved.close()
        if cfg.checkpoint.export:
            params = progress.state.model_params()
            model, dtype = setup.model, cfg.checkpoint.export_dtype
            model.export(params, folder.local / "model", dtype)
            model.export_adapters(params, cfg.model, folder.local / "model_adapter", dtype)
        out.evaluations.close()


@contextmanager
def saving(
    progress: Progress,
    cfg: config.Train | config.SFT,
    saved: Checkpoints,
    save: Callable[[], None],
) -> Iterator[None]:
    """Ends a run with a whole checkpoint, and a message that says which one, if the block fails.

    After a signal it calls `save` where the config has checkpoints. Any other exception waits for
    a checkpoint that is being written.
    """
    try:
        yield
    except Stopped:
        if progress.step and cfg.checkpoint.every:
            save()
        saved.close()
        raise Stopped(resume.how_to_resume(progress, cfg)) from None
    except UserError as error:
        raise type(error)(f"{error}; {resume.what_is_safe(saved)}") from error
    except BaseException:
        resume.what_is_safe(saved)  # waits for a checkpoint that is being written
        raise


def is_due(number: int, every: int) -> bool:
    """Returns whether an action that happens every `every` steps happens after step `number`."""
    return every > 0 and number % every == 0


def evaluates(step: int, cfg: config.Eval, *, last: bool) -> bool:
    """Returns whether a training evaluates after this step; step 0 is before the first one."""
    return (cfg.at_ends and (last or step == 0)) or (step > 0 and is_due(step, cfg.every))


def evaluate(
    out: RunOutputs, progress: Progress, weights: Any, alarm: config.Alarm
) -> AlarmOutcome:
    """Returns the metrics of an evaluation of the model, and the alarms that they raise.

    `weights` are the sampler's. Step 0 raises no alarm, because later scores are compared with it.
    """
    metrics = out.evaluations.measure(progress.step, weights)
    ends = bool(metrics) and out.callbacks.end_run("on_evaluation", progress.step, metrics)
    if progress.step == 0:
        return AlarmOutcome(metrics=metrics, warnings={}, ends_run=ends)
    outcome = alerts.check_alarms(progress.history, alarm)
    ends_run = outcome.ends_run or ends
    return replace(outcome, metrics=metrics | outcome.metrics, ends_run=ends_run)


def end_step(
    setup: StepSetup,
    progress: Progress,
    out: RunOutputs,
    weights: Any,
    warnings: Mapping[str, str] = MappingProxyType({}),
) -> bool:
    """Evaluates, logs and checkpoints the step that is done, where these are due.

    Returns whether it is the last of the run.

    Args:
        setup: What every step reads.
        progress: Its `unscored` are the metrics of the step so far.
        out: Where they go.
        weights: The sampler's.
        warnings: Of the step, by kind.
    """
    cfg, step, metrics = setup.cfg, progress.step, dict(progress.unscored or {})
    last = step == cfg.steps
    if step:
        last = out.callbacks.end_run("on_step", step, metrics) or last
    if evaluates(step, cfg.eval, last=last):
        outcome = evaluate(out, progress, weights, cfg.alarm)
        metrics, warnings = metrics | outcome.metrics, {**warnings, **outcome.warnings}
        last = last or outcome.ends_run
        if outcome.teacher_off and not progress.teacher_off:
            progress.teacher_off = True
            said = f"the teacher is off from step {step + 1} on: alarm.teacher_off"
            warnings = {**warnings, "teacher_off": said}
    out.writer.write(step, metrics)
    out.writer.warn(step, warnings)
    progress.unscored = None
    if step and cfg.checkpoint.every and (last or is_due(step, cfg.checkpoint.every)):
        checkpoint(setup, progress, out, metrics.get(cfg.checkpoint.best_metric))
    return last


def checkpoint(
    setup: StepSetup,
    progress: Progress,
    out: RunOutputs,
    score: float | None = None,
    *,
    passing: bool = False,
) -> None:
    """Writes the pending lines of the rollout log, then starts to save a checkpoint."""
    out.rollouts.flush()
    host = resume.host_part(progress, setup)
    step, state = progress.step, progress.state
    resume.save(out.saved, out.folder, step, state, host, score, passing=passing)
