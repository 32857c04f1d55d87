"""Measures before a training what its teacher knows in each context, and recommends one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sdjax import config, tasks
from sdjax.analysis import context_figures, epistemic
from sdjax.analysis.context_figures import AskedAnswers, ContextFigures, Gaps
from sdjax.config.load import load, with_changes
from sdjax.config.sections.target import PLAIN, REFERENCE, SOLUTION
from sdjax.data.pipeline import Batches, drop_overlong
from sdjax.errors import UserError
from sdjax.io import progress, run_dir
from sdjax.io.files import write_text
from sdjax.learner import batch as batches
from sdjax.learner import update
from sdjax.learner.context_gap import make_context_gap
from sdjax.learner.objective import Objective
from sdjax.parallel import hosts
from sdjax.parallel import mesh as meshes
from sdjax.plan import context_cost, slices, workload
from sdjax.plan.context_cost import ContextCost
from sdjax.plan.slices import Slice
from sdjax.plan.workload import MeshSizes
from sdjax.records import Example, Group, TeacherPrompt
from sdjax.rollout.collect import collect
from sdjax.rollout.interface import SamplingRequest
from sdjax.tasks import Task
from sdjax.teacher import contexts, reprompt
from sdjax.training import evaluation, fingerprint, loaded_model
from sdjax.training.loaded_model import LoadedModel

SHOWN, ASKED = 0, 1
"""What the keys of sampling fold in: for the completions that contexts show, and for answers."""


def run(cfg: config.Preflight) -> None:
    """Writes preflight.md and preflight.json into `cfg.out`, and prints the page."""
    train = _training(cfg)
    read = _contexts(cfg, train)
    epistemic.lexicon(train.lexicon)
    task = tasks.load(train.task, train.data)
    model = loaded_model.open_model(train.model, train.mesh, lora=train.lora)
    piece, mesh = _devices(cfg, train)
    workload.check(train, model.cfg, mesh)
    _check(train, read, model)
    examples = _questions(cfg, train, task, model)
    fingerprints = fingerprint.of_run(model, examples)
    folder = run_dir.claim_folder(cfg.out, cfg, resume=False, fingerprints=fingerprints)
    with jax.set_mesh(model.mesh), run_dir.pushed(folder):
        asked = _Asked.of(train, task, model, examples)
        student = asked.answers([group.prompt for group in asked.repeated], "without a context")
        figures: dict[str, ContextFigures] = {}
        costs: dict[str, ContextCost | None] = {}
        for name, section in read.items():
            prompts = asked.reprompts(section)
            figures[name] = asked.figures(name, prompts, student)
            costs[name] = _cost(asked, name, prompts, piece, mesh)
        if jax.process_index() == 0:
            _report(folder.local, cfg, asked, student, figures, costs)


def _training(cfg: config.Preflight) -> config.Train:
    """Returns the training, with the changes and the contexts of the config.

    Its loss distils, whatever its file says. Raises UserError for a file of another job.
    """
    job = load(cfg.train)
    if isinstance(job, config.Sweep):
        job = next(iter(job.runs.values()))
    if not isinstance(job, config.Train):
        found = type(job).__name__
        raise UserError(f"train is {cfg.train!r}: binds a {found}, not a Train or a Sweep")
    train = with_changes(job, cfg.change, prog=cfg.train)
    assert isinstance(train, config.Train)
    if train.reprompt.regenerate:
        hosts.note("reprompt.regenerate: the preflight shows the demonstration itself")
    return replace(
        train,
        reprompt=replace(train.reprompt, regenerate=False),
        contexts={**train.contexts, **cfg.contexts},
        loss=replace(train.loss, distillation=train.loss.distillation or 1.0),
    )


def _contexts(cfg: config.Preflight, train: config.Train) -> dict[str, config.Reprompt]:
    """Returns the contexts to measure, by name; raises UserError for a name that is none."""
    every = contexts.known(train)
    for name in cfg.only:
        config.require(name in every, "only", name, f"must be of {', '.join(every)}")
    names = cfg.only or [name for name in every if name not in (PLAIN, REFERENCE)]
    return {name: replace(every[name], regenerate=False) for name in names}


def _devices(cfg: config.Preflight, train: config.Train) -> tuple[Slice | None, MeshSizes]:
    """Returns the slice whose seconds are estimated, None if it is unknown, and its mesh."""
    if cfg.topology:
        piece: Slice | None = slices.parse(cfg.topology)
    else:
        piece = context_cost.slice_of(jax.devices()[0].device_kind, jax.device_count())
    number = jax.device_count() if piece is None else piece.devices
    data, fsdp, tensor = meshes.sizes(train.mesh, number)
    rollout_tensor = train.mesh.rollout_tensor
    return piece, MeshSizes(data=data, fsdp=fsdp, tensor=tensor, rollout_tensor=rollout_tensor)


def _check(train: config.Train, read: Mapping[str, config.Reprompt], model: LoadedModel) -> None:
    """Raises UserError if a prompt and its answer exceed the model, or the mesh divides none."""
    hosts.check_same("train", json.dumps(config.to_public(train)), "give every host the same file")
    longest = train.rollout.max_completion_tokens
    limits = {"rollout.max_prompt_tokens": train.rollout.max_prompt_tokens}
    for name, section in read.items():
        field = "reprompt" if name == SOLUTION else f"contexts.{name}"
        limits[f"{field}.max_tokens"] = section.max_tokens
    for field, tokens in limits.items():
        loaded_model.check_context(model.cfg, field, tokens, longest)
    loaded_model.check_shards("optim.microbatch", train.optim.microbatch, model.mesh)
    loaded_model.check_shards("rollout.slots", train.rollout.slots, model.mesh)


def _questions(
    cfg: config.Preflight, train: config.Train, task: Task, model: LoadedModel
) -> list[Example]:
    """Returns the questions that are asked; raises UserError if the data have too few."""
    thinking, field = train.rollout.enable_thinking, "rollout.max_prompt_tokens"
    examples, overlong = drop_overlong(
        task.train,
        lambda e: len(model.tokenizer.encode_prompt(e.messages, enable_thinking=thinking)),
        train.rollout.max_prompt_tokens,
        train.data.on_overlong,
        field,
    )
    if train.data.limit:
        examples = [examples[i] for i in range(min(train.data.limit, len(examples)))]
    need = f"{task.name} has {len(examples)} training questions; lower it"
    config.require(cfg.questions <= len(examples), "questions", cfg.questions, need)
    evaluation.check_same_examples(task.name, examples)
    hosts.note(
        f"{task.name}: {cfg.questions} of {len(examples)} questions ({len(overlong)} too long)"
    )
    evaluation.note_skipped(task)
    return next(Batches(examples, cfg.questions, train.data.seed))


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """A model that is asked questions, and the completions that its contexts show."""

    train: config.Train
    task: Task
    model: LoadedModel
    params: Any
    weights: Any
    """The sampler's."""
    groups: list[Group]

    @classmethod
    def of(
        cls, train: config.Train, task: Task, model: LoadedModel, examples: Sequence[Example]
    ) -> _Asked:
        """Loads the model and draws a group of completions of each question."""
        params = model.load()
        weights = model.sampler.weights(params)
        asked = cls(train=train, task=task, model=model, params=params, weights=weights, groups=[])
        thinking = train.rollout.enable_thinking
        prompts = [
            model.tokenizer.encode_prompt(e.messages, enable_thinking=thinking) for e in examples
        ]
        groups = asked.drawn(prompts, examples, train.rollout.group_size, SHOWN, "groups")
        bad = sum(not np.isfinite(grade.reward) for group in groups for grade in group.grades)
        if bad:
            raise UserError(f"task: {bad} rewards are not finite; mend the reward or the grader")
        return replace(asked, groups=groups)

    def drawn(
        self,
        prompts: Sequence[np.ndarray],
        examples: Sequence[Example],
        size: int,
        noise: int,
        what: str,
    ) -> list[Group]:
        """Returns graded completions, `size` of each prompt, as the training would draw them."""
        key = jax.random.fold_in(jax.random.key(self.train.seed), noise)
        sampling = self.train.rollout
        request = SamplingRequest(prompts=prompts, group_size=size, sampling=sampling, key=key)
        with progress.waiting(f"answering, {what}"):
            return collect(
                self.model.sampler,
                self.weights,
                request,
                examples=examples,
                tokenizer=self.model.tokenizer,
                grade_many=self.task.grade_many,
            )

    @property
    def repeated(self) -> list[Group]:
        """The group of each completion."""
        return [group for group in self.groups for _ in group.completions]

    def reprompts(self, section: config.Reprompt) -> list[TeacherPrompt]:
        """Returns what the teacher reads for each completion in a context."""
        built = reprompt.build(
            self.groups,
            self.model.tokenizer,
            section,
            enable_thinking=self.train.rollout.enable_thinking,
            seed=self.train.seed,
            step=0,
        )
        return [one for of_group in built for one in of_group]

    def answers(self, prompts: Sequence[np.ndarray], what: str) -> AskedAnswers:
        """Returns one answer to each of the prompts, which stand for the completions in order."""
        examples = [group.example for group in self.repeated]
        given = self.drawn(prompts, examples, 1, ASKED, what)
        first = [group.completions[0] for group in given]
        words = [sum(epistemic.count(c.text, self.train.lexicon).values()) for c in first]

        def by_question(values: Sequence[float]) -> np.ndarray:
            return np.array(values).reshape(len(self.groups), self.train.rollout.group_size)

        return AskedAnswers(
            correct=by_question([group.grades[0].correct for group in given]),
            tokens=by_question([len(c.tokens) for c in first]),
            doubt=by_question(words),
            cut=by_question([c.finish == "length" for c in first]),
        )

    def figures(
        self, name: str, prompts: Sequence[TeacherPrompt], student: AskedAnswers
    ) -> ContextFigures:
        """Returns the figures of a context, given what the teacher reads for each completion."""
        taught = np.array([one.distilled for one in prompts]).reshape(student.correct.shape)
        if taught.any(1).sum() < context_figures.LEAST_QUESTIONS:
            return context_figures.of_context(taught, student)
        # All are asked, so that every context runs the same programs; the others do not count.
        teacher = self.answers([one.tokens for one in prompts], f"context {name}")
        with progress.waiting(f"comparing, context {name}"):
            gaps = self.gaps(name, prompts)
        return context_figures.of_context(taught, student, teacher, gaps)

    def gaps(self, name: str, prompts: Sequence[TeacherPrompt]) -> Gaps:
        """Returns how far the student is from the teacher on the completions that it can teach.

        Raises UserError if a divergence is not finite.
        """
        train, model, groups = self.train, self.model, self.groups
        loss = config.Loss(distillation=1.0, chunk_tokens=train.loss.chunk_tokens)
        # Every context has the name of the default target, so that all run the same program.
        aim = replace(Objective.of(train), loss=loss, target=config.Target())
        aim = replace(aim, teacher=config.Teacher(kind="live"))
        size = train.rollout.group_size
        read = {SOLUTION: [prompts[i : i + size] for i in range(0, len(prompts), size)]}
        longest = train.rollout.max_completion_tokens
        samples = batches.samples_of(groups, read, loss, config.Policy(), longest)
        marked = [
            epistemic.epistemic_tokens(
                model.tokenizer.pieces(c.tokens, checked=False), train.lexicon
            )
            for group in groups
            for c in group.completions
        ]
        packed = batches.pack(groups, read, samples, marked, train.optim, model.tokenizer.pad_id)
        placed = hosts.place(packed, update.batch_shardings(packed, model.mesh))
        measure = make_context_gap(model.graphdef, aim, model.mesh)
        found = np.asarray(jax.device_get(measure(self.params, placed)), np.float64)
        at = packed.rows.sample >= 0
        if not np.isfinite(found[at]).all():
            raise UserError(
                f"context {name}: the divergence is not finite at "
                f"{(~np.isfinite(found[at])).sum()} of {at.sum()} tokens; check model.path"
            )
        doubt = packed.rows.epistemic & at

        def sums(where: np.ndarray, values: np.ndarray) -> np.ndarray:
            completion = packed.rows.sample[where]
            total = np.bincount(completion, values[where], minlength=len(prompts))
            return total.reshape(-1, size)

        ones = np.ones_like(found)
        return Gaps(
            kl=sums(at, found),
            kl_of_doubt=sums(doubt, found),
            tokens=sums(at, ones),
            tokens_of_doubt=sums(doubt, ones),
        )


