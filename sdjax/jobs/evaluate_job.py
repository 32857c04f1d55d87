"""Scores a model on held-out examples of tasks, and on tasks of lm-evaluation-harness."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from sdjax import config, tasks
from sdjax.analysis import epistemic, pass_curve, scores
from sdjax.io import run_dir, storage
from sdjax.io.files import write_text
from sdjax.logs import profiler
from sdjax.training import evaluation, fingerprint, lm_tasks, loaded_model
from sdjax.training.loaded_model import LoadedModel


def run(cfg: config.Evaluate) -> None:
    """Writes answers.jsonl, scores.json and scores.md into `cfg.out` and prints the table."""
    answered = ("answers.jsonl", f"{lm_tasks.FOLDER}/*.jsonl")
    after = run_dir.answers(cfg.out, *answered) if cfg.resume else 0
    cfg = loaded_model.kept_date(cfg)
    changes = run_dir.check_same(cfg, after)
    epistemic.lexicon(cfg.lexicon)
    if cfg.plots:
        pass_curve.library()
    lm_tasks.check(cfg.lm_eval)
    model, sets = _prepare(cfg)
    cfg, thinking = model.dated(cfg), cfg.enable_thinking
    plan = evaluation.batches(sets, cfg.eval.batch)
    loaded_model.check_server(model.sampler, None)
    fingerprints = fingerprint.of_run(model, sets=sets)
    folder = run_dir.claim_folder(
        cfg.out, cfg, resume=cfg.resume, after=after, fingerprints=fingerprints
    )
    primary, file = jax.process_index() == 0, folder.local / "answers.jsonl"

    @functools.cache
    def weights() -> Any:
        loaded = model.stored_weights()
        if after:
            run_dir.record(folder, cfg, after, fingerprints)
            changes.clear()
        return loaded

    with (
        jax.set_mesh(model.mesh),
        run_dir.pushed(folder),
        profiler.rounds(cfg.profile) as before,
    ):
        for _ in evaluation.resumed(file, plan, model, cfg.eval, thinking, before, weights):
            if primary:
                folder.push(every_s=evaluation.PUSH_S)
        harness = _harness(cfg, model, folder, weights)
        if changes:  # The scores are computed anew, although nothing was sampled.
            run_dir.record(folder, cfg, after, fingerprints)
        if primary:
            _report(folder.local, sets, cfg, harness)


def _prepare(cfg: config.Evaluate) -> tuple[LoadedModel, list[evaluation.HeldOut]]:
    """Returns the model and the sets of examples, all checked; loads no weights.

    There are no sets without a task.
    """
    task = None if cfg.task is None else tasks.load(cfg.task, cfg.data)
    others = tasks.load_others(cfg.out_of_domain, cfg.data)
    model = loaded_model.open_model(cfg.model, cfg.mesh, cfg.server)
    loaded_model.check_shards("eval.slots", cfg.eval.slots, model.mesh)
    if cfg.task is None or task is None:
        return model, []
    loaded_model.check_context(
        model.cfg, "max_prompt_tokens", cfg.max_prompt_tokens, cfg.eval.max_completion_tokens
    )
    sets = evaluation.held_out(
        task, others, cfg.eval, model.tokenizer, cfg.max_prompt_tokens, cfg.enable_thinking
    )
    config.require(bool(sets), "task.held_out", cfg.task.held_out, "there is nothing to evaluate")
    evaluation.note_held_out(sets)
    return model, sets


def _harness(
    cfg: config.Evaluate, model: LoadedModel, folder: storage.Folder, weights: Callable[[], Any]
) -> lm_tasks.Figures:
    """Returns the figures of all tasks of lm-evaluation-harness; scores those without a file.

    `weights` returns the sampler's weights. It is called only if a task is scored.
    """
    done = lm_tasks.read(folder.local)
    names = [name for name in cfg.lm_eval.tasks if name not in done]
    if names:
        for name, figures, documents in lm_tasks.score(
            model, weights(), cfg.lm_eval, cfg.eval, cfg.enable_thinking, names
        ):
            done[name] = figures
            if jax.process_index() == 0:
                lm_tasks.write(folder.local, done, name, documents)
                folder.push(every_s=evaluation.PUSH_S)
    return {task: of for name in cfg.lm_eval.tasks for task, of in done[name].items()}


def _report(
    out: Path,
    sets: Sequence[evaluation.HeldOut],
    cfg: config.Evaluate,
    harness: lm_tasks.Figures,
) -> None:
    """Writes scores.json and scores.md, and the figure if wanted; prints the table.

    The answers are those in answers.jsonl.
    """
    found: dict[str, Any] = {}
    tables = []
    if sets:
        rows = [json.loads(line) for line in (out / "answers.jsonl").open(encoding="utf-8")]
        by_set = evaluation.score(rows, sets, cfg.lexicon)
        found = evaluation.to_dict(by_set) | {
            "overlong": {part.name: part.overlong for part in sets},
            "skipped_rows": {p.name: sum(row.row > 0 for row in p.task.skipped) for p in sets},
        }
        tables.append(scores.to_markdown(by_set))
        if cfg.plots:
            pass_curve.write({n: s.accuracy for n, s in by_set.items()}, out / "pass_at_k.png")
    if harness:
        found["lm_eval"] = harness
        tables.append(lm_tasks.to_markdown(harness))
    write_text(out / "scores.json", json.dumps(found, indent=2) + "\n")
    table = "\n\n".join(tables)
    write_text(out / "scores.md", table + "\n")
    print(table)
