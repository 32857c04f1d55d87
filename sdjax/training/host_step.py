"""The parts of one training step; training/loop.py calls them in order."""

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
from sdjax.learner.batch import Batch, Reprompts, Rows
from sdjax.learner.objective import TokenRecord
from sdjax.learner.state import TrainState
from sdjax.parallel import hosts
from sdjax.records import Example, Group, TeacherPrompt
from sdjax.rollout.collect import SampledGroups, collect, fill, round_key
from sdjax.rollout.interface import SamplingRequest
from sdjax.tasks import Task
from sdjax.teacher import contexts, reprompt
from sdjax.training import alerts, update_log
from sdjax.training.loaded_model import LoadedModel

Initialiser = Callable[[nnx.State], TrainState]


@dataclass(frozen=True, kw_only=True)
class StepFunctions:
    """The jitted functions of a run."""

    init: Initialiser
    train: Callable[[TrainState, Batch], tuple[TrainState, dict, TokenRecord]]
    score: Callable[[nnx.State, Batch], jax.Array]
    alternatives: Callable[[TrainState, Rows], alternatives.Alternatives]
    after: Callable[[TrainState], TrainState]
    shardings: TrainState


@dataclass(frozen=True, kw_only=True)
class StepSetup:
    """What every step of a run reads. Only `order` moves: each step takes the next examples."""

    cfg: config.Train
    task: Task
    model: LoadedModel
    functions: StepFunctions
    order: Batches
    key: jax.Array
    """Each step derives the keys of its sampling from this key and its number."""


@dataclass(frozen=True, kw_only=True)
class StepInputs:
    """What one step learns from."""

    sampled: SampledGroups
    """The graded groups, and all groups that were sampled to get them."""
    contexts: Reprompts
    """What the teacher reads for each completion of each group, by context, those of the target
    first; {}: no teacher runs."""
    metrics: dict[str, float]
    """The metrics of regeneration; {} without it."""

    @property
    def reprompts(self) -> Sequence[Sequence[TeacherPrompt]] | None:
        """What the teacher reads in its first context; None: no teacher runs."""
        return next(iter(self.contexts.values()), None)


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What the updates of one step leave."""

    state: TrainState
    metrics: dict[str, float]
    skipped: list[bool]
    """For each update, whether it was skipped because its loss or gradient was not finite."""
    record: update_log.StepRecord
    last: tuple[Batch, Batch]
    """The batch of the last update, as packed on the host and as placed on the devices."""


@dataclass(frozen=True, kw_only=True)
class Skips:
    """Updates that were skipped because their loss or gradient was not finite."""

    in_row: int = 0
    """Skipped updates since the last one that was not skipped."""
    total: int = 0

    def after(self, skipped: Sequence[bool]) -> Skips:
        """Returns the counts after further updates, each skipped or not."""
        in_row = self.in_row
        for is_skipped in skipped:
            in_row = in_row + 1 if is_skipped else 0
        return Skips(in_row=in_row, total=self.total + sum(map(bool, skipped)))

    def end_run(self, most: int, updates: int, left: int) -> bool:
        """Returns whether the run ends here: after `most` skipped updates in a row (0: never), or
        at its end (`left` is 0) if all of its `updates` were skipped."""
        return 0 < most <= self.in_row or (left == 0 and 0 < updates <= self.total)


def make_setup(
    cfg: config.Train, task: Task, model: LoadedModel, examples: Sequence[Example]
) -> StepSetup:
    """Returns the setup that the steps of a run share; compiles nothing yet."""
    return StepSetup(
        cfg=cfg,
        task=task,
        model=model,
        functions=make_steps(cfg, model),
        order=Batches(examples, cfg.rollout.prompts_per_step, cfg.data.seed),
        key=jax.random.key(cfg.seed),
    )


def without_teacher(setup: StepSetup) -> StepSetup:
    """Returns the setup of the steps after alarm.teacher_off; itself where it is one already."""
    if setup.cfg.loss.distillation == 0:
        return setup
    cfg = setup.cfg.without_teacher()
    return replace(setup, cfg=cfg, functions=make_steps(cfg, setup.model))


def of_state(cfg: config.Train, model: LoadedModel) -> TrainState:
    """Returns the sharding of every leaf of a run's state."""
    others = {name: teacher.other for name, teacher in model.teachers.items()}
    tx = adamw.make(cfg.optim)
    return state.shardings(model.abstract, tx, cfg.teacher, model.mesh, others)


