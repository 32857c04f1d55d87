"""Every rule with every consumer of its grades; equal answers vote together in maj@k."""

import json

import marks
import pytest
import ruled
import tiny
from ruled import CALL, CALLS, CASES

from sdjax import config, graders, tasks
from sdjax.analysis import accuracy, scores, study_scores
from sdjax.graders import reasoning_gym_rule
from sdjax.graders.workers.grade_batch import Attempt
from sdjax.io.files import to_json
from sdjax.records import Completion, Example, Group
from sdjax.tasks import Task
from sdjax.tokenizer import Tokenizer
from sdjax.training import evaluation, update_log


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny.write_tokenizer(folder)
    (folder / "config.json").write_text(json.dumps(tiny.config("qwen3")))
    return Tokenizer.load(str(folder))


def group(task, answer, texts, tokenizer) -> Group:
    """Returns the graded completions of one question, without log-probabilities."""
    example = Example(
        id="0", messages=({"role": "user", "content": "Q?"},), answer=answer, task=task.name
    )
    grades = task.grade_many(texts, [example] * len(texts), [False] * len(texts))
    encoded = [tokenizer.encode(text) for text in texts]
    return Group(
        example=example,
        prompt=tokenizer.encode_prompt(example.messages),
        completions=tuple(
            Completion(tokens=tokens, logprobs=tokens * 0.0, text=text, finish="stop")
            for tokens, text in zip(encoded, texts, strict=True)
        ),
        grades=tuple(grades),
    )


def case(rule):
    """Returns the task of a rule, an answer, and the right and wrong texts."""
    options, answer, right, wrong = ruled.case(rule)
    grader = graders.grader(rule, **options)
    return Task(name=rule, train=(), held_out=(), grader=grader), answer, right, wrong


def test_every_rule_has_a_case():
    assert CASES.keys() == graders.RULES.keys()


@pytest.mark.parametrize("rule", marks.heavy_but(["number", "choice"], CASES))
def test_every_consumer_takes_the_grades_of_every_rule(rule, tokenizer, request):
    if rule.startswith("code"):
        request.getfixturevalue("sandboxed")
    task, answer, right, wrong = case(rule)
    # Two of five agree on a wrong answer, two on the right one, and none of the others does.
    for texts, majority in (((*right, wrong[0], ""), 1.0), ((*wrong, right[0], ""), 0.0)):
        asked = group(task, answer, texts, tokenizer)
        assert [g.correct for g in asked.grades] == [t in right for t in texts], texts
        (spellings,) = task.vote_spellings([asked])
        rows = list(evaluation._rows(rule, asked, spellings, tokenizer))
        stored = [json.loads(line) for line in evaluation.jsonl(rows).splitlines()]
        for answered in (rows, stored):
            found = scores.of_rows(answered)
            names = set(found.accuracy.estimates)
            if rule.startswith("code"):
                assert names == {"avg@4", "pass@2", "pass@4"}
            else:
                assert names == {"avg@4", "pass@2", "pass@4", "maj@4"}
                assert found.accuracy.estimates["maj@4"].value == majority
            assert "| avg@4, %" in scores.to_markdown({rule: found})
            assert json.dumps(found.to_dict()) and found.metrics("eval")
        by_problem = study_scores.by_problem(stored)
        records = study_scores.trajectories(by_problem, {"plain": by_problem}, {}, ["plain"])
        assert [to_json(record) for record in records]
        step = update_log.StepRecord(
            groups=[asked],
            reprompts=None,
            epistemic=[],
            full=[],
            updates=[],
            reported=[],
            alternatives=None,
        )
        logged = [to_json(line) for line in update_log.lines(step, tokenizer, config.Log())]
        assert len(logged) == len(texts)


@pytest.mark.heavy
def test_three_spellings_of_a_wrong_answer_outvote_two_of_the_right_one(tokenizer):
    task, answer, right, _ = case("math")
    wrong = ("\\boxed{2x}", "\\boxed{x+x}", "\\boxed{x \\cdot 2}")
    asked = group(task, answer, (*right, *wrong, "\\boxed{7}"), tokenizer)
    (spellings,) = task.vote_spellings([asked])
    rows = list(evaluation._rows("m", asked, spellings, tokenizer))
    assert [accuracy.vote(r["details"]) for r in rows] == [answer] * 2 + ["2x"] * 3 + ["7"]
    assert scores.of_rows(rows).accuracy.estimates["maj@6"].value == 0.0


def test_right_answers_within_the_tolerance_vote_together(tokenizer):
    task, *_ = case("number")
    texts = ("0.3333", "0.33333", "0.333333", "0.5", "0.5")
    asked = group(task, "0.3333333333333333", texts, tokenizer)
    rows = list(evaluation._rows("n", asked, [None] * 5, tokenizer))
    assert scores.of_rows(rows).accuracy.estimates["maj@5"].value == 1.0


def test_an_answer_that_a_generator_s_rule_finds_right_votes_with_its_gold_answer():
    attempt = Attempt("<answer>1 + x</answer>", "x + 1", id="0")
    votes = [
        accuracy.vote(reasoning_gym_rule._grade(attempt, "1 + x", right).details)
        for right in (True, False)
    ]
    assert votes == ["x + 1", "1 + x"]


def test_lists_and_numbers_of_an_own_grader_vote_by_value():
    def votes(*values):
        return {accuracy.vote({"prediction": value}) for value in values}

    assert len(votes([{"a": 1, "b": 2.0}], [{"b": 2, "a": 1.0}])) == 1
    assert len(votes(3, 3.0)) == 1 and len(votes(1, True)) == 2 and len(votes([1, 2], [2, 1])) == 2
    assert votes(None) == {None} and not accuracy.has_vote({"acc": 1})


def test_a_call_that_is_rightly_not_made_votes():
    task = Task(name="t", train=(), held_out=(), grader=graders.grader("tooluse"))
    example = Example(id="0", messages=(), answer="[]", task="t")
    right, wrong = task.grade_many(["No call.", CALL], [example] * 2, [False] * 2)
    assert right.correct and accuracy.vote(right.details) == "[]"
    assert not wrong.correct and accuracy.vote(wrong.details) == CALLS


@pytest.mark.parametrize(
    ("made", "says"),
    [
        ([], "returned 0 grades for 1 completions"),
        ([0.5], "returned float: it must return a sdjax.records.Grade"),
        ([tasks.Grade(reward=float("nan"), correct=True)], "reward nan: it must be finite"),
        ([tasks.Grade(reward=1, correct=True, details={"a": {1}})], "such details: a set cannot"),
    ],
)
def test_grades_that_no_consumer_can_use_are_refused_in_one_line(made, says):
    task = Task(name="own", train=(), held_out=(), grader=lambda attempts: made)
    example = Example(id="0", messages=(), answer="", task="own")
    with pytest.raises(tasks.UserError, match=says):
        task.grade("x", example, truncated=False)
