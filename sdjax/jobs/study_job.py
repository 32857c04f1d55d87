"""Asks a model the same questions with and without a solution in the prompt.

Each condition has a file of answers, and every figure comes from these files. An interrupted study
therefore goes on where it stopped.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax

from sdjax import config, tasks
from sdjax.analysis import epistemic, scores, study_scores
from sdjax.data.pipeline import drop_overlong
from sdjax.errors import UserError
from sdjax.io import lease, run_dir
from sdjax.io.files import write_text
from sdjax.parallel import hosts
from sdjax.records import Example
from sdjax.tasks import Task
from sdjax.teacher import reprompt
from sdjax.training import evaluation, fingerprint, loaded_model
from sdjax.training.evaluation import HeldOut
from sdjax.training.loaded_model import LoadedModel

# Tokens that the templates may add to a prompt with a solution.
TEMPLATE_TOKENS = 64
# A condition draws with the noise of its index here, whichever other conditions run.
NOISE = ("collected", "unguided", "guided", "without_thinking", "regenerated")

Problems = Mapping[str, Sequence[Mapping[str, Any]]]
"""The answers of each problem, by its id."""


@dataclass(kw_only=True)
class _Study:
    """A study that runs."""

    cfg: config.Study
    task: Task
    model: LoadedModel
    out: Path
    weights: Callable[[], Any]
    """Returns the sampler's weights."""
    answers: dict[str, Problems] = field(default_factory=dict)
    """The answers by condition."""
    shown: dict[str, dict[str, str]] = field(default_factory=dict)
    """The solutions that prompts show, by condition and problem."""

    def ask(self, name: str, examples: Sequence[Example], index: int, file: Path) -> Any:
        """Yields the answers to examples, batch by batch, and appends new ones to the file.

        `index` is that of the condition in NOISE, and further rounds count on from it.
        """
        held_out = HeldOut(name=name, task=self.task, examples=examples, overlong=0)
        plan = [
            replace(batch, index=index)
            for batch in evaluation.batches([held_out], self.cfg.eval.batch)
        ]
        thinking = self.cfg.enable_thinking
        return evaluation.resumed(
            file, plan, self.model, self.cfg.eval, thinking, weights=self.weights
        )

    def condition(
        self,
        name: str,
        problems: Mapping[str, Example],
        shown: Mapping[str, str] | None,
        index: int,
    ) -> None:
        """Asks the problems, each with its solution in `shown`; leaves out those without one.

        With None in place of `shown`, no prompt shows a solution.
        """
        if shown is None:
            examples = list(problems.values())
        else:
            self.shown[name] = {i: shown[i] for i in problems if shown.get(i, "").strip()}
            examples = [
                replace(
                    problems[i],
                    messages=reprompt.messages(problems[i], [text], "", self.cfg.reprompt),
                )
                for i, text in self.shown[name].items()
            ]
        if not examples:
            hosts.note(f"{name}: no problem has anything to show; left out")
            return
        file = self.out / "answers" / f"{name}.jsonl"
        lease.make_folder(file.parent)
        rows = [row for batch in self.ask(name, examples, index, file) for row in batch]
        self.answers[name] = study_scores.by_problem(rows)


def run(cfg: config.Study) -> None:
    """Collects problems, answers them under each condition, writes figures and data sets."""
    after = run_dir.answers(cfg.out, "collected.jsonl", "answers/*.jsonl") if cfg.resume else 0
    cfg = loaded_model.kept_date(cfg)
    changes = run_dir.check_same(cfg, after)
    epistemic.lexicon(cfg.lexicon)
    task = tasks.load(cfg.task, cfg.data)
    model = loaded_model.open_model(cfg.model, cfg.mesh, cfg.server)
    cfg = model.dated(cfg)
    longest = cfg.eval.max_completion_tokens
    # A solution is an answer, so a prompt may have to hold the longest one with the question.
    whole = cfg.max_prompt_tokens + longest + TEMPLATE_TOKENS + longest
    config.require(
        whole <= model.cfg.max_positions,
        "eval.max_completion_tokens",
        longest,
        f"with a solution of that length in a prompt of {cfg.max_prompt_tokens} tokens {whole} are "
        f"needed, over the model's context of {model.cfg.max_positions}; lower it or "
        "max_prompt_tokens",
    )
    loaded_model.check_shards("eval.slots", cfg.eval.slots, model.mesh)
    candidates = _candidates(cfg, task, model)
    loaded_model.check_server(model.sampler, None)
    fingerprints = fingerprint.of_run(model, candidates)
    folder = run_dir.claim(cfg.out, cfg, resume=cfg.resume, after=after, fingerprints=fingerprints)

    @functools.cache
    def weights() -> Any:
        loaded = model.stored_weights()
        if after:
            run_dir.record(folder, cfg, after, fingerprints)
            changes.clear()
        return loaded

    with jax.set_mesh(model.mesh), run_dir.pushed(folder):
        study = _Study(
            cfg=cfg,
            task=task,
            model=model,
            out=folder.local,
            weights=weights,
        )
        collected, tried = _collect(study, candidates)
        _conditions(study, collected, {e.id: e for e in candidates if e.id in collected})
        if changes:  # The scores are computed anew, although nothing was sampled.
            run_dir.record(folder, cfg, after, fingerprints)
        if jax.process_index() == 0:
            _report(study, collected, tried)