def make_steps(cfg: config.Train, model: LoadedModel) -> StepFunctions:
    """Returns the jitted functions of a run; compiles nothing yet."""
    tx = adamw.make(cfg.optim)
    shardings = of_state(cfg, model)
    objective, graphdef = objectives.Objective.of(cfg), model.graphdef
    return StepFunctions(
        init=state.initialiser(tx, cfg.teacher, shardings),
        train=update.make_train_step(graphdef, objective, cfg.optim, shardings, cfg.model.remat),
        score=update.make_score(graphdef, objective, model.mesh),
        alternatives=alternatives.make_alternatives(
            graphdef, objective, cfg.log.alternatives, model.mesh, shardings
        ),
        after=update.make_after_step(cfg.teacher, shardings),
        shardings=shardings,
    )


def sample_groups(setup: StepSetup, weights: Any, step: int) -> SampledGroups:
    """Returns the graded groups of a step; dynamic sampling takes further batches of examples.

    `weights` are the sampler's.
    """
    cfg, model = setup.cfg, setup.model

    def sample(round_number: int) -> list[Group]:
        examples, thinking = next(setup.order), cfg.rollout.enable_thinking
        request = SamplingRequest(
            prompts=[
                model.tokenizer.encode_prompt(e.messages, enable_thinking=thinking)
                for e in examples
            ],
            group_size=cfg.rollout.group_size,
            sampling=cfg.rollout,
            key=round_key(setup.key, step, round_number),
        )
        return collect(
            model.sampler,
            weights,
            request,
            examples=examples,
            tokenizer=model.tokenizer,
            grade_many=setup.task.grade_many,
        )

    has_signal = partial(alerts.has_signal, cfg=cfg)
    return fill(sample, has_signal, cfg.rollout.dynamic_sampling_rounds)


def build_reprompts(setup: StepSetup, sampled: SampledGroups, step: int) -> StepInputs:
    """Returns the groups of a step with what the teacher reads for each completion."""
    cfg = setup.cfg
    read = contexts.build(
        sampled.groups,
        setup.model.tokenizer,
        contexts.used(cfg),
        enable_thinking=cfg.rollout.enable_thinking,
        seed=cfg.seed,
        step=step,
    )
    return StepInputs(sampled=sampled, contexts=read, metrics={})


def take_updates(
    setup: StepSetup, train_state: TrainState, inputs: StepInputs, step: int
) -> StepResult:
    """Returns the state after the updates of a step; donates the given state."""
    cfg, tokenizer, groups = setup.cfg, setup.model.tokenizer, inputs.sampled.groups
    marked = [
        epistemic.epistemic_tokens(tokenizer.pieces(c.tokens, checked=False), cfg.lexicon)
        for group in groups
        for c in group.completions
    ]
    updates = _pack_updates(setup, train_state, inputs, marked)
    full = update_log.choose(groups, cfg.log, seed=cfg.seed, step=step)
    likeliest = None
    if cfg.log.alternatives:
        likeliest = _alternatives(setup, train_state, full, updates[0][0])
    reported = []
    for _, placed in updates:
        train_state, metrics, record = setup.functions.train(train_state, placed)
        reported.append((metrics, record))
    host = jax.device_get(reported)
    return StepResult(
        state=train_state,
        metrics=objectives.step_metrics([metrics for metrics, _ in host]),
        skipped=[bool(metrics["optim/skipped"]) for metrics, _ in host],
        record=update_log.StepRecord(
            groups=groups,
            reprompts=inputs.reprompts,
            epistemic=marked,
            full=full,
            updates=[packed for packed, _ in updates],
            reported=[record for _, record in host],
            alternatives=likeliest,
        ),
        last=updates[-1],
    )