def _cost(
    asked: _Asked,
    name: str,
    prompts: Sequence[TeacherPrompt],
    piece: Slice | None,
    mesh: MeshSizes,
) -> ContextCost | None:
    """Returns what a step costs with the context as the target; None if it teaches nothing."""
    completions = [len(c.tokens) for group in asked.groups for c in group.completions]
    taught = [i for i, one in enumerate(prompts) if one.distilled]
    if not taught:
        return None
    repeated = asked.repeated
    return context_cost.of_context(
        replace(asked.train, target=config.Target(context=name)),
        asked.model.cfg,
        mesh,
        piece,
        [len(repeated[i].prompt) for i in taught],
        [len(prompts[i].tokens) for i in taught],
        [completions[i] for i in taught],
    )


def _report(
    out: Path,
    cfg: config.Preflight,
    asked: _Asked,
    student: AskedAnswers,
    figures: Mapping[str, ContextFigures],
    costs: Mapping[str, ContextCost | None],
) -> None:
    """Writes preflight.md and preflight.json, and prints the page."""
    grades = [group.grades for group in asked.groups]
    groups = context_figures.of_groups(
        np.array([[grade.reward for grade in of] for of in grades]),
        np.array([[grade.correct for grade in of] for of in grades]),
    )
    alone = context_figures.of_answers(student)
    said = context_figures.recommendation(
        figures, groups, least_groups=cfg.least_groups, least_doubt=cfg.least_doubt
    )
    found = {
        "train": cfg.train,
        "training": config.to_public(asked.train),
        "questions": len(asked.groups),
        "answers": asked.train.rollout.group_size,
        "student": asdict(alone),
        "groups": asdict(groups),
        "contexts": {
            name: asdict(of) | {"cost": None if (cost := costs[name]) is None else asdict(cost)}
            for name, of in figures.items()
        },
        "recommendation": said,
    }
    number = f"{len(asked.groups)} training questions x {asked.train.rollout.group_size} answers"
    page = context_figures.page(
        title=cfg.train,
        asked=f"{asked.train.model.path}, {number}",
        alone=alone,
        groups=groups,
        contexts=figures,
        costs={name: {} if cost is None else cost.cells() for name, cost in costs.items()},
        advice=said,
    )
    write_text(out / "preflight.md", page + "\n")
    write_text(out / "preflight.json", json.dumps(found, indent=2, allow_nan=False) + "\n")
    print(page)
