"""Warnings of a step that has nothing to learn from, and a teacher that an alarm switches off."""

import re
from dataclasses import replace

import learning
import numpy as np
import pytest
import runs

from sdjax import config
from sdjax.jobs import train_job
from sdjax.logs import writers
from sdjax.records import Completion, Example, Grade, Group, TeacherPrompt
from sdjax.teacher import contexts
from sdjax.training import alerts


def group(*rewards, finish="stop"):
    tokens = np.zeros(1, np.int32)
    drawn = Completion(tokens=tokens, logprobs=np.zeros(1, np.float32), text="x", finish=finish)
    return Group(
        example=Example(id="0", messages=(), answer="", task=""),
        prompt=tokens,
        completions=(drawn,) * len(rewards),
        grades=tuple(Grade(reward=r, correct=r >= 1) for r in rewards),
    )


def plain(groups, truncated=False):
    """Returns reprompts that tell the teacher nothing."""
    one = TeacherPrompt(
        tokens=groups[0].prompt, demonstration=None, feedback_used=False, truncated=truncated
    )
    return [[one] * len(g.completions) for g in groups]


def said(groups, reprompts=None, **sections):
    return alerts.warnings(groups, reprompts, learning.train_config(**sections))


def test_nothing_is_said_of_a_step_that_can_be_learned_from():
    mixed = [group(0.0, 0.0), group(0.0, 1.0)]
    assert said(mixed) == {}
    reprompts = plain(mixed)
    reprompts[1][0] = replace(reprompts[1][0], demonstration=1)
    assert said(mixed, reprompts) == {}
    # In a group of one, the advantage is the reward.
    one = {"rollout": {"group_size": 1}, "optim": {"microbatch": 4}}
    assert said([group(0.0)], loss={"distillation": 0.0}, **one) == {}


def test_a_credit_for_every_completion_needs_no_rewards_that_differ():
    flat = group(0.0, 0.0)
    for credit, learns in (("advantage", False), ("unlikely", True)):
        sections = {"loss": {"distillation": 0.0}, "policy": {"credit": credit}}
        assert alerts.has_signal(flat, learning.train_config(**sections)) == learns
        assert bool(said([flat], **sections)) != learns


def test_a_divergence_or_a_gradient_of_exactly_zero_is_said():
    fine = {"optim/grad_norm": 0.1, "distill/divergence": 1e-9}
    assert alerts.no_gradient(fine, distilled=True) == {}
    same = alerts.no_gradient(fine | {"distill/divergence": 0.0}, distilled=True)
    assert "distill/divergence is exactly 0" in same["zero"] and "reprompt.template" in same["zero"]
    # A blend has a gradient all the same, and without a teacher there is no divergence.
    assert alerts.no_gradient({"optim/grad_norm": 0.1}, distilled=False) == {}
    none = alerts.no_gradient({"optim/grad_norm": 0.0}, distilled=False)
    assert "optim/grad_norm is exactly 0" in none["zero"]


@pytest.mark.parametrize(
    ("groups", "remedy"),
    [
        ([group(0.0, 0.0), group(0.5, 0.5)], "rollout.group_size"),
        ([group(1.0, 1.0)], "harder examples"),
        ([group(0.0, 0.0, finish="length")], "100% of completions are cut off (raise rollout.max"),
    ],
)
def test_flat_rewards_are_said_with_the_likeliest_cause_and_remedy(groups, remedy):
    warnings = said(groups, loss={"distillation": 0.0})
    assert list(warnings) == ["flat"] and remedy in warnings["flat"]
    assert "\n" not in warnings["flat"]


@pytest.mark.parametrize(
    ("truncated", "asked", "remedy"),
    [
        (False, {}, "best reward is 0, under reprompt.success_threshold 0.5"),
        (False, {"success_threshold": 0.0}, "reprompt.own_success"),
        (True, {}, "reprompt.max_tokens is 4096, too few"),
        (False, {"demonstration": "solution"}, "the data has no solutions"),
        (False, {"demonstration": "none", "feedback": True}, "the grader gave no feedback"),
    ],
)
def test_a_step_without_demonstration_or_feedback_says_why(truncated, asked, remedy):
    groups = [group(0.0, 0.0)]
    warnings = said(groups, plain(groups, truncated), reprompt=asked)
    assert list(warnings) == ["masked"] and remedy in warnings["masked"]
    assert "\n" not in warnings["masked"]


