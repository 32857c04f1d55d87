"""Trains a model on its own words: the loop, in the order in which things happen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax

from sdjax import config, tasks
from sdjax.analysis import epistemic
from sdjax.bench import profile
from sdjax.data.pipeline import Batches, drop_overlong
from sdjax.errors import Stopped, WriteError
from sdjax.jobs import (
    adapters,
    alarm,
    evaluate,
    learning_signal,
    progress,
    replay,
    rollout_log,
    setup,
    train_step,
)
from sdjax.jobs.evaluate import HeldOut
from sdjax.jobs.stopping import Stop
from sdjax.learner.checkpoint import Checkpoints
from sdjax.metrics import RolloutWriter, Timers, Writer
from sdjax.objectives import divergences, token_weights
from sdjax.records import Example
from sdjax.storage import Folder
from sdjax.tasks import Task


def run(cfg: config.Train) -> None:
    """Trains, evaluates, checkpoints and exports as the config says."""
    if cfg.replay is not None:
        replay.run(cfg)
        return
    stop = Stop()
    task, shop, examples, sets = _prepare(cfg, stop.check)
    shared = cfg.resume or cfg.checkpoint.every > 0
    folder = setup.claim_folder(cfg.out, cfg, resume=cfg.resume, shared=shared)
    saved = Checkpoints(folder.place / "checkpoints", cfg.checkpoint)
    listening = stop.listening(cfg.checkpoint.every > 0)
    try:
        with jax.set_mesh(shop.mesh), listening, setup.pushed(folder):
            _Training(cfg, task, shop, examples, sets, folder, saved).run(stop)
    except WriteError as error:
        raise WriteError(f"{error}; {progress.what_is_safe(saved)}") from error


def _prepare(
    cfg: config.Train, between: Callable[[], None] = lambda: None
) -> tuple[Task, setup.Workshop, Sequence[Example], Sequence[HeldOut]]:
    """Returns everything that can be checked before weights are loaded."""
    divergences.get(cfg.loss.divergence)
    token_weights.get(cfg.loss.token_weights)
    epistemic.lexicon(cfg.lexicon)
    task = tasks.load(cfg.task, cfg.data)
    others = {name: tasks.load(other, cfg.data) for name, other in cfg.out_of_domain.items()}
    shop = setup.workshop(cfg.model, cfg.mesh, cfg.rollout.server, cfg.out, cfg.lora, between)
    completion = cfg.rollout.max_completion_tokens
    setup.check_context(
        shop.cfg, "rollout.max_prompt_tokens", cfg.rollout.max_prompt_tokens, completion
    )
    answered = cfg.reprompt.regenerate  # by the model, which does not go beyond its context
    if cfg.loss.distillation > 0 and (answered or not cfg.reprompt.beyond_context):
        setup.check_context(shop.cfg, "reprompt.max_tokens", cfg.reprompt.max_tokens, completion)
    setup.check_shards("optim.microbatch", cfg.optim.microbatch, shop.mesh)
    setup.check_shards("rollout.prompts_per_step", cfg.rollout.prompts_per_step, shop.mesh)
    setup.check_shards("rollout.slots", cfg.rollout.slots, shop.mesh)
    setup.check_shards("eval.slots", cfg.eval.slots, shop.mesh)
    setup.check_server(shop.sampler, cfg.rollout)
    thinking = cfg.rollout.enable_thinking
    limit = cfg.rollout.max_prompt_tokens
    examples, overlong = drop_overlong(
        task.train,
        lambda e: len(shop.tokenizer.encode_prompt(e.messages, enable_thinking=thinking)),
        limit,
        cfg.data.on_overlong,
    )
    if cfg.data.limit:
        examples = [examples[i] for i in range(min(cfg.data.limit, len(examples)))]
    setup.check_same_examples(task.name, examples)
    sets = evaluate.held_out(task, others, cfg.eval, shop.tokenizer, limit, thinking)
    setup.note(
        f"{task.name}: {len(examples)} training examples ({len(overlong)} over {limit} prompt "
        "tokens left out)"
    )
    evaluate.note_held_out(sets)
    if cfg.checkpoint.keep_best:
        evaluate.check_metric("checkpoint.best_metric", cfg.checkpoint.best_metric, sets, cfg.eval)
    return task, shop, examples, sets


class _Training:
    """A training that goes on from where it is."""

    def __init__(
        self,
        cfg: config.Train,
        task: Task,
        shop: setup.Workshop,
        examples: Sequence[Example],
        sets: Sequence[HeldOut],
        folder: Folder,
        saved: Checkpoints,
    ) -> None:
        self.cfg, self.task, self.shop, self.folder, self.saved = cfg, task, shop, folder, saved
        self.steps = train_step.make_steps(cfg, shop)
        self.order = Batches(examples, cfg.rollout.prompts_per_step, cfg.data.seed)
        self.now = progress.start(
            cfg, shop, self.steps.init, self.steps.shardings, self.order, saved
        )
        setup.rewrite_config(folder, cfg)
        self.primary = jax.process_index() == 0
        after, out = self.now.step if cfg.resume else None, folder.local
        self.writer = Writer(out, cfg.log, steps=cfg.steps, primary=self.primary, after=after)
        logged = self.primary and cfg.log.rollouts
        self.rollouts = RolloutWriter(out, primary=logged, after=after)
        self.root = jax.random.key(cfg.seed)
        self.course = evaluate.Course(
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
            with self.writer, self.rollouts, profile.rounds(cfg.profile) as before:
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
                progress.save(self.saved, now, self.shop, cfg.model)
            self.saved.close()
            raise Stopped(progress.how_to_go_on(now, cfg)) from None

    def _take_weights(self) -> None:
        """Makes what evaluation and rollout read: once for each state of the parameters."""
        self.weights = self.shop.sampler.weights(self.now.state.model_params())

    def _step(self, number: int) -> dict[str, str]:
        """Takes a step; returns its warnings. Its metrics stay in `now`, unscored."""
        cfg, now, shop, timers = self.cfg, self.now, self.shop, Timers()
        drawn = train_step.draw(
            self.order, self.weights, shop, self.task, cfg,
            root=self.root, step=number, timers=timers,
        )  # fmt: skip
        self.weights = None  # makes room for the update
        learned = train_step.learn(
            drawn, shop, self.steps, now.state, cfg, step=number, timers=timers
        )
        now.state = learned.state
        lines = rollout_log.lines(learned.record, shop.tokenizer, cfg.log)
        self.rollouts.write(number + 1, lines)
        metrics = train_step.step_metrics(drawn, learned, timers.take(), cfg)
        now.skips = now.skips.after(learned.skipped)
        metrics["optim/skipped_total"] = float(now.skips.total)
        if 0 < cfg.optim.most_skipped <= now.skips.in_row:
            self.writer.write(number + 1, metrics)
            safe = progress.what_is_safe(self.saved)
            replay.give_up(number + 1, now, learned.last, cfg.model, self.folder, safe)
        del learned  # the batches of its updates
        now.state = self.steps.after(now.state)
        now.step, now.data, now.unscored = number + 1, self.order.get_state(), metrics
        self._take_weights()
        return learning_signal.warnings(drawn.filled.groups, drawn.reprompts, cfg)

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
            progress.save(self.saved, now, self.shop, cfg.model, best)
        return last

    def _keep_records(self) -> None:
        """Makes sure that a run that goes on from here finds what was written."""
        self.rollouts.flush()
        if self.primary:
            self.folder.push()

    def _export(self) -> None:
        out, params = self.folder.local, self.now.state.model_params()
        setup.export(self.shop, params, out)
        adapters.export(params, self.shop, self.cfg.model, out / "model_adapter")


def _is_due(number: int, every: int) -> bool:
    return every > 0 and number % every == 0
