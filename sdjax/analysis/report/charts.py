"""Lists the metrics that the report draws, with their titles, units and explanations."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True, kw_only=True)
class Chart:
    """One pair of axes with its metrics; each metric has a label that distinguishes it."""

    title: str
    unit: str
    help: str
    metrics: dict[str, str]


CHARTS = (
    Chart(
        title="Reward in training",
        unit="per completion",
        help="Mean reward of the completions sampled in a step.",
        metrics={"rollout/reward": ""},
    ),
    Chart(
        title="Correct in training",
        unit="share",
        help="Share of the completions sampled in a step that the grader calls correct.",
        metrics={"rollout/correct": ""},
    ),
    Chart(
        title="Length",
        unit="tokens",
        help="Mean tokens of a completion: those sampled for training, and held-out answers.",
        metrics={"rollout/length": "training", "eval/length": "held out"},
    ),
    Chart(
        title="Epistemic rate",
        unit="words per 1,000 tokens",
        help="How often completions say wait, perhaps, maybe and the like (arXiv:2603.24472).",
        metrics={
            "rollout/epistemic_per_1000_tokens": "training",
            "eval/epistemic_per_1000_tokens": "held out",
        },
    ),
    Chart(
        title="Teacher's push",
        unit="nats per token",
        help="Teacher minus student log-probability of the student's tokens: below 0 the teacher "
        "finds them less likely. On tokens of epistemic words, and on all others.",
        metrics={"epistemic/push": "epistemic", "epistemic/push_others": "others"},
    ),
    Chart(
        title="KL(student || teacher)",
        unit="nats per token",
        help="Reverse KL divergence of the student from the teacher over the vocabulary.",
        metrics={"distill/reverse_kl": ""},
    ),
    Chart(
        title="Loss of finetuning",
        unit="nats per token",
        help="Mean negative log-probability of the tokens learned from.",
        metrics={"sft/loss": ""},
    ),
    Chart(
        title="Entropy",
        unit="nats per token",
        help="Of the next-token distributions of the student and of the teacher.",
        metrics={"student/entropy": "student", "distill/teacher_entropy": "teacher"},
    ),
    Chart(
        title="Fork rate",
        unit="share of tokens",
        help="Positions at which several continuations stay open (docs/metrics.md): of the student "
        "and of the teacher in training, and of held-out answers.",
        metrics={
            "student/fork_rate": "student",
            "distill/teacher_fork_rate": "teacher",
            "eval/fork_rate": "held out",
        },
    ),
    Chart(
        title="Student's entropy",
        unit="nats per token",
        help="Where the tokens of epistemic words are predicted, and where all others are.",
        metrics={
            "epistemic/student_entropy": "epistemic",
            "epistemic/student_entropy_others": "others",
        },
    ),
    Chart(
        title="Cut off",
        unit="share",
        help="Share of completions that reached the limit of tokens before they ended.",
        metrics={"rollout/truncated": "training", "eval/truncated": "held out"},
    ),
)


def accuracy(names: Sequence[str]) -> list[Chart]:
    """Returns the charts of held-out accuracy: in domain, then one per other set."""
    found: dict[str, list[str]] = {}
    for name in names:
        if match := re.fullmatch(r"(eval|ood/.+)/avg@(\d+)", name, re.DOTALL):
            found.setdefault(match[1], []).append(name)
    return [
        Chart(
            title=f"Held-out accuracy, {'in' if where == 'eval' else 'out of'} domain"
            + ("" if where == "eval" else f": {where.removeprefix('ood/')}"),
            unit="share",
            help="Share of correct answers on held-out examples, mean over the answers to each.",
            metrics={n: n.rpartition("/")[2] if len(metrics) > 1 else "" for n in metrics},
        )
        for where, metrics in sorted(found.items())
    ]


def one(name: str, names: Sequence[str], title: str) -> Chart | None:
    """Returns the chart of one metric under another title; None if `names` lacks the metric."""
    if name not in names:
        return None
    chart = next(chart for chart in CHARTS if name in chart.metrics)
    return replace(chart, title=title, metrics={name: ""})


def of(names: Sequence[str]) -> list[Chart]:
    """Returns the charts that have at least one metric among `names`."""
    first, *rest = CHARTS
    out = []
    for chart in (first, *accuracy(names), *rest):
        have = {name: label for name, label in chart.metrics.items() if name in names}
        if have:
            out.append(Chart(title=chart.title, unit=chart.unit, help=chart.help, metrics=have))
    return out