def test_a_step_whose_regenerated_answers_were_all_wrong_says_so():
    groups = [group(0.0, 1.0)]
    warnings = said(groups, plain(groups), reprompt={"regenerate": True})
    assert "no answer given with a demonstration in sight was right" in warnings["masked"]
    assert "\n" not in warnings["masked"]


def test_a_signal_is_what_the_loss_has_a_gradient_on():
    mixed, right, wrong = group(0.0, 1.0), group(1.0, 1.0), group(0.0, 0.0)
    for distillation, expected in ((0.0, [True, False, False]), (1.0, [True, True, False])):
        cfg = learning.train_config(loss={"distillation": distillation})
        assert [alerts.has_signal(g, cfg) for g in (mixed, right, wrong)] == expected
    # A blend learns by its policy part, because two rewards under the threshold differ.
    cfg = learning.train_config(loss={"distillation": 0.5})
    assert alerts.has_signal(group(0.0, 0.2), cfg)


def test_a_warning_is_printed_once_for_as_long_as_it_lasts_and_again_when_it_returns(
    tmp_path, capsys
):
    log = config.Log(to=())
    with writers.Writer(tmp_path, log, steps=9, primary=True) as writer:
        kinds = ["", "flat", "flat", "flat masked", "masked", "", "flat"]
        for step, now in enumerate(kinds, 1):
            writer.warn(step, {kind: f"{kind}!" for kind in now.split()})
    assert capsys.readouterr().out.splitlines() == [
        "warning: step 2: flat!",
        "warning: step 4: masked!",
        "warning: step 7: flat!",
    ]
    # The file has every step, so that the report knows how long a warning lasts.
    kept = [(row["step"], row["kind"]) for row in runs.lines(tmp_path / "warnings.jsonl")]
    assert kept == [(n, k) for n, now in enumerate(kinds, 1) for k in now.split()]
    with writers.Writer(tmp_path, log, steps=9, primary=True, after=4) as writer:
        writer.warn(5, {"flat": "flat!"})
    steps = [row["step"] for row in runs.lines(tmp_path / "warnings.jsonl")]
    assert steps == [2, 3, 4, 4, 5]


def test_a_teacher_that_cannot_be_switched_off_is_an_error_at_the_start(tmp_path):
    off = {"teacher_off": True}
    for sections, says in (
        (
            {"alarm": off | {"stop": True}},
            "alarm.teacher_off is True: must be False with alarm.stop",
        ),
        (
            {"loss": {"distillation": 0.0}, "alarm": off},
            "alarm.teacher_off is True: needs loss.dis",
        ),
        (
            {"rollout": {"group_size": 1, "dynamic_sampling_rounds": 1}, "alarm": off}
            | {"reprompt": {"own_success": True}, "optim": {"microbatch": 4}},
            "dynamic_sampling_rounds is 1: must be 0 with rollout.group_size 1",
        ),
    ):
        with pytest.raises(config.UserError, match=re.escape(says)):
            learning.train_config(**sections)
    blend = {"loss": {"distillation": 0.5}, "policy": {"credit": "contrast"}, "alarm": off}
    cfg = replace(learning.train_config(**blend), out=str(tmp_path / "out"))
    with pytest.raises(config.UserError, match=r"policy.credit is 'contrast': it reads what alarm"):
        train_job.run(cfg)
    assert not (tmp_path / "out").exists()


def test_without_its_teacher_a_training_is_that_of_rewards_alone():
    cfg = learning.train_config(reprompt={"regenerate": True}, alarm={"teacher_off": True})
    without = cfg.without_teacher()
    assert without == learning.train_config(loss={"distillation": 0.0})
    assert contexts.used(cfg) and not contexts.used(without)


def test_a_teacher_who_can_be_shown_nothing_is_an_error_at_the_start():
    with pytest.raises(config.UserError, match=r"reprompt.demonstration is 'none': needs"):
        learning.train_config(reprompt={"demonstration": "none"})
    learning.train_config(reprompt={"demonstration": "none"}, loss={"distillation": 0.0})