def _pack_updates(
    setup: StepSetup,
    train_state: TrainState,
    inputs: StepInputs,
    epistemic_tokens: Sequence[np.ndarray],
) -> list[tuple[Batch, Batch]]:
    """Returns the batches of a step, each as packed on the host and as placed on the devices.

    If there are several, each has its tokens' log-probabilities under the parameters before the
    first update.
    """
    cfg, model = setup.cfg, setup.model
    groups = inputs.sampled.groups
    size, per_group = len(groups) // cfg.optim.minibatches, cfg.rollout.group_size
    updates = []
    for start in range(0, len(groups), size):
        part = groups[start : start + size]
        read = {name: of[start : start + size] for name, of in inputs.contexts.items()}
        longest = cfg.rollout.max_completion_tokens
        samples = batches.samples_of(part, read, cfg.loss, cfg.policy, longest, cfg.teacher)
        marked = epistemic_tokens[start * per_group : (start + size) * per_group]
        pad_id = model.tokenizer.pad_id
        packed = batches.pack(part, read, samples, marked, cfg.optim, pad_id)
        hosts.check_same("the batch of an update", packed, "report it, with the config")
        placed = hosts.place(packed, update.batch_shardings(packed, model.mesh))
        if cfg.optim.minibatches > 1:
            old = setup.functions.score(train_state.model_params(), placed)
            placed = replace(placed, rows=replace(placed.rows, old_logprobs=old))
        updates.append((packed, placed))
    return updates


def _alternatives(
    setup: StepSetup, train_state: TrainState, full: Sequence[int], packed: Batch
) -> alternatives.Scored | None:
    """Returns the likeliest tokens at each place of a few completions; None without completions.

    The completions are the first of `full` that have a row in `packed`, the batch of the step's
    first update. That update reports log-probabilities under the parameters that the step starts
    with, and these must be under the same.
    """
    log = setup.cfg.log
    places = batches.places(packed)
    chosen = [i for i in full if i < len(places) and places[i] >= 0][: log.alternatives_of]
    if not chosen:
        return None
    return alternatives.scored(
        setup.functions.alternatives,
        train_state,
        packed,
        chosen,
        setup.model.mesh,
        log.alternatives_of,
    )


def step_metrics(
    inputs: StepInputs, result: StepResult, seconds: dict[str, float], cfg: config.Train
) -> dict[str, float]:
    """Returns the metrics of a step; `seconds` are those of its timers.

    Metrics of the rollout count all sampled groups, even those that the step does not learn from.
    Otherwise they would depend on which groups dynamic sampling chooses.
    """
    groups = inputs.sampled.sampled
    completions = [c for g in groups for c in g.completions]
    rewards = [[x.reward for x in g.grades] for g in groups]
    sizes = [len(c.tokens) for c in completions]
    correct = [x.correct for g in groups for x in g.grades]
    words = epistemic.by_grade([c.text for c in completions], sizes, correct, cfg.lexicon)
    metrics = result.metrics | {
        "rollout/reward": float(np.mean(rewards)),
        "rollout/correct": float(np.mean(correct)),
        "rollout/mixed_groups": float(np.mean([min(r) != max(r) for r in rewards])),
        "rollout/signal_groups": float(np.mean([alerts.has_signal(g, cfg) for g in groups])),
        "rollout/sampling_rounds": float(inputs.sampled.rounds),
        "rollout/length": float(np.mean(sizes)),
        "rollout/empty": float(np.mean([not c.text.strip() for c in completions])),
        "rollout/truncated": float(np.mean([c.finish == "length" for c in completions])),
        "rollout/tokens_per_s": sum(sizes) / sum(seconds.values()),
    }
    metrics |= {f"rollout/{name}": rate for name, rate in words.metrics().items()} | seconds
    for number, (name, section) in enumerate(contexts.used(cfg).items()):
        shares = reprompt.metrics(inputs.sampled.groups, inputs.contexts[name], section)
        prefix = "reprompt" if number == 0 else f"reprompt_{name}"
        metrics |= {f"{prefix}/{share}": value for share, value in shares.items()}
    return metrics | inputs.metrics
