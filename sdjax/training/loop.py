"""Trains a model on its own words: the loop, in the order in which things happen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax

from sdjax import config
from sdjax.data.pipeline import Batches
from sdjax.errors import Stopped
from sdjax.io import run_dir
from sdjax.io.storage import Folder
from sdjax.learner.checkpoint import Checkpoints
from sdjax.logs import profiler
from sdjax.logs.writers import RolloutWriter, Timers, Writer
from sdjax.records import Example
from sdjax.tasks import Task
from sdjax.training import (
    adapters,
    alarm,
    alerts,
    evaluation,
    host_step,
    loaded_model,
    replay,
    resume,
    update_log,
)
from sdjax.training.evaluation import HeldOut
from sdjax.training.stopping import Stop


class Training:
    """A training that goes on from where it is."""

    def __init__(
        self,
        cfg: config.Train,
        task: Task,
        shop: loaded_model.LoadedModel,
        examples: Sequence[Example],
        sets: Sequence[HeldOut],
        folder: Folder,
        saved: Checkpoints,
    ) -> None:
        self.cfg, self.task, self.shop, self.folder, self.saved = cfg, task, shop, folder, saved
        self.steps = host_step.make_steps(cfg, shop)
        self.order = Batches(examples, cfg.rollout.prompts_per_step, cfg.data.seed)
        self.now = resume.start(cfg, shop, self.steps.init, self.steps.shardings, self.order, saved)
        run_dir.rewrite_config(folder, cfg)
        self.primary = jax.process_index() == 0
        after, out = self.now.step if cfg.resume else None, folder.local
        self.writer = Writer(out, cfg.log, steps=cfg.steps, primary=self.primary, after=after)
        logged = self.primary and cfg.log.rollouts
        self.rollouts = RolloutWriter(out, primary=logged, after=after)
        self.root = jax.random.key(cfg.seed)
        self.course = evaluation.EvaluationHistory(
            shop=shop,
            sets=sets,
            cfg=cfg.eval,
            thinking=cfg.rollout.enable_thinking,
            out=out,
            history=self.now.history,
            lexicon=cfg.lexicon,
        )
        self.weights: Any = None

    def run(self, stop: Stop) -> None:
        """Takes the steps that are left, and exports the model."""
        cfg, now, begun = self.cfg, self.now, self.now.step
        try:
            with self.writer, self.rollouts, profiler.rounds(cfg.profile) as before:
                self._take_weights()
                last = now.unscored is not None and self._finish_step({})
                for number in range(begun, begun if last else cfg.steps):
                    stop.check()
                    before(number - begun)
                    if self._finish_step(self._step(number)):
                        break
                if now.step < cfg.steps:
                    self.writer.say(f"stopped by alarm.stop after step {now.step} of {cfg.steps}")
                stop.check()
            self.saved.close()
            if cfg.checkpoint.export:
                self._export()
            self.course.close()
        except Stopped:
            if now.step and cfg.checkpoint.every:
                self._keep_records()
                resume.save(self.saved, now, self.shop, cfg.model)
            self.saved.close()
            raise Stopped(resume.how_to_go_on(now, cfg)) from None

    def _take_weights(self) -> None:
        """Makes what evaluation and rollout read: once for each state of the parameters."""
        self.weights = self.shop.sampler.weights(self.now.state.model_params())

    def _step(self, number: int) -> dict[str, str]:
        """Takes a step; returns its warnings. Its metrics stay in `now`, unscored."""
        cfg, now, shop, timers = self.cfg, self.now, self.shop, Timers()
        drawn = host_step.draw(
            self.order, self.weights, shop, self.task, cfg,
            root=self.root, step=number, timers=timers,
        )  # fmt: skip
        self.weights = None  # makes room for the update
        learned = host_step.learn(
            drawn, shop, self.steps, now.state, cfg, step=number, timers=timers
        )
        now.state = learned.state
        lines = update_log.lines(learned.record, shop.tokenizer, cfg.log)
        self.rollouts.write(number + 1, lines)
        metrics = host_step.step_metrics(drawn, learned, timers.take(), cfg)
        now.skips = now.skips.after(learned.skipped)
        metrics["optim/skipped_total"] = float(now.skips.total)
        if 0 < cfg.optim.most_skipped <= now.skips.in_row:
            self.writer.write(number + 1, metrics)
            safe = resume.what_is_safe(self.saved)
            replay.give_up(number + 1, now, learned.last, cfg.model, self.folder, safe)
        del learned  # the batches of its updates
        now.state = self.steps.after(now.state)
        now.step, now.data, now.unscored = number + 1, self.order.get_state(), metrics
        self._take_weights()
        return alerts.warnings(drawn.filled.groups, drawn.reprompts, cfg)

    def _finish_step(self, warnings: dict[str, str]) -> bool:
        """Evaluates and saves, where it is time, writes what is known of the step, and returns
        whether it is the last."""
        cfg, now = self.cfg, self.now
        metrics, last = dict(now.unscored or {}), now.step == cfg.steps
        if now.step == 0 or last or _is_due(now.step, cfg.eval.every):
            metrics |= self.course.measure(now.step, self.weights)
            if now.step:
                seen = alarm.check(now.history, cfg.alarm)
                metrics, warnings = metrics | seen.metrics, warnings | seen.warnings
                last = last or bool(cfg.alarm.stop and seen.warnings)
        self.writer.write(now.step, metrics)
        self.writer.warn(now.step, warnings)
        now.unscored = None
        if now.step and cfg.checkpoint.every and (last or _is_due(now.step, cfg.checkpoint.every)):
            self._keep_records()
            best = metrics.get(cfg.checkpoint.best_metric)
            resume.save(self.saved, now, self.shop, cfg.model, best)
        return last

    def _keep_records(self) -> None:
        """Makes sure that a run that goes on from here finds what was written."""
        self.rollouts.flush()
        if self.primary:
            self.folder.push()

    def _export(self) -> None:
        out, params = self.folder.local, self.now.state.model_params()
        loaded_model.export(self.shop, params, out)
        adapters.export(params, self.shop, self.cfg.model, out / "model_adapter")


def _is_due(number: int, every: int) -> bool:
    return every > 0 and number % every == 0
