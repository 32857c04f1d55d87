"""The report's story is true: what rose, fell or may be chance, over which steps and runs."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import report_runs

from sdjax.analysis.report import clock, ends, read, run_families, story, warned
from sdjax.analysis.report.ends import Ends
from sdjax.analysis.report.read import Bounds
from sdjax.analysis.report.run_families import RunFamily


def run(values, name="run", metric="m", **fields):
    """Returns a run with a metric: its values by step."""
    return read.RunRecord(
        name=name,
        folder=Path(name),
        config={},
        metrics=[{"step": step, metric: float(value)} for step, value in values.items()],
        evaluations=[],
        rollouts=(),
        **fields,
    )


def steps(*values):
    return dict(enumerate(values))


@pytest.mark.parametrize(
    ("known", "end", "first", "last"),
    [
        (range(0, 61), 60, [0], list(range(55, 61))),
        (range(1, 61), 60, list(range(1, 7)), list(range(55, 61))),
        (range(0, 61, 10), 60, [0], [60]),
        (range(10, 61, 10), 60, [10], [60]),
        (range(0, 1001, 50), 1000, [0], [950, 1000]),
        (range(1, 9), 8, [1], [8]),
        (range(0, 61), 20, [0], [19, 20]),
        ([0, 30], 60, [0], [30]),
        ([0], 0, [0], [0]),
        ([], 9, [], []),
    ],
)
def test_the_last_value_is_of_the_last_tenth_of_the_steps_and_the_first_of_step_0(
    known, end, first, last
):
    assert ends.windows(known, end) == (first, last)


def test_the_ends_of_a_metric_are_means_of_its_finite_values():
    found = ends.of_run(run(steps(*range(20), math.nan)), "m")
    assert (found.values, found.steps) == ((0.0, 19.0), ((0, 0), (19, 19)))
    found = ends.of_run(run({s: s for s in range(1, 21)}), "m")
    assert (found.values, found.steps) == ((1.5, 19.5), ((1, 2), (19, 20)))
    assert ends.of_run(run(steps(math.nan)), "m") is None


def wilson(right, n, z=1.959964):
    share, centre = right / n, (right + z * z / 2) / (n + z * z)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return Bounds(centre - half, centre + half, n)


def change(before, after, of_before=64, of_after=64):
    """Returns the ends of two shares of right answers, with their intervals."""
    bounds = (wilson(before, of_before), wilson(after, of_after))
    values = (before / of_before, after / of_after)
    return Ends(values=values, steps=((0, 0), (9, 9)), bounds=bounds)


def test_the_interval_of_a_change_is_that_of_newcombes_example():
    # Statistics in Medicine 17 (1998), table II, method 10: 56/70 minus 48/80 and 9/10 minus 3/10.
    np.testing.assert_allclose(change(48, 56, 80, 70).change, (0.0524, 0.3339), atol=5e-5)
    np.testing.assert_allclose(change(3, 9, 10, 10).change, (0.1705, 0.8090), atol=5e-5)


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (37, 48, "rose from 0.58 to 0.75 (64 questions, 95 % interval 0.63 to 0.84)"),
        (48, 37, "fell from 0.75 to 0.58 (64 questions, 95 % interval 0.46 to 0.69)"),
        (37, 39, "went from 0.58 to 0.61, which chance may explain (64 questions, 95 % interval"),
        (39, 37, "went from 0.61 to 0.58, which chance may explain (64 questions, 95 % interval"),
        (37, 37, "stayed at 0.58 (64 questions, 95 % interval 0.46 to 0.69)"),
        (0, 0, "stayed at 0.00 (64 questions, 95 % interval"),
    ],
)
def test_an_accuracy_rose_or_fell_only_where_chance_does_not_explain_it(before, after, said):
    assert story.accuracy(change(before, after)).startswith(said)


def test_an_accuracy_without_an_interval_or_a_second_value_says_so():
    known = change(37, 48)
    unknown = replace(known, bounds=(None, known.bounds[1]))
    assert story.accuracy(unknown).startswith("went from 0.58 to 0.75 (64 questions")
    assert story.accuracy(replace(known, bounds=(None, None))).endswith("(interval not known)")
    single = replace(known, steps=((4, 4), (4, 4)))
    assert story.accuracy(single).endswith("measured at step 4 only")


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (150.6, 190, "rose from 151 to 190 tokens (+26%)"),
        (2.5, 0.25, "fell from 2.5 to 0.25 tokens (\u221290%)"),
        (100, 96, "hardly changed, from 100 to 96 tokens (\u22124%)"),
        (0, 0.5, "rose from 0 to 0.5 tokens"),
        (3, 3, "stayed at 3 tokens"),
        (0, 0, "stayed at 0 tokens"),
        (0.00001, 12_345, "rose from 0.00001 to 12,345 tokens (+123449999900%)"),
    ],
)
def test_a_length_says_by_how_much_it_changed(before, after, said):
    found = Ends(values=(before, after), steps=((0, 0), (9, 9)))
    assert story.amount("tokens")(found) == said


def told(*groups):
    return {panel.chart.title: [one.text for one in panel.sentences] for panel in story.of(groups)}


def family(*runs, name="f"):
    return RunFamily(name, runs)


def test_what_was_not_measured_is_said():
    said = told(family(run({1: 0.5, 2: 0.5}, metric="rollout/reward")))
    assert list(said) == [*("In-domain accuracy", "Out-of-domain accuracy", "Length", "Doubt")]
    assert all("was not measured" in text for (text,) in said.values())
    said = told(family(run({1: 0.5, 2: 0.75}, metric="rollout/correct")))
    assert said["Correct in training"] == [
        "The share correct in training rose from 0.5 to 0.75 (+50%)."
    ]
    assert told(family(run({})))["Doubt"] == ["Doubt was not measured."]


def test_a_family_that_lacks_what_another_has_says_so():
    with_eval = family(run(steps(0.2, 0.9), metric="eval/avg@2"), name="a")
    other = family(run(steps(0.1, 0.3), metric="ood/x y-z/avg@4"), name="b")
    said = told(with_eval, other)
    assert said["Held-out accuracy, in domain"] == [
        "a: went from 0.20 to 0.90 (interval not known).",
        "b: not measured.",
    ]
    assert said["Held-out accuracy, out of domain: x y-z"][0] == "a: not measured."


def test_a_family_tells_the_mean_and_how_many_runs_rose_over_the_steps_they_share():
    name = "eval/length"
    members = [
        run({0: 100, 10: 200, 20: 900}, metric=name),
        run({0: 100, 10: 150}, metric=name),
        run({0: 100, 10: 70}, metric=name),
        run({0: 100}, metric=name),  # broke off before its second evaluation
    ]
    (said,) = told(family(*members))["Length, held-out answers"]
    assert said == (
        "The length of held-out answers rose from 100 to 140 tokens (+40%), "
        "the mean of 3 runs (2 rose, 1 fell), by step 10."
    )


def test_runs_of_other_lengths_and_evaluations_join_a_family(tmp_path):
    folders = [
        report_runs.write(tmp_path / f"sdpo.{seed}", seed=seed, steps=n, every=every)
        for seed, n, every in ((0, 10, 2), (1, 10, 5), (2, 20, 5))
    ]
    runs = read.runs([str(folder) for folder in folders])
    (found,) = run_families.of(runs)
    assert found.name == "sdpo" and len(found.runs) == 3
    reward = run_families.series(found, "rollout/reward")
    assert reward.number.tolist() == [3] * 10 + [1] * 10
    # The mean of evaluations has the steps that every run has which lasts until then.
    score = run_families.series(found, "eval/avg@4")
    assert (score.steps.tolist(), score.number.tolist()) == ([0, 10, 15, 20], [3, 3, 1, 1])
    assert score.questions.tolist() == [50] * 4
    np.testing.assert_allclose(score.most - score.mean, 0.08)
    mean, each = ends.of_family(found.runs, "eval/avg@4")
    assert mean.steps == ((0, 0), (10, 10)) and len(each) == 3
    assert mean.bounds[1].questions == 50
    assert mean.bounds[1].high == pytest.approx(mean.values[1] + 0.08)


def test_families_of_numbered_runs_bear_no_piece_of_a_number():
    runs = [run({1: 1}, name=name) for name in ("grpo.10", "grpo.11")]
    assert run_families.of(runs)[0].name == "grpo"
    runs = [run({1: 1}, name=name) for name in ("lr1e-5/0", "lr1e-5/1")]
    assert run_families.of(runs)[0].name == "lr1e-5"


def timed(values, speed=10.0):
    """Returns a run with the seconds of its steps, and 10 tokens per second."""
    rows = [
        {"step": step, "time/rollout_s": s, "time/update_s": s, "rollout/tokens_per_s": speed}
        for step, s in values.items()
    ]
    return replace(run({}), metrics=[{"step": 0, "eval/avg@2": 0.5}, *rows])


def test_a_clock_counts_tokens_and_seconds_of_the_steps():
    found = clock.of_run(timed({1: 1.0, 2: 2.0, 3: 3.0}))
    assert found.seconds.tolist() == [0, 2, 6, 12] and found.tokens.tolist() == [0, 20, 60, 120]
    # A line of a finetuning is the mean of the steps since the one before.
    assert clock.of_run(timed({5: 1.0, 10: 2.0})).seconds.tolist() == [0, 10, 30]
    assert clock.of_run(run({1: 1.0})) is None
    mean = clock.of_family([found, clock.of_run(timed({1: 3.0}))])
    assert mean.steps.tolist() == [0, 1, 2, 3] and mean.seconds.tolist() == [0, 4, 8, 14]
    assert clock.of_family([found, None]) is None


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.456, "0.456 s"), (59, "59 s"), (130, "2 min 10 s"), (7260, "2 h 1 min"), (1e5, "1 d 3 h")],
)
def test_a_duration_has_two_units(seconds, said):
    assert clock.duration(seconds) == said


def test_successive_steps_with_one_warning_are_one_span():
    warnings = [
        {"step": step, "kind": kind, "text": f"{kind} {step}"}
        for step, kind in ((2, "flat"), (3, "flat"), (3, "ood_drop"), (5, "flat"))
    ]
    spans, note = warned.of([run(steps(*range(6)), warnings=warnings)])
    assert [(s.kind, s.first, s.last, s.alarm) for s in spans] == [
        ("flat", 2, 3, False),
        ("ood_drop", 3, 3, True),
        ("flat", 5, 5, False),
    ]
    assert spans[0].text == "flat 2" and note == ""
    # Where only some steps have a line, as in a finetuning, those between do not count.
    rare = [{"step": step, "kind": "flat", "text": ""} for step in (5, 10, 20)]
    spans, _ = warned.of([run({0: 0, 5: 0, 10: 0, 15: 0, 20: 0}, warnings=rare)])
    assert [(s.first, s.last) for s in spans] == [(5, 10), (20, 20)]
    # An alarm lasts from one evaluation to the next.
    raised = [1, 1, 0, 1]
    rows = [{"step": s, "alarm/raised": raised[s // 5]} for s in (0, 5, 10, 15)]
    alarms = [{"step": s, "kind": "ood_drop", "text": ""} for s in (0, 5, 15)]
    plain = [{"step": s} for s in range(20) if s % 5]
    metrics = sorted(rows + plain, key=lambda row: row["step"])
    spans, _ = warned.of([replace(run({}), metrics=metrics, warnings=alarms)])
    assert [(s.first, s.last) for s in spans] == [(0, 5), (15, 15)]


def test_a_run_without_a_file_of_warnings_tells_them_by_its_metrics():
    rows = [
        {"step": 1, "optim/skipped": 0.5},
        {"step": 2, "alarm/raised": 1.0, "alarm/epistemic_drop": 0.6, "alarm/ood_drop": 0.2},
    ]
    config = {"alarm": {"epistemic_drop": 0.5, "ood_drop": 0.5}}
    spans, _ = warned.of([replace(run({}), metrics=rows, config=config)])
    assert [(s.kind, s.first, s.text) for s in spans] == [
        ("skipped", 1, "updates skipped: loss or gradient not finite"),
        ("alarm", 2, "alarm: epistemic words per 1,000 tokens fell by 60% from the start"),
    ]


def test_no_more_warnings_are_shown_than_the_page_can_mark():
    warnings = [{"step": 2 * i, "kind": "flat", "text": ""} for i in range(150)]
    spans, note = warned.of([run(steps(*range(300)), warnings=warnings)])
    assert len(spans) == warned.MOST and note == "50 later warnings are left out."
