"""What a step of a training does, piece by piece; training/loop.py says in which order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import numpy as np
from flax import nnx

from sdjax import config
from sdjax.analysis import epistemic
from sdjax.data.pipeline import Batches
from sdjax.learner import adamw, alternatives, state, update
from sdjax.learner import batch as batches
from sdjax.learner import objective as objectives
from sdjax.learner.batch import Batch, Rows
from sdjax.learner.objective import TokenRecord
from sdjax.learner.state import TrainState
from sdjax.logs.writers import Timers
from sdjax.parallel import hosts
from sdjax.records import Group, TeacherPrompt
from sdjax.rollout import dynamic_sampling
from sdjax.rollout.collect import collect
from sdjax.rollout.dynamic_sampling import SampledGroups
from sdjax.tasks import Task
from sdjax.teacher import reprompt
from sdjax.tokenizer import Tokenizer
from sdjax.training import alerts, loaded_model, regeneration, update_log


@dataclass(frozen=True, kw_only=True)
class StepFunctions:
    """The jitted functions of a run."""

    init: Callable[[nnx.State], TrainState]
    train: Callable[[TrainState, Batch], tuple[TrainState, dict, TokenRecord]]
    score: Callable[[nnx.State, Batch], jax.Array]
    alternatives: Callable[[TrainState, Rows], alternatives.Alternatives]
    after: Callable[[TrainState], TrainState]
    shardings: TrainState


@dataclass(frozen=True, kw_only=True)
class StepInputs:
    """What a step learns from."""

    filled: SampledGroups
    """The graded groups, and all that were sampled for them."""
    reprompts: Sequence[Sequence[TeacherPrompt]] | None
    """What the teacher reads of each completion; None where no teacher runs."""
    metrics: dict[str, float]
    """Of a demonstration that was answered again."""


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What a step's updates leave."""

    state: TrainState
    metrics: dict[str, float]
    skipped: list[bool]
    """Of each update, whether its loss or gradient was not finite."""
    record: update_log.StepRecord
    last: tuple[Batch, Batch]
    """The last update's batch, on the host and on the devices."""


def make_steps(cfg: config.Train, shop: loaded_model.LoadedModel) -> StepFunctions:
    """Returns the jitted functions of a run; compiles nothing yet."""
    tx = adamw.make(cfg.optim)
    shardings = state.shardings(shop.abstract, tx, cfg.teacher, shop.mesh)
    objective, graphdef = objectives.Objective.of(cfg), shop.graphdef
    return StepFunctions(
        init=state.initialiser(tx, cfg.teacher, shardings),
        train=update.make_train_step(graphdef, objective, cfg.optim, shardings, cfg.model.remat),
        score=update.make_score(graphdef, objective, shop.mesh),
        alternatives=alternatives.make_alternatives(
            graphdef, objective, cfg.log.alternatives, shop.mesh, shardings
        ),
        after=update.make_after_step(cfg.teacher, shardings),
        shardings=shardings,
    )


def draw(
    order: Batches,
    weights: Any,
    shop: loaded_model.LoadedModel,
    task: Task,
    cfg: config.Train,
    *,
    root: jax.Array,
    step: int,
    timers: Timers,
) -> StepInputs:
    """Samples, grades and writes what the teacher reads; timers rollout, reprompt, regenerate."""
    with timers("rollout"):
        filled = _rollout(order, weights, shop, task, cfg, root, step)
    again: dict[str, float] = {}
    with timers("reprompt"):
        reprompts = _reprompts(filled.groups, shop.tokenizer, cfg, step)
    if reprompts is not None and cfg.reprompt.regenerate:
        with timers("regenerate"):
            reprompts, again = regeneration.regenerated(
                filled.groups, reprompts, shop, weights, task, cfg, root=root, step=step
            )
    return StepInputs(filled=filled, reprompts=reprompts, metrics=again)


