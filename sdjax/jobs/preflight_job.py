"""Measures before a training what its teacher knows in each context, and recommends one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from operator import itemgetter
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
from sdjax.learner.context_gap import make_context_gap
from sdjax.learner.objective import Objective
from sdjax.models.network.model_config import ModelConfig
from sdjax.parallel import hosts, rules
from sdjax.parallel import mesh as meshes
from sdjax.plan import context_cost, slices, workload
from sdjax.plan.context_cost import ContextCost
from sdjax.plan.slices import Slice
from sdjax.plan.workload import MeshSizes
from sdjax.records import Completion, Example, Group, TeacherPrompt
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
    run_dir.check_places(cfg)
    train = _training(cfg)
    read = _contexts(cfg, train)
    epistemic.lexicon(train.lexicon)
    task = tasks.load(train.task, train.data)
    _check_number(cfg, task, task.train)
    piece, mesh = _devices(cfg, train)
    model = loaded_model.open_model(
        train.model, train.mesh, lora=train.lora, check=partial(_check, train, read, mesh)
    )
    examples = _questions(cfg, train, task, model)
    fingerprints = fingerprint.of_run(model, examples)
    folder = run_dir.claim_folder(cfg.out, cfg, resume=False, fingerprints=fingerprints)
    with jax.set_mesh(model.mesh), run_dir.pushed(folder):
        asked = _Asked.of(train, task, model, examples)
        shown = {name: asked.reprompts(section) for name, section in read.items()}
        student, figures = _figures(asked, shown)
        costs = {name: _cost(asked, name, prompts, piece, mesh) for name, prompts in shown.items()}
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
    kind, need = train.teacher.kind, "of a preflight: the student's weights read the contexts there"
    config.require(kind != "model", "teacher.kind", kind, f"is no teacher {need}")
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
    sizes = meshes.sizes(train.mesh, number)
    return piece, MeshSizes.of(sizes, train.mesh.rollout_tensor)


def _check(
    train: config.Train,
    read: Mapping[str, config.Reprompt],
    planned: MeshSizes,
    model: ModelConfig,
    mesh: jax.sharding.Mesh,
) -> None:
    """Raises UserError if a prompt and its answer exceed the model, or a mesh divides no batch.

    Args:
        train: The training.
        read: Its contexts by name.
        planned: The mesh for which the cost is estimated.
        model: The config of its model.
        mesh: The mesh of this process.
    """
    workload.check(train, model, planned)
    hosts.check_same("train", json.dumps(config.to_public(train)), "give every host the same file")
    longest = train.rollout.max_completion_tokens
    limits = {"rollout.max_prompt_tokens": train.rollout.max_prompt_tokens}
    for name, section in read.items():
        field = "reprompt" if name == SOLUTION else f"contexts.{name}"
        limits[f"{field}.max_tokens"] = section.max_tokens
    for field, tokens in limits.items():
        loaded_model.check_context(model, field, tokens, longest)
    loaded_model.check_shards("optim.microbatch", train.optim.microbatch, mesh)
    loaded_model.check_shards("rollout.slots", train.rollout.slots, mesh)


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
    _check_number(cfg, task, examples)
    evaluation.check_same_examples(task.name, examples)
    hosts.note(
        f"{task.name}: {cfg.questions} of {len(examples)} questions ({len(overlong)} too long)"
    )
    evaluation.note_skipped(task)
    return next(Batches(examples, cfg.questions, train.data.seed))


def _check_number(cfg: config.Preflight, task: Task, examples: Sequence[Example]) -> None:
    """Raises UserError if more questions are to be asked than there are."""
    need = f"{task.name} has {len(examples)} training questions; lower it"
    config.require(cfg.questions <= len(examples), "questions", cfg.questions, need)


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
    def completions(self) -> list[tuple[Group, Completion]]:
        """The completions that contexts show, each with its group."""
        return [(group, one) for group in self.groups for one in group.completions]

    def reprompts(self, section: config.Reprompt) -> list[TeacherPrompt]:
        """Returns the reprompt of each completion in a context."""
        built = reprompt.build(
            self.groups,
            self.model.tokenizer,
            section,
            enable_thinking=self.train.rollout.enable_thinking,
            seed=self.train.seed,
            step=0,
        )
        return [one for of_group in built for one in of_group]

    def answers(self, prompts: Sequence[Sequence[np.ndarray | None]]) -> list[AskedAnswers]:
        """Returns one answer to each prompt, whose places are those of the completions.

        `prompts` has one for each completion, or None, in each of several contexts. All are drawn
        together, because separate draws would compile more programs.
        """
        every = [(number, i) for number, of in enumerate(prompts) for i in range(len(of))]
        every = [(number, i) for number, i in every if prompts[number][i] is not None]
        groups = [group for group, _ in self.completions]
        given = self.drawn(
            [p for of in prompts for p in of if p is not None],
            [groups[i].example for _, i in every],
            1,
            ASKED,
            f"{len(every):,} answers",
        )
        shape = (len(prompts), len(self.groups), self.train.rollout.group_size)
        correct, tokens, doubt, cut = (np.zeros(shape, t) for t in (bool, int, int, bool))
        for (number, i), group in zip(every, given, strict=True):
            (one,), at = group.completions, (number, *divmod(i, shape[-1]))
            correct[at], tokens[at] = group.grades[0].correct, len(one.tokens)
            doubt[at] = sum(epistemic.count(one.text, self.train.lexicon).values())
            cut[at] = one.finish == "length"
        parts = zip(correct, tokens, doubt, cut, strict=True)
        return [AskedAnswers(correct=c, tokens=t, doubt=d, cut=e) for c, t, d, e in parts]

    def gaps(self, prompts: Sequence[Sequence[TeacherPrompt]]) -> list[Gaps]:
        """Returns how far the student is from the teacher on what each of several contexts teaches.

        `prompts` has one for each completion in each context, which teaches one at least. Raises
        UserError if a divergence is not finite.
        """
        train, model, size = self.train, self.model, self.train.rollout.group_size
        loss = config.Loss(distillation=1.0, chunk_tokens=train.loss.chunk_tokens)
        # All contexts are packed as one with the name of the default target: one program.
        aim = replace(Objective.of(train), loss=loss, target=config.Target())
        aim = replace(aim, teacher=config.Teacher(kind="live"))
        groups = self.groups * len(prompts)
        read = {SOLUTION: [of[i : i + size] for of in prompts for i in range(0, len(of), size)]}
        longest = train.rollout.max_completion_tokens
        samples = batches.samples_of(groups, read, loss, config.Policy(), longest)
        pieces = [model.tokenizer.pieces(c.tokens, checked=False) for _, c in self.completions]
        marked = [epistemic.epistemic_tokens(of, train.lexicon) for of in pieces] * len(prompts)
        packed = batches.pack(groups, read, samples, marked, train.optim, model.tokenizer.pad_id)
        measure = make_context_gap(model.graphdef, aim, model.mesh)
        found = np.zeros(packed.rows.token.shape)
        for i in range(packed.microbatches):
            rows = jax.tree.map(itemgetter(i), packed.rows)
            found[i] = measure(self.params, hosts.place(rows, rules.leading(model.mesh)))
        at = packed.rows.sample >= 0
        if not np.isfinite(found[at]).all():
            bad = f"{(~np.isfinite(found[at])).sum():,} of {at.sum():,} tokens"
            raise UserError(
                f"model.path is {train.model.path!r}: its divergence from itself in a "
                f"context is not finite at {bad}"
            )
        doubt = packed.rows.epistemic & at

        def sums(where: np.ndarray, values: np.ndarray) -> np.ndarray:
            number = len(samples.length)
            total = np.bincount(packed.rows.sample[where], values[where], minlength=number)
            return total.reshape(len(prompts), -1, size)

        ones = np.ones_like(found)
        parts = zip(
            sums(at, found), sums(doubt, found), sums(at, ones), sums(doubt, ones), strict=True
        )
        return [Gaps(kl=a, kl_of_doubt=b, tokens=c, tokens_of_doubt=d) for a, b, c, d in parts]


def _figures(
    asked: _Asked, shown: Mapping[str, Sequence[TeacherPrompt]]
) -> tuple[AskedAnswers, dict[str, ContextFigures]]:
    """Returns the student's answers, and the figures of each context.

    `shown` has what the teacher reads for each completion, by context.
    """
    size = asked.train.rollout.group_size
    taught = {
        name: np.array([one.distilled for one in prompts]).reshape(-1, size)
        for name, prompts in shown.items()
    }
    enough = context_figures.LEAST_QUESTIONS
    names = [name for name, where in taught.items() if where.any(1).sum() >= enough]
    alone: list[np.ndarray | None] = [group.prompt for group, _ in asked.completions]
    read = [[x.tokens if x.distilled else None for x in shown[name]] for name in names]
    student, *teachers = asked.answers([alone, *read])
    gaps = asked.gaps([shown[name] for name in names]) if names else []
    figures = {name: context_figures.of_context(where, student) for name, where in taught.items()}
    for name, teacher, gap in zip(names, teachers, gaps, strict=True):
        figures[name] = context_figures.of_context(taught[name], student, teacher, gap)
    return student, figures


def _cost(
    asked: _Asked,
    name: str,
    prompts: Sequence[TeacherPrompt],
    piece: Slice | None,
    mesh: MeshSizes,
) -> ContextCost | None:
    """Returns the cost of a step whose target is the context; None if it teaches nothing."""
    pairs = zip(asked.completions, prompts, strict=True)
    taught = [(group, one, read) for (group, one), read in pairs if read.distilled]
    if not taught:
        return None
    return context_cost.of_context(
        replace(asked.train, target=config.Target(context=name)),
        asked.model.cfg,
        mesh,
        piece,
        [len(group.prompt) for group, _, _ in taught],
        [len(read.tokens) for _, _, read in taught],
        [len(one.tokens) for _, one, _ in taught],
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
