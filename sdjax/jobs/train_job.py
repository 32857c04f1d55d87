"""Trains a model on its own words: SDPO, GRPO or a blend."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import jax
import numpy as np

from sdjax import config, own_functions, tasks
from sdjax.analysis import epistemic
from sdjax.config.sections.target import SOLUTION
from sdjax.data.pipeline import LISTED, drop_overlong
from sdjax.errors import UserError
from sdjax.io import run_dir
from sdjax.learner import batch
from sdjax.learner.checkpoint import Checkpoints
from sdjax.logs import trackers
from sdjax.models.network.model_config import ModelConfig
from sdjax.objectives import divergences, learn_from, token_weights
from sdjax.parallel import hosts
from sdjax.records import Example, Group
from sdjax.tasks import Task
from sdjax.teacher import contexts
from sdjax.training import (
    evaluation,
    fingerprint,
    host_step,
    lm_tasks,
    loaded_model,
    loop,
    publish,
    replay,
    resume,
    teacher_model,
)
from sdjax.training.evaluation import HeldOut
from sdjax.training.stopping import Stop

NO_TOKENS = np.zeros(0, np.int32)
LONGEST_PROMPT = "rollout.max_prompt_tokens"


def run(cfg: config.Train) -> None:
    """Trains, evaluates, checkpoints and exports as the config says."""
    if cfg.replay is not None:
        replay.run(cfg)
        return
    after = resume.done(cfg.out) if cfg.resume else 0
    cfg = loaded_model.kept_date(cfg)
    changes = run_dir.check_same(cfg, after)
    stop = Stop()
    task, model, examples, sets = _prepare(cfg, stop.check)
    cfg = model.dated(cfg)
    shared = cfg.resume or cfg.checkpoint.every > 0
    fingerprints = fingerprint.of_run(model, examples, sets)
    folder = run_dir.claim_folder(
        cfg.out,
        cfg,
        resume=cfg.resume,
        shared=shared,
        after=after,
        fingerprints=fingerprints,
    )
    if changes and after >= cfg.steps:
        hosts.note(f"step {after} of {cfg.steps} is done: nothing is trained, nothing changes")
    saved = Checkpoints(folder.place / "checkpoints", cfg.checkpoint)
    listening = stop.listening(cfg.checkpoint.every > 0)
    with jax.set_mesh(model.mesh), listening, run_dir.pushed(folder):
        setup = host_step.make_setup(cfg, task, model, examples)
        with loop.running(setup, sets, folder, saved, fingerprints) as (progress, out):
            loop.train(setup, progress, out, stop)
        adapters = model.cfg.lora is not None
        publish.publish_run(cfg.checkpoint, folder, progress.step, adapters=adapters)


def _prepare(
    cfg: config.Train, between: Callable[[], None] = lambda: None
) -> tuple[Task, loaded_model.LoadedModel, Sequence[Example], Sequence[HeldOut]]:
    """Returns task, model, training examples and held-out sets, all checked; loads no weights.

    The sampler calls `between` often; what it raises ends the sampling.
    """
    divergences.get(cfg.loss.divergence)
    token_weights.get(cfg.loss.token_weights)
    learn_from.check(cfg.loss)
    contexts.used(cfg)
    teacher_model.check(cfg)
    if cfg.alarm.teacher_off and contexts.used(cfg.without_teacher()):
        raise UserError(
            f"policy.credit is {cfg.policy.credit!r}: it reads what alarm.teacher_off switches "
            "off; choose another one, or set alarm.teacher_off False"
        )
    epistemic.lexicon(cfg.lexicon)
    if jax.process_index() == 0:
        trackers.check(cfg.log)
        publish.Destination.of(cfg.checkpoint).check()
    lm_tasks.check(cfg.lm_eval)
    task = tasks.load(_with_columns(cfg), cfg.data)
    if len(task.train):
        _check_solutions(cfg, task)
        _check_feedback(cfg, task)
        _check_routes(cfg, task)
    others = tasks.load_others(cfg.out_of_domain, cfg.data)
    model = loaded_model.open_model(
        cfg.model,
        cfg.mesh,
        cfg.rollout.server,
        cfg.out,
        cfg.lora,
        between,
        check=partial(_check_sizes, cfg),
    )
    model = loaded_model.with_teachers(model, cfg)
    loaded_model.check_server(model.sampler, cfg.rollout)
    thinking = cfg.rollout.enable_thinking
    limit = cfg.rollout.max_prompt_tokens
    examples, overlong = drop_overlong(
        task.train,
        lambda e: len(model.tokenizer.encode_prompt(e.messages, enable_thinking=thinking)),
        limit,
        cfg.data.on_overlong,
        LONGEST_PROMPT,
    )
    if cfg.data.limit:
        examples = [examples[i] for i in range(min(cfg.data.limit, len(examples)))]
    evaluation.check_same_examples(task.name, examples)
    sets = evaluation.held_out(
        task, others, cfg.eval, model.tokenizer, limit, thinking, field=LONGEST_PROMPT
    )
    hosts.note(
        f"{task.name}: {len(examples)} training examples ({len(overlong)} over {limit} prompt "
        "tokens left out)"
    )
    evaluation.note_held_out(sets)
    if cfg.lm_eval.tasks:
        need = "needs evaluations: the task has no held-out examples"
        config.require(bool(sets), "lm_eval.tasks", cfg.lm_eval.tasks, need)
    if cfg.checkpoint.keep_best:
        evaluation.check_metric(
            "checkpoint.best_metric", cfg.checkpoint.best_metric, sets, cfg.eval
        )
    return task, model, examples, sets


def _check_sizes(cfg: config.Train, model: ModelConfig, mesh: jax.sharding.Mesh) -> None:
    """Raises UserError if a batch does not fit the mesh, or a prompt and its answer the model."""
    completion = cfg.rollout.max_completion_tokens
    loaded_model.check_context(model, LONGEST_PROMPT, cfg.rollout.max_prompt_tokens, completion)
    # With regeneration the model answers the reprompts, and it cannot exceed its context.
    for name, section in contexts.used(cfg).items():
        if section.regenerate or not section.beyond_context:
            field = "reprompt" if name == SOLUTION else f"contexts.{name}"
            loaded_model.check_context(model, f"{field}.max_tokens", section.max_tokens, completion)
    loaded_model.check_shards("optim.microbatch", cfg.optim.microbatch, mesh)
    loaded_model.check_shards("rollout.prompts_per_step", cfg.rollout.prompts_per_step, mesh)
    loaded_model.check_shards("rollout.slots", cfg.rollout.slots, mesh)
    loaded_model.check_shards("eval.slots", cfg.eval.slots, mesh)
    if cfg.loss.distillation > 0 and cfg.loss.divergence == "top_k":
        loaded_model.check_vocabulary(model, "loss.top_k", cfg.loss.top_k)
    loaded_model.check_vocabulary(model, "log.alternatives", cfg.log.alternatives)


def _looked_at(cfg: config.Train, task: Task) -> list[Example]:
    """Returns the training examples that are checked: of a large data set the first ones only."""
    number = min(len(task.train), cfg.data.limit or LISTED, LISTED // 100)
    return [task.train[i] for i in range(number)]


def _check_feedback(cfg: config.Train, task: Task) -> None:
    """Raises UserError if a teacher is to read feedback alone and the task's rule never gives any.

    It asks a rule of sdjax only. What a grader or a reward of the user says is known at step 1.
    """
    alone = [
        x
        for x in contexts.used(cfg).values()
        if x.feedback and x.demonstration == "none" and not (x.instruction or x.always)
    ]
    own = own_functions.is_named(str(getattr(cfg.task, "grader", "")))
    foreign = not type(cfg.task).__module__.startswith("sdjax.")
    if not alone or own or foreign or cfg.task.all_rewards():
        return
    # A rule that gives feedback gives some to an answer that is missing, vague or cut off.
    texts = ["", "I am not sure.", "I am not sure."]
    grades = task.grade_many(texts, [task.train[0]] * len(texts), [False, False, True])
    if not any(grade.feedback.strip() for grade in grades):
        raise UserError(
            "reprompt.feedback is True: the rule of the task gives no feedback, so no teacher "
            "knows more than the student; set reprompt.demonstration to 'random', or choose "
            "another rule with task.grader"
        )


def _with_columns(cfg: config.Train) -> config.TaskConfig:
    """Returns the task's config, which keeps the columns that a teacher's route reads."""
    return replace(cfg.task, keep_columns=True) if cfg.teacher.route else cfg.task


def _check_routes(cfg: config.Train, task: Task) -> None:
    """Raises UserError if the column of teacher.route names no model in a row.

    Every step checks the rows that it reads.
    """
    if cfg.teacher.route:
        rows = [
            Group(example=each, prompt=NO_TOKENS, completions=(), grades=())
            for each in _looked_at(cfg, task)
        ]
        batch.routes(rows, cfg.teacher)


def _check_solutions(cfg: config.Train, task: Task) -> None:
    """Raises UserError if a teacher is to read solutions and no example has one.

    Prints a line where some examples have none.
    """
    shown = [x for x in contexts.used(cfg).values() if x.demonstration == "solution"]
    if not shown:
        return
    examples = _looked_at(cfg, task)
    without = sum(not (example.solution or "").strip() for example in examples)
    if without == len(examples) and not any(x.feedback for x in shown):
        raise UserError(
            f"reprompt.demonstration is 'solution': none of the {without} training examples has a "
            "solution; set it to 'random', or use data with solutions"
        )
    if without:
        hosts.note(f"reprompt: {without} of {len(examples)} training examples have no solution")