def _candidates(cfg: config.Study, task: Task, model: LoadedModel) -> Sequence[Example]:
    """Returns the problems that may be tried, without overlong prompts and repeated ids."""
    examples = task.train if cfg.split == "train" else task.held_out
    thinking = cfg.enable_thinking
    kept, overlong = drop_overlong(
        [examples[i] for i in range(min(cfg.tried, len(examples)))],
        lambda e: len(model.tokenizer.encode_prompt(e.messages, enable_thinking=thinking)),
        cfg.max_prompt_tokens,
        cfg.data.on_overlong,
    )
    hosts.note(f"{task.name}: {len(kept)} problems to try ({len(overlong)} overlong left out)")
    evaluation.note_skipped(task)
    # The first of several rows with one id, because the id identifies the answers.
    return list({example.id: example for example in reversed(kept)}.values())[::-1]


def _collect(study: _Study, candidates: Sequence[Example]) -> tuple[Problems, Problems]:
    """Returns the answers to the problems of the study, and to all problems that were tried.

    Raises UserError if no problem is solved as often as the config wants.
    """
    cfg = study.cfg
    tried: dict[str, Sequence[Mapping[str, Any]]] = {}
    kept: dict[str, Sequence[Mapping[str, Any]]] = {}
    for rows in study.ask("collected", candidates, 0, study.out / "collected.jsonl"):
        for name, answers in study_scores.by_problem(rows).items():
            tried[name] = answers
            if cfg.solved_min <= study_scores.solved(answers) <= cfg.solved_max:
                kept[name] = answers
        if len(kept) >= cfg.problems:
            break
    counts = study_scores.histogram(tried, cfg.eval.k)
    hosts.note(f"{len(tried)} problems tried; solved so often of {cfg.eval.k}: {counts}")
    if not kept:
        raise UserError(
            f"solved_min is {cfg.solved_min}: none of {len(tried)} problems was solved "
            f"{cfg.solved_min} to {cfg.solved_max} times of {cfg.eval.k} (solved: {counts}); "
            "change solved_min and solved_max, or ask easier or harder questions"
        )
    if len(kept) < cfg.problems:
        hosts.note(f"only {len(kept)} of the {cfg.problems} problems asked for were found")
    return dict(list(kept.items())[: cfg.problems]), tried


def _conditions(study: _Study, collected: Problems, problems: Mapping[str, Example]) -> None:
    """Answers the problems under each condition, in the paper's order."""
    cfg = study.cfg
    whole = {i: study_scores.best(rows)["completion"] for i, rows in collected.items()}
    shown = {
        "unguided": None,
        "guided": whole,
        "without_thinking": {i: reprompt.strip_thinking(text) for i, text in whole.items()},
    }
    if "without_thinking" in cfg.conditions and shown["without_thinking"] == whole:
        hosts.note("without_thinking: no solution has thinking in it, so it shows what guided does")
    for name in ("unguided", "guided", "without_thinking"):
        if name in cfg.conditions:
            study.condition(name, problems, shown[name], NOISE.index(name))
    last = "guided"
    for number in range(1, cfg.rounds + 1):
        name = "regenerated" if number == 1 else f"regenerated_{number}"
        best = {i: study_scores.best(rows)["completion"] for i, rows in study.answers[last].items()}
        study.condition(name, problems, best, NOISE.index("regenerated") + number - 1)
        if name not in study.answers:
            break
        last = name


def _report(study: _Study, collected: Problems, tried: Problems) -> None:
    """Writes scores, trajectories and data sets of the answers, and prints a table."""
    cfg, out = study.cfg, study.out
    flat = {
        name: [row for rows in by_id.values() for row in rows]
        for name, by_id in study.answers.items()
    }
    by_condition = {name: scores.of_rows(rows, cfg.lexicon) for name, rows in flat.items()}
    counts = study_scores.histogram(tried, cfg.eval.k)
    figures = {
        "problems": len(collected),
        "tried": len(tried),
        "solved": counts,
        "conditions": {name: s.to_dict() for name, s in by_condition.items()},
    }
    write_text(out / "scores.json", json.dumps(figures, indent=2) + "\n")
    tables = [
        study_scores.to_markdown(by_condition),
        study_scores.words_to_markdown(by_condition),
        study_scores.histogram_to_markdown(counts),
    ]
    write_text(out / "scores.md", "\n\n".join(tables) + "\n")
    chain = [c for c in study.answers if c == "guided" or c.startswith("regenerated")]
    lines = study_scores.trajectories(collected, study.answers, study.shown, chain, cfg.lexicon)
    write_text(out / "trajectories.jsonl", evaluation.jsonl(list(lines)))
    print(tables[0])
    if "guided" in study.answers:
        unguided = {
            i: [*rows, *study.answers.get("unguided", {}).get(i, ())]
            for i, rows in collected.items()
        }
        ug, sg = study_scores.data_sets(unguided, study.answers["guided"], cfg.traces)
        for name, rows in (("d_ug", ug), ("d_sg", sg)):
            write_text(out / f"{name}.jsonl", evaluation.jsonl(rows))
        hosts.note(f"{out / 'd_ug.jsonl'}, {out / 'd_sg.jsonl'}: {len(ug)} conversations each")
