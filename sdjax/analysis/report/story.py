"""Tells what happened in sentences: accuracy, length and doubt, before and after."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sdjax.analysis.report import charts, ends, run_families
from sdjax.analysis.report.charts import Chart
from sdjax.analysis.report.ends import Ends
from sdjax.analysis.report.run_families import RunFamily

LITTLE = 0.05
"""A length or a rate that changes by a smaller share than this has hardly changed."""

IN_DOMAIN, OUT_OF_DOMAIN = "In-domain accuracy", "Out-of-domain accuracy"
NO_EVALUATION = (
    "was not measured: the runs have no evaluations (eval.every, eval.at_ends, held-out questions)"
)
NO_OTHER_SET = "was not measured: no run names another set of questions (out_of_domain)"


@dataclass(frozen=True)
class Sentence:
    """A sentence of the story; `family` is the number of the family that it is of, if of one."""

    text: str
    family: int | None = None


@dataclass(frozen=True, kw_only=True)
class Panel:
    """A chart of the story with its sentences."""

    chart: Chart
    sentences: tuple[Sentence, ...]


def of(groups: Sequence[RunFamily]) -> list[Panel]:
    """Returns the panels of the story; one without a curve says that nothing was measured."""
    names = run_families.metrics(groups)
    scores = {_subject(chart): chart for chart in charts.accuracy(names)}
    panels = [_panel(chart, subject, groups, accuracy) for subject, chart in scores.items()]
    if IN_DOMAIN not in scores:
        panels.insert(0, _empty(IN_DOMAIN, NO_EVALUATION))
        if chart := charts.one("rollout/correct", names, "Correct in training"):
            panels.append(_panel(chart, "The share correct in training", groups, amount("")))
    if not any(subject != IN_DOMAIN for subject in scores):
        panels.append(_empty(OUT_OF_DOMAIN, NO_OTHER_SET))
    for title, subject, name, unit in (
        ("Length", "The length of", "length", "tokens"),
        ("Doubt", "Doubt in", "epistemic_per_1000_tokens", "words per 1,000 tokens"),
    ):
        for where, answers in (("eval", "held-out answers"), ("rollout", "training answers")):
            if chart := charts.one(f"{where}/{name}", names, f"{title}, {answers}"):
                panels.append(_panel(chart, f"{subject} {answers}", groups, amount(unit)))
                break
        else:
            panels.append(_empty(title, "was not measured"))
    return panels


def _subject(chart: Chart) -> str:
    """Returns the subject of the sentence of a held-out accuracy."""
    name = chart.title.partition(": ")[2]
    return f"{OUT_OF_DOMAIN} ({name})" if name else IN_DOMAIN


def _empty(title: str, why: str) -> Panel:
    chart = Chart(title=title, unit="", help="", metrics={})
    return Panel(chart=chart, sentences=(Sentence(f"{title} {why}."),))


def _panel(
    chart: Chart, subject: str, groups: Sequence[RunFamily], tell: Callable[[Ends], str]
) -> Panel:
    """Returns a chart with one sentence, or with one per family beside others."""
    lengths = {run.steps for family in groups for run in family.runs}
    sentences = []
    for number, family in enumerate(groups):
        name = subject if len(groups) == 1 else f"{family.name}:"
        of_family = None if len(groups) == 1 else number
        metric = next((m for m in chart.metrics if run_families.has(family, m)), None)
        mean, each = ends.of_family(family.runs, metric) if metric else (None, [])
        said = "not measured" if mean is None else tell(mean) + _who(each)
        if mean is not None and not mean.single and len(lengths) > 1:
            said += f", by step {mean.steps[1][1]:,}"
        sentences.append(Sentence(f"{name} {said}.", of_family))
    return Panel(chart=chart, sentences=tuple(sentences))


def accuracy(found: Ends) -> str:
    """Returns the change of an accuracy in words, with questions and interval."""
    first, last = (_share(value) for value in found.values)
    bounds = found.bounds[1]
    how_sure = " (interval not known)"
    if bounds:
        interval = f"95 % interval {_share(bounds.low)} to {_share(bounds.high)}"
        how_sure = f" ({bounds.questions:,} questions, {interval})"
    if found.single:
        return f"is {last}{how_sure}, measured at step {found.steps[1][1]:,} only"
    if found.values[0] == found.values[1]:
        return f"stayed at {last}{how_sure}"
    change = found.change
    if change and (change[0] > 0 or change[1] < 0):
        return f"{'rose' if change[0] > 0 else 'fell'} from {first} to {last}{how_sure}"
    doubt = ", which chance may explain" if change else ""
    return f"went from {first} to {last}{doubt}{how_sure}"


def amount(unit: str) -> Callable[[Ends], str]:
    """Returns a function that says what a figure in this unit did."""
    of_unit = f" {unit}" if unit else ""

    def tell(found: Ends) -> str:
        before, after = found.values
        first, last = _figure(before), _figure(after)
        if found.single:
            return f"is {last}{of_unit}, measured at step {found.steps[1][1]:,} only"
        if before == after:
            return f"stayed at {last}{of_unit}"
        share = (after - before) / abs(before) if before else None
        percent = "" if share is None else f" ({share:+.0%})".replace("-", "\u2212")
        if share is not None and abs(share) < LITTLE:
            return f"hardly changed, from {first} to {last}{of_unit}{percent}"
        return f"{'rose' if after > before else 'fell'} from {first} to {last}{of_unit}{percent}"

    return tell


def _who(each: Sequence[Ends]) -> str:
    """Returns the number of runs of a family that rose and fell, in words; "" for one run."""
    if len(each) < 2:
        return ""
    changes = [found.values[1] - found.values[0] for found in each]
    rose, fell = sum(change > 0 for change in changes), sum(change < 0 for change in changes)
    mean = f", the mean of {len(each)} runs"
    if each[0].single:
        return mean
    parts = [f"{n} {did}" for n, did in ((rose, "rose"), (fell, "fell")) if n]
    return mean + (f" ({', '.join(parts)})" if parts else "")


def _share(value: float) -> str:
    return f"{value:.2f}"


def _figure(value: float) -> str:
    """Returns a number with three digits, and without an exponent."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    text = f"{value:.3g}"
    return text if "e" not in text else f"{value:.6f}".rstrip("0").rstrip(".")
