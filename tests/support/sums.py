"""Configs of jobs on sums of two digits: a training and an evaluation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from sdjax import config
from sdjax.tasks.arithmetic import Arithmetic
from sdjax.tasks.largest_number import LargestNumber

SUMS = Arithmetic(
    options={"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}, size=20, held_out=6
)


def job(model: Path, out: Path, **changes) -> config.Train:
    """Returns a run of 4 steps of 4 prompts x 4 on a tiny model."""
    sections = {
        "rollout": {"prompts_per_step": 4, "group_size": 4, "temperature": 0.7},
        "reprompt": {"max_tokens": 400, "success_threshold": -1.0},
        "optim": {"microbatch": 8, "lr": 1e-3, "warmup_steps": 0},
        "eval": {"every": 2, "k": 2, "examples": 6, "batch": 6, "max_completion_tokens": 12},
        "checkpoint": {"every": 2},
        "log": {"progress": False},
    }
    sections["rollout"] |= {"max_prompt_tokens": 300, "max_completion_tokens": 12}
    plain = {k: changes.pop(k) for k in list(changes) if not isinstance(changes[k], dict)}
    base = config.Train(
        out=str(out),
        task=SUMS,
        steps=4,
        model=config.Model(path=str(model), compute_dtype="float32", remat="none"),
    )
    for name in {*sections, *changes}:
        values = sections.get(name, {}) | changes.get(name, {})
        base = replace(base, **{name: replace(getattr(base, name), **values)})
    return replace(base, **plain)


def study(model: Path, out: Path, **changes) -> config.Study:
    """Returns a study of one problem that is solved now and then, with 4 attempts each."""
    base = config.Study(
        out=str(out),
        task=SUMS,
        problems=1,
        tried=4,
        solved_min=1,
        solved_max=2,
        traces=0,
        max_prompt_tokens=400,
        model=config.Model(path=str(model), compute_dtype="float32"),
        eval=replace(evaluation(model, out).eval, batch=2),
    )
    return replace(base, **changes)


def evaluation(model: Path, out: Path, **changes) -> config.Evaluate:
    """Returns an evaluation of 7 + 5 examples, 2 answers each, in batches of 3."""
    base = config.Evaluate(
        out=str(out),
        task=replace(SUMS, held_out=7),
        out_of_domain={"largest": LargestNumber(held_out=5)},
        model=config.Model(path=str(model), compute_dtype="float32"),
        max_prompt_tokens=400,
        eval=config.Eval(every=0, k=2, examples=0, batch=3, max_completion_tokens=8),
    )
    return replace(base, **changes)
