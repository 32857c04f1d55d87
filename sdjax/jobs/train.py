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
from sdjax.jobs import adapters, alarm, evaluate, learning_signal, rollout_log, setup
from sdjax.jobs.evaluate import HeldOut
from sdjax.learner import alternatives, optim, state, step
from sdjax.learner import batch as batches
from sdjax.learner import metrics as learner_metrics
from sdjax.learner.batch import Batch, Rows
from sdjax.learner.checkpoint import Checkpoints, abstract
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
    task, shop, examples, sets = _prepare(cfg)
    shared = cfg.resume or cfg.checkpoint.every > 0
    folder = setup.claim_folder(cfg.out, cfg, resume=cfg.resume, shared=shared)
    with jax.set_mesh(shop.mesh), setup.pushed(folder):
        _train(cfg, task, shop, examples, sets, folder)


def _prepare(
    cfg: config.Train,
) -> tuple[Task, setup.Workshop, Sequence[Example], Sequence[HeldOut]]:
    """Returns everything that can be checked before weights are loaded."""
    divergences.get(cfg.loss.divergence)
    token_weights.get(cfg.loss.token_weights)
    epistemic.lexicon(cfg.lexicon)
    task = tasks.load(cfg.task, cfg.data)
    others = {name: tasks.load(other, cfg.data) for name, other in cfg.out_of_domain.items()}
    shop = setup.workshop(cfg.model, cfg.mesh, cfg.rollout.server, cfg.out, cfg.lora)
    completion = cfg.rollout.max_completion_tokens
    setup.check_context(
        shop.cfg, "rollout.max_prompt_tokens", cfg.rollout.max_prompt_tokens, completion
    )
    if cfg.loss.distillation > 0 and not cfg.reprompt.beyond_context:
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
) -> None:
    steps, out = _steps(cfg, shop), folder.local
    order = Batches(examples, cfg.rollout.prompts_per_step, cfg.data.seed)
    checkpoints = Checkpoints(folder.place / "checkpoints", cfg.checkpoint)
    train_state, done, history = _start(shop, steps, order, checkpoints)
    setup.rewrite_config(folder, cfg)
    primary = jax.process_index() == 0
    after = done if cfg.resume else None
    writer = Writer(out, cfg.log, steps=cfg.steps, primary=primary, after=after)
    rollouts = RolloutWriter(out, primary=primary and cfg.log.rollouts, after=after)
    root = jax.random.key(cfg.seed)

    course = evaluate.Course(
        shop=shop,
        sets=sets,
        cfg=cfg.eval,
        thinking=cfg.rollout.enable_thinking,
        out=out,
        history=history,
        lexicon=cfg.lexicon,
    )
    with writer, rollouts, profile.rounds(cfg.profile) as before:
        # Made once for each state of the parameters: evaluation and rollout read the same.
        weights = shop.sampler.weights(train_state.model_params())
        if done == 0:
            writer.write(0, course.measure(0, weights))
        for number in range(done, cfg.steps):
            before(number - done)
            timers = Timers()
            with timers("rollout"):
                filled = _rollout(order, weights, shop, task, cfg, root, number)
            del weights  # makes room for the update
            groups = filled.groups
            with timers("reprompt"):
                reprompts = _reprompts(groups, shop.tokenizer, cfg, number)
            with timers("update"):
                marked = _epistemic(groups, shop.tokenizer, cfg.lexicon)
                updates = _updates(groups, reprompts, marked, shop, steps, train_state, cfg)
                full = rollout_log.choose(groups, cfg.log, seed=cfg.seed, step=number)
                few = _alternatives(full, updates[0][0], shop, steps, train_state, cfg.log)
                train_state, metrics, reported = _learn(updates, steps, train_state)
            weights = shop.sampler.weights(train_state.model_params())
            kept = rollout_log.StepRecord(
                groups=groups,
                reprompts=reprompts,
                epistemic=marked,
                full=full,
                updates=[packed for packed, _ in updates],
                reported=reported,
                alternatives=few,
            )
            del updates
            rollouts.write(number + 1, rollout_log.lines(kept, shop.tokenizer, cfg.log))
            seconds = timers.take()
            metrics |= rollout_metrics(filled, cfg, sum(seconds.values())) | seconds
            if reprompts is not None:
                metrics |= reprompt.metrics(groups, reprompts, cfg.reprompt)
            last = number + 1 == cfg.steps
            warnings = learning_signal.warnings(groups, reprompts, cfg)
            if last or (cfg.eval.every and (number + 1) % cfg.eval.every == 0):
                metrics |= course.measure(number + 1, weights)
                seen = alarm.check(history, cfg.alarm)
                metrics, warnings = metrics | seen.metrics, warnings | seen.warnings
                last = last or bool(cfg.alarm.stop and seen.warnings)
            writer.write(number + 1, metrics)
            writer.warn(number + 1, warnings)
            if cfg.checkpoint.every and (last or (number + 1) % cfg.checkpoint.every == 0):
                host = {"data": order.get_state(), "history": history}
                host |= adapters.base_of(train_state, cfg.model)
                rollouts.flush()  # A run that goes on from here finds them.
                if primary:
                    folder.push()
                checkpoints.save(number + 1, train_state, host)
            if last:
                if number + 1 < cfg.steps:
                    writer.say(f"stopped by alarm.stop after step {number + 1} of {cfg.steps}")
                break
    checkpoints.close()
    if cfg.checkpoint.export:
        setup.export(shop, train_state.model_params(), out)
        adapters.export(train_state.model_params(), shop, cfg.model, out / "model_adapter")
    course.close()


def _start(
    shop: setup.Workshop, steps: Steps, order: Batches, checkpoints: Checkpoints
) -> tuple[TrainState, int, list[dict]]:
    """Returns the state, the steps done and the evaluations so far: new, or those saved."""
    newest = checkpoints.newest()
    if newest is None:
        return steps.init(shop.load()), 0, []
    like = jax.eval_shape(steps.init, shop.abstract)
    train_state, host = checkpoints.restore(newest, abstract(like, steps.shardings))
    order.set_state(host["data"])
    return adapters.with_base(train_state, shop, host), newest, host["history"]


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
) -> list[list[Reprompt]] | None:
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
) -> tuple[TrainState, dict[str, float], list[TokenRecord]]:
    """Returns the state after a step, its metrics, and what each update reports of its tokens."""
    reported = []
    for _, placed in updates:
        train_state, metrics, record = steps.train(train_state, placed)
        reported.append((metrics, record))
    train_state = steps.after(train_state)
    host = jax.device_get(reported)
    of_step = learner_metrics.of_step([metrics for metrics, _ in host])
    return train_state, of_step, [record for _, record in host]


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
        "rollout/truncated": float(np.mean([c.finish == "length" for c in completions])),
        "rollout/tokens_per_s": sum(sizes) / seconds,
    } | {f"rollout/{name}": rate for name, rate in words.metrics().items()}
