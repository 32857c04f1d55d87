"""Scores a model on held-out examples of one or several tasks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from sdjax import config, tasks
from sdjax.analysis import epistemic, scores
from sdjax.io import run_dir
from sdjax.io.files import write_text
from sdjax.logs import profiler
from sdjax.training import evaluation, fingerprint, loaded_model


def run(cfg: config.Evaluate) -> None:
    """Writes answers.jsonl, scores.json and scores.md into `cfg.out` and prints the table."""
    after = run_dir.answers(cfg.out, "answers.jsonl") if cfg.resume else 0
    cfg = loaded_model.kept_date(cfg)
    changes = run_dir.check_same(cfg, after)
    epistemic.lexicon(cfg.lexicon)
    task = tasks.load(cfg.task, cfg.data)
    others = tasks.load_others(cfg.out_of_domain, cfg.data)
    model = loaded_model.open_model(cfg.model, cfg.mesh, cfg.server)
    cfg = model.dated(cfg)
    loaded_model.check_context(
        model.cfg, "max_prompt_tokens", cfg.max_prompt_tokens, cfg.eval.max_completion_tokens
    )
    loaded_model.check_shards("eval.slots", cfg.eval.slots, model.mesh)
    thinking = cfg.enable_thinking
    sets = evaluation.held_out(
        task, others, cfg.eval, model.tokenizer, cfg.max_prompt_tokens, thinking
    )
    config.require(bool(sets), "task.held_out", cfg.task.held_out, "there is nothing to evaluate")
    evaluation.note_held_out(sets)
    plan = evaluation.batches(sets, cfg.eval.batch)
    loaded_model.check_server(model.sampler, None)
    fingerprints = fingerprint.of_run(model, sets=sets)
    folder = run_dir.claim_folder(
        cfg.out, cfg, resume=cfg.resume, after=after, fingerprints=fingerprints
    )
    primary, file = jax.process_index() == 0, folder.local / "answers.jsonl"

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
        if changes:  # The scores are computed anew, although nothing was sampled.
            run_dir.record(folder, cfg, after, fingerprints)
        if primary:
            _report(folder.local, sets, cfg.lexicon)


def _report(out: Path, sets: Sequence[evaluation.HeldOut], lexicon: str) -> None:
    """Writes scores.json and scores.md of the answers in answers.jsonl, and prints the table."""
    rows = [json.loads(line) for line in (out / "answers.jsonl").open(encoding="utf-8")]
    by_set = evaluation.score(rows, sets, lexicon)
    counts = {
        "overlong": {part.name: part.overlong for part in sets},
        "skipped_rows": {part.name: sum(row.row > 0 for row in part.task.skipped) for part in sets},
    }
    write_text(
        out / "scores.json", json.dumps(evaluation.to_dict(by_set) | counts, indent=2) + "\n"
    )
    table = scores.to_markdown(by_set)
    write_text(out / "scores.md", table + "\n")
    print(table)