def learn(
    drawn: StepInputs,
    shop: loaded_model.LoadedModel,
    steps: StepFunctions,
    train_state: TrainState,
    cfg: config.Train,
    *,
    step: int,
    timers: Timers,
) -> StepResult:
    """Moves the state, which it donates, by the step's updates; timer update."""
    groups, reprompts = drawn.filled.groups, drawn.reprompts
    with timers("update"):
        marked = _epistemic(groups, shop.tokenizer, cfg.lexicon)
        updates = _updates(groups, reprompts, marked, shop, steps, train_state, cfg)
        full = update_log.choose(groups, cfg.log, seed=cfg.seed, step=step)
        few = _alternatives(full, updates[0][0], shop, steps, train_state, cfg.log)
        train_state, metrics, reported, skipped = _move(updates, steps, train_state)
    record = update_log.StepRecord(
        groups=groups,
        reprompts=reprompts,
        epistemic=marked,
        full=full,
        updates=[packed for packed, _ in updates],
        reported=reported,
        alternatives=few,
    )
    return StepResult(
        state=train_state, metrics=metrics, skipped=skipped, record=record, last=updates[-1]
    )


def step_metrics(
    drawn: StepInputs, learned: StepResult, seconds: dict[str, float], cfg: config.Train
) -> dict[str, float]:
    """Returns the metrics of a step; `seconds` are its timers'."""
    made = learned.metrics | rollout_metrics(drawn.filled, cfg, sum(seconds.values())) | seconds
    if drawn.reprompts is not None:
        made |= reprompt.metrics(drawn.filled.groups, drawn.reprompts, cfg.reprompt)
    return made | drawn.metrics


def _rollout(
    order: Batches,
    weights: Any,
    shop: loaded_model.LoadedModel,
    task: Task,
    cfg: config.Train,
    root: jax.Array,
    number: int,
) -> SampledGroups:
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

    has_signal = partial(alerts.has_signal, cfg=cfg)
    return dynamic_sampling.fill(sample, has_signal, cfg.rollout.dynamic_sampling_rounds)


def _reprompts(
    groups: Sequence[Group], tokenizer: Tokenizer, cfg: config.Train, number: int
) -> Sequence[Sequence[TeacherPrompt]] | None:
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
    reprompts: Sequence[Sequence[TeacherPrompt]] | None,
    epistemic_tokens: Sequence[np.ndarray],
    shop: loaded_model.LoadedModel,
    steps: StepFunctions,
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
        read = None if reprompts is None else reprompts[start : start + size]
        longest = cfg.rollout.max_completion_tokens
        samples = batches.samples_of(part, read, cfg.loss, cfg.policy, longest)
        marked = epistemic_tokens[start * per_group : (start + size) * per_group]
        pad_id = shop.tokenizer.pad_id
        packed = batches.pack(part, read, samples, marked, cfg.optim, pad_id)
        hosts.check_same("the batch of an update", packed, "report it, with the config")
        placed = hosts.place(packed, update.batch_shardings(packed, shop.mesh))
        if cfg.optim.minibatches > 1:
            old = steps.score(train_state.model_params(), placed)
            placed = replace(placed, rows=replace(placed.rows, old_logprobs=old))
        made.append((packed, placed))
    return made


def _alternatives(
    full: Sequence[int],
    packed: Batch,
    shop: loaded_model.LoadedModel,
    steps: StepFunctions,
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


def _move(
    updates: Sequence[tuple[Batch, Batch]], steps: StepFunctions, train_state: TrainState
) -> tuple[TrainState, dict[str, float], list[TokenRecord], list[bool]]:
    """Returns the state after a step's updates, the step's metrics, what each update reports of its
    tokens, and whether it was skipped.
    """
    reported = []
    for _, placed in updates:
        train_state, metrics, record = steps.train(train_state, placed)
        reported.append((metrics, record))
    host = jax.device_get(reported)
    of_step = objectives.step_metrics([metrics for metrics, _ in host])
    skipped = [bool(metrics["optim/skipped"]) for metrics, _ in host]
    return train_state, of_step, [record for _, record in host], skipped


def rollout_metrics(filled: SampledGroups, cfg: config.Train, seconds: float) -> dict[str, float]:
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
    signal = [alerts.has_signal(g, cfg) for g in groups]
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
