"""Whether an evaluation shows what self-distillation may cost: doubt, and skill out of domain.

The paper's finding (arXiv:2603.24472): the words of doubt go first, the out-of-domain scores next.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sdjax import config


@dataclass(frozen=True, kw_only=True)
class AlarmOutcome:
    """What a run logs of an evaluation, and a line for each alarm by kind."""

    metrics: dict[str, float]
    warnings: dict[str, str]


def check(history: Sequence[Mapping[str, Any]], cfg: config.Alarm) -> AlarmOutcome:
    """Compares the last evaluation of a run with its first, each as evaluate.to_dict gives it.

    A share fallen is 1 - last / first, of the set where it is largest; of what was 0 at the start
    there is none, and without an evaluation nothing.
    """
    if not history:
        return AlarmOutcome(metrics={}, warnings={})
    first, last = history[0], history[-1]
    others = first.get("out_of_domain", {})
    rates = {"held-out": (_rate(first), _rate(last))}
    scores = {}
    for name, figures in others.items():
        now = last["out_of_domain"][name]
        rates[name] = (_rate(figures), _rate(now))
        scores[name] = (_score(figures), _score(now))
    metrics, warnings = {}, {}
    for kind, of_sets, most, unit in (
        ("epistemic", rates, cfg.epistemic_drop, "epistemic words per 1,000 tokens"),
        ("ood", scores, cfg.ood_drop, "the out-of-domain score"),
    ):
        fallen = {n: 1 - now / start for n, (start, now) in of_sets.items() if start > 0}
        if not fallen:
            continue
        worst = max(fallen, key=fallen.__getitem__)
        metrics[f"alarm/{kind}_drop"] = fallen[worst]
        if 0 < most <= fallen[worst]:
            start, now = of_sets[worst]
            warnings[f"{kind}_drop"] = (
                f"alarm: {unit} fell by {fallen[worst]:.0%} from the start, {start:.3g} to "
                f"{now:.3g} ({worst}); alarm.{kind}_drop is {most:g}"
            )
    return AlarmOutcome(
        metrics=metrics | {"alarm/raised": float(bool(warnings))}, warnings=warnings
    )


def _rate(figures: Mapping[str, Any]) -> float:
    return float(figures["epistemic"]["per_1000_tokens"])


def _score(figures: Mapping[str, Any]) -> float:
    of_k = {k: v for k, v in figures["accuracy"].items() if k.startswith("avg@")}
    ((_, estimate),) = of_k.items()
    return float(estimate["value"])
