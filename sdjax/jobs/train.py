"""Trains a model on its own words: the loop, in the order in which things happen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import numpy as np
from flax import nnx

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
    regeneration,
    replay,
    rollout_log,
    setup,
)
from sdjax.jobs.evaluate import HeldOut
from sdjax.jobs.stopping import Stop
from sdjax.learner import alternatives, optim, state, step
from sdjax.learner import batch as batches
from sdjax.learner import metrics as learner_metrics
from sdjax.learner.batch import Batch, Rows
from sdjax.learner.checkpoint import Checkpoints
from sdjax.learner.loss import TokenRecord
from sdjax.learner.state import TrainState
from sdjax.metrics import RolloutWriter, Timers, Writer
from sdjax.objectives import divergences, token_weights
from sdjax.parallel import hosts
from sdjax.records import Example, Group, Reprompt
from sdjax.rollout import dynamic_sampling
from sdjax.rollout.collect import collect
from sdjax.rollout.dynamic_sampling import Filled
from sdjax.storage import Folder
from sdjax.tasks import Task
from sdjax.teacher import reprompt
from sdjax.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class Steps:
    """The jitted functions of a run."""

    init: Callable[[nnx.State], TrainState]
    train: Callable[[TrainState, Batch], tuple[TrainState, dict, TokenRecord]]
    score: Callable[[nnx.State, Batch], jax.Array]
    alternatives: Callable[[TrainState, Rows], alternatives.Alternatives]
    after: Callable[[TrainState], TrainState]
    shardings: TrainState


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
            _train(cfg, task, shop, examples, sets, folder, saved, stop)
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


def _steps(cfg: config.Train, shop: setup.Workshop) -> Steps:
    tx = optim.make(cfg.optim)
    shardings = state.shardings(shop.abstract, tx, cfg.teacher, shop.mesh)
    return Steps(
        init=state.initialiser(tx, cfg.teacher, shardings),
        train=step.make_train_step(shop.graphdef, cfg, shop.mesh, shardings),
        score=step.make_score(shop.graphdef, cfg, shop.mesh),
        alternatives=alternatives.make_alternatives(shop.graphdef, cfg, shop.mesh, shardings),
        after=step.make_after_step(cfg.teacher, shardings),
        shardings=shardings,
    )


def _train(
    cfg: config.Train,
    task: Task,
    shop: setup.Workshop,
    examples: Sequence[Example],
    sets: Sequence[HeldOut],
    folder: Folder,
    saved: Checkpoints,
    stop: Stop,
) -> None:
    steps, out = _steps(cfg, shop), folder.local
    order = Batches(examples, cfg.rollout.prompts_per_step, cfg.data.seed)
    now = progress.start(cfg, shop, steps.init, steps.shardings, order, saved)
    begun = now.step
    setup.rewrite_config(folder, cfg)
    primary = jax.process_index() == 0
    after = begun if cfg.resume else None
    writer = Writer(out, cfg.log, steps=cfg.steps, primary=primary, after=after)
    rollouts = RolloutWriter(out, primary=primary and cfg.log.rollouts, after=after)
    root = jax.random.key(cfg.seed)

    course = evaluate.Course(
        shop=shop,
        sets=sets,
        cfg=cfg.eval,
        thinking=cfg.rollout.enable_thinking,
        out=out,
        history=now.history,
        lexicon=cfg.lexicon,
    )

    def keep_records() -> None:
        """Makes sure that a run that goes on from here finds what was written."""
        rollouts.flush()
        if primary:
            folder.push()

    def finish_step(weights: Any, warnings: dict[str, str]) -> bool:
        """Evaluates and saves, where it is time, writes what is known of the step, and returns
        whether it is the last."""
        metrics, last = dict(now.unscored or {}), now.step == cfg.steps
        if now.step == 0 or last or _is_due(now.step, cfg.eval.every):
            metrics |= course.measure(now.step, weights)
            if now.step:
                seen = alarm.check(now.history, cfg.alarm)
                metrics, warnings = metrics | seen.metrics, warnings | seen.warnings
                last = last or bool(cfg.alarm.stop and seen.warnings)
        writer.write(now.step, metrics)
        writer.warn(now.step, warnings)
        now.unscored = None
        if now.step and cfg.checkpoint.every and (last or _is_due(now.step, cfg.checkpoint.every)):
            keep_records()
            progress.save(saved, now, shop, cfg.model, metrics.get(cfg.checkpoint.best_metric))
        return last

    try:
        with writer, rollouts, profile.rounds(cfg.profile) as before:
            # Made once for each state of the parameters: evaluation and rollout read the same.
            weights = shop.sampler.weights(now.state.model_params())
            last = now.unscored is not None and finish_step(weights, {})
            for number in range(begun, begun if last else cfg.steps):
                stop.check()
                before(number - begun)
                timers = Timers()
                with timers("rollout"):
                    filled = _rollout(order, weights, shop, task, cfg, root, number)
                groups = filled.groups
                again: dict[str, float] = {}
                with timers("reprompt"):
                    reprompts = _reprompts(groups, shop.tokenizer, cfg, number)
                if reprompts is not None and cfg.reprompt.regenerate:
                    with timers("regenerate"):
                        reprompts, again = regeneration.regenerated(
                            groups, reprompts, shop, weights, task, cfg, root=root, step=number
                        )
                del weights  # makes room for the update
                with timers("update"):
                    marked = _epistemic(groups, shop.tokenizer, cfg.lexicon)
                    updates = _updates(groups, reprompts, marked, shop, steps, now.state, cfg)
                    full = rollout_log.choose(groups, cfg.log, seed=cfg.seed, step=number)
                    few = _alternatives(full, updates[0][0], shop, steps, now.state, cfg.log)
                    now.state, metrics, reported, skipped = _learn(updates, steps, now.state)
                kept = rollout_log.StepRecord(
                    groups=groups,
                    reprompts=reprompts,
                    epistemic=marked,
                    full=full,
                    updates=[packed for packed, _ in updates],
                    reported=reported,
                    alternatives=few,
                )
                rollouts.write(number + 1, rollout_log.lines(kept, shop.tokenizer, cfg.log))
                seconds = timers.take()
                metrics |= rollout_metrics(filled, cfg, sum(seconds.values())) | seconds | again
                if reprompts is not None:
                    metrics |= reprompt.metrics(groups, reprompts, cfg.reprompt)
                now.skips = now.skips.after(skipped)
                metrics["optim/skipped_total"] = float(now.skips.total)
                if 0 < cfg.optim.most_skipped <= now.skips.in_row:
                    writer.write(number + 1, metrics)
                    safe = progress.what_is_safe(saved)
                    replay.give_up(number + 1, now, updates[-1], cfg.model, folder, safe)
                del updates
                now.state = steps.after(now.state)
                now.step, now.data, now.unscored = number + 1, order.get_state(), metrics
                weights = shop.sampler.weights(now.state.model_params())
                if finish_step(weights, learning_signal.warnings(groups, reprompts, cfg)):
                    break
            if now.step < cfg.steps:
                writer.say(f"stopped by alarm.stop after step {now.step} of {cfg.steps}")
            stop.check()
        saved.close()
        if cfg.checkpoint.export:
            setup.export(shop, now.state.model_params(), out)
            params = now.state.model_params()
            adapters.export(params, shop, cfg.model, out / "model_adapter")
        course.close()
    except Stopped:
        if now.step and cfg.checkpoint.every:
            keep_records()
            progress.save(saved, now, shop, cfg.model)
        saved.close()
        raise Stopped(progress.how_to_go_on(now, cfg)) from None


def _is_due(number: int, every: int) -> bool:
    return every > 0 and number % every == 0


def _rollout(
    order: Batches,
    weights: Any,
    shop: setup.Workshop,
    task: Task,
    cfg: config.Train,
    root: jax.Array,
    number: int,
) -> Filled:
    """Returns the graded groups of a step, from as many batches of the order as it takes."""

    def sample(of_round: int) -> list[Group]:
        return collect(
            shop.sampler,
            weights,
            next(order),
            shop.tokenizer,
            task.grade_many,
            group_size=cfg.rollout.group_size,
            sampling=cfg.rollout,
            enable_thinking=cfg.rollout.enable_thinking,
            key=dynamic_sampling.round_key(root, number, of_round),
        )

    has_signal = partial(learning_signal.has_signal, cfg=cfg)
    return dynamic_sampling.fill(sample, has_signal, cfg.rollout.dynamic_sampling_rounds)


def _reprompts(
    groups: Sequence[Group], tokenizer: Tokenizer, cfg: config.Train, number: int
) -> Sequence[Sequence[Reprompt]] | None:
    """Returns what the teacher reads for each completion; None where no teacher runs."""
    if cfg.loss.distillation == 0:
        return None
    return reprompt.build(
        groups,
        tokenizer,
        cfg.reprompt,
        enable_thinking=cfg.rollout.enable_thinking,
        seed=cfg.seed,
        step=number,
    )


def _epistemic(groups: Sequence[Group], tokenizer: Tokenizer, lexicon: str) -> list[np.ndarray]:
    """Returns for each completion which of its tokens take part in an epistemic word."""
    return [
        epistemic.epistemic_tokens(tokenizer.token_texts(c.tokens), lexicon)
        for g in groups
        for c in g.completions
    ]


def _updates(
    groups: Sequence[Group],
    reprompts: Sequence[Sequence[Reprompt]] | None,
    epistemic_tokens: Sequence[np.ndarray],
    shop: setup.Workshop,
    steps: Steps,
    train_state: TrainState,
    cfg: config.Train,
) -> list[tuple[Batch, Batch]]:
    """Returns the step's batches, each as it was packed on the host and as it is on the devices.

    Where there are several, each carries its tokens' log-probabilities under the parameters as
    they are before the first.
    """
    size, per_group = len(groups) // cfg.optim.minibatches, cfg.rollout.group_size
    made = []
    for start in range(0, len(groups), size):
        part = groups[start : start + size]
        packed = batches.pack(
            part,
            None if reprompts is None else reprompts[start : start + size],
            microbatch=cfg.optim.microbatch,
            distillation=cfg.loss.distillation,
            policy=cfg.policy,
            longest=cfg.rollout.max_completion_tokens,
            pad_id=shop.tokenizer.pad_id,
            epistemic=epistemic_tokens[start * per_group : (start + size) * per_group],
            row_tokens=cfg.optim.row_tokens,
        )
        hosts.check_same("the batch of an update", packed, "report it, with the config")
        placed = hosts.place(packed, step.batch_shardings(packed, shop.mesh))
        if cfg.optim.minibatches > 1:
            old = steps.score(train_state.model_params(), placed)
            placed = replace(placed, rows=replace(placed.rows, old_logprobs=old))
        made.append((packed, placed))
    return made


def _alternatives(
    full: Sequence[int],
    packed: Batch,
    shop: setup.Workshop,
    steps: Steps,
    train_state: TrainState,
    log: config.Log,
) -> alternatives.Scored | None:
    """Returns the alternatives of a few of these completions, those in a step's first update.

    Its log-probabilities are reported under the parameters that the step starts with.
    """
    places = batches.places(packed)
    few = [i for i in full if i < len(places) and places[i] >= 0][: log.alternatives_of]
    if not few or not log.alternatives:
        return None
    return alternatives.scored(
        steps.alternatives, train_state, packed, few, shop.mesh, log.alternatives_of
    )


def _learn(
    updates: Sequence[tuple[Batch, Batch]], steps: Steps, train_state: TrainState
) -> tuple[TrainState, dict[str, float], list[TokenRecord], list[bool]]:
    """Returns the state after a step's updates, the step's metrics, what each update reports of its
    tokens, and whether it was skipped.
    """
    reported = []
    for _, placed in updates:
        train_state, metrics, record = steps.train(train_state, placed)
        reported.append((metrics, record))
    host = jax.device_get(reported)
    of_step = learner_metrics.of_step([metrics for metrics, _ in host])
    skipped = [bool(metrics["optim/skipped"]) for metrics, _ in host]
    return train_state, of_step, [record for _, record in host], skipped


def rollout_metrics(filled: Filled, cfg: config.Train, seconds: float) -> dict[str, float]:
    """Returns what the completions sampled for a step were like; `seconds` is what it took.

    They are of all groups sampled, also of those the step does not learn from: what the model
    does must not depend on which groups are chosen to learn from.
    """
    groups = filled.sampled
    completions = [c for g in groups for c in g.completions]
    rewards = [[x.reward for x in g.grades] for g in groups]
    sizes = [len(c.tokens) for c in completions]
    correct = [x.correct for g in groups for x in g.grades]
    words = epistemic.by_grade([c.text for c in completions], sizes, correct, cfg.lexicon)
    signal = [learning_signal.has_signal(g, cfg) for g in groups]
    return {
        "rollout/reward": float(np.mean(rewards)),
        "rollout/correct": float(np.mean(correct)),
        "rollout/mixed_groups": float(np.mean([min(r) != max(r) for r in rewards])),
        "rollout/signal_groups": float(np.mean(signal)),
        "rollout/sampling_rounds": float(filled.rounds),
        "rollout/length": float(np.mean(sizes)),
        "rollout/empty": float(np.mean([not c.text.strip() for c in completions])),
        "rollout/truncated": float(np.mean([c.finish == "length" for c in completions])),
        "rollout/tokens_per_s": sum(sizes) / seconds,
    } | {f"rollout/{name}": rate for name, rate in words.metrics().items()}
