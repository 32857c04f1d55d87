"""The study: its problems, the solutions in prompts, its figures, and a whole run."""

import json
from dataclasses import replace

import numpy as np
import pytest
import tiny
from runs import lines

from sdjax import config
from sdjax.analysis import study_scores as analysis
from sdjax.data import conversations
from sdjax.graders.workers.grade_batch import Attempt
from sdjax.jobs import study_job
from sdjax.records import Example, Grade
from sdjax.tasks import Task
from sdjax.teacher import reprompt
from sdjax.training import loaded_model

pytestmark = pytest.mark.usefixtures("compiled_once")


def row(name, correct, text="so 3", tokens=4, finish="stop", prediction="3"):
    messages = [{"role": "user", "content": f"question {name}"}]
    details = {"prediction": prediction}
    return {
        **{"id": name, "correct": correct, "completion": text, "tokens": tokens},
        **{"finish": finish, "messages": messages, "answer": "3", "details": details},
    }


def test_the_default_templates_are_those_of_the_papers_study():
    cfg = config.Study(out="unused", task=config.TaskConfig())
    example = Example(
        id="0", messages=({"role": "user", "content": "Q?"},), answer="3", task="sums"
    )
    (message,) = reprompt.messages(example, ["<think>so</think> 3"], "", cfg.reprompt)
    assert message["content"] == (
        "Q?\n\nCorrect solution: <think>so</think> 3\n\nCorrectly solve the original question."
    )


def test_the_best_answer_is_the_first_correct_one_or_else_the_first():
    wrong, right, other = row("a", False), row("a", True), row("a", True, "other")
    assert analysis.best([wrong, right, other]) is right
    assert analysis.best([wrong, wrong | {"tokens": 9}]) is wrong


def test_both_data_sets_have_the_same_number_of_each_problem():
    ug = {
        "a": [row("a", True, "a1"), row("a", False, "a2"), row("a", True, "a3")],
        "b": [row("b", True, "b1", finish="length"), row("b", True, "b2")],
        "c": [row("c", True, "c1")],
    }
    sg = {
        "a": [row("a", True, "A1"), row("a", True, "A2"), row("a", True, "A3")],
        "b": [row("b", True, "B1"), row("b", True, "B2")],
        "c": [row("c", False, "C1")],
    }

    def texts(data):
        return [r["messages"][-1]["content"] for r in data]

    without, with_solution = analysis.data_sets(ug, sg, 0)
    assert texts(without) == ["a1", "a3", "b2"] and texts(with_solution) == ["A1", "A2", "B1"]
    assert [texts(d) for d in analysis.data_sets(ug, sg, 1)] == [["a1", "b2"], ["A1", "B1"]]
    assert with_solution[0]["messages"][0] == {"role": "user", "content": "question a"}


@pytest.mark.parametrize(
    ("first", "last", "trend"),
    [
        ((0, 1), (1, 1), "ALL"),
        ((0, 0), (0, 1), "UP"),
        ((1, 1), (0, 1), "DOWN"),
        ((0, 0), (0, 0), "NONE"),
        ((0, 1), (1, 0), "-"),
    ],
)
def test_a_trajectory_says_where_the_chain_led(first, last, trend):
    answers = {
        "guided": {"a": [row("a", bool(c), "wait", tokens=10) for c in first]},
        "regenerated": {"a": [row("a", bool(c), "perhaps 3", tokens=4) for c in last]},
    }
    collected = {"a": [row("a", True), row("a", False)]}
    shown = {"guided": {"a": "so 3"}}
    (line,) = analysis.trajectories(collected, answers, shown, ["guided", "regenerated"])
    assert (line["solved"], line["of"], line["trend"]) == (1, 2, trend)
    assert line["tokens_change"] == -6
    assert line["conditions"]["guided"] == {
        **{"correct": sum(first), "of": 2, "tokens": 10, "epistemic": 1},
        **{"predictions": ["3", "3"], "shown": "so 3"},
    }


def even(attempts: list[Attempt]) -> list[Grade]:
    """Grades an answer by its letters, so that a random model solves some problems."""
    right = [attempt.text != "" and sum(map(ord, attempt.text)) % 3 == 0 for attempt in attempts]
    return [Grade(reward=float(ok), correct=ok, details={"prediction": str(ok)}) for ok in right]


def load(cfg, data):
    """Returns a task of 12 problems, one of them with a longer prompt."""
    del data
    examples = [
        Example(
            id=str(i),
            messages=({"role": "user", "content": f"{i}?" + " long" * 40 * (i == 1)},),
            answer="3",
            task="letters",
        )
        for i in range(12)
    ]
    return Task(name="letters", train=examples, held_out=examples[:1], grader=even)


class Letters(config.TaskConfig):
    """A task of this module."""


def job(model, out, **changes) -> config.Study:
    """Returns a study of 4 problems on a tiny model."""
    base = config.Study(
        out=str(out),
        task=Letters(),
        problems=4,
        solved_max=3,
        rounds=2,
        traces=0,
        max_prompt_tokens=150,
        model=config.Model(path=str(model), compute_dtype="float32"),
        eval=config.Eval(k=4, batch=3, max_completion_tokens=10, temperature=1.0, top_p=1.0),
    )
    return replace(base, **changes)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Returns a random model whose answers often end before the limit: many tokens end one."""
    folder = tiny.model_folder(tmp_path_factory.mktemp("model") / "tiny")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, *range(2, 40)]}))
    return folder


@pytest.fixture(scope="module")
def finished(model, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "study"
    study_job.run(job(model, out))
    return out


CONDITIONS = ["unguided", "guided", "without_thinking", "regenerated", "regenerated_2"]


def test_a_study_asks_only_what_is_solved_now_and_then(finished):
    collected = analysis.by_problem(lines(finished / "collected.jsonl"))
    assert "1" not in collected  # overlong
    wanted = [i for i, rows in collected.items() if 1 <= analysis.solved(rows) <= 3][:4]
    figures = json.loads((finished / "scores.json").read_text())
    assert list(figures["conditions"]) == CONDITIONS
    assert figures["problems"] == 4 and figures["tried"] == len(collected)
    assert sum(figures["solved"].values()) == len(collected)
    for name in CONDITIONS:
        answers = analysis.by_problem(lines(finished / "answers" / f"{name}.jsonl"))
        assert list(answers) == wanted and all(len(rows) == 4 for rows in answers.values())
        correct = np.mean([r["correct"] for rows in answers.values() for r in rows])
        assert figures["conditions"][name]["accuracy"]["avg@4"]["value"] == pytest.approx(correct)
    assert "| condition | score (avg@4) |" in (finished / "scores.md").read_text()


def test_each_link_of_the_chain_shows_the_best_answer_of_the_one_before(finished):
    files = {name: finished / "answers" / f"{name}.jsonl" for name in CONDITIONS}
    files["collected"] = finished / "collected.jsonl"
    answers = {name: analysis.by_problem(lines(file)) for name, file in files.items()}
    before = {"guided": "collected", "regenerated": "guided", "regenerated_2": "regenerated"}
    for name, of in before.items():
        for problem, rows in answers[name].items():
            question = answers["collected"][problem][0]["messages"][0]["content"]
            solution = analysis.best(answers[of][problem])["completion"]
            assert rows[0]["messages"][0]["content"] == (
                f"{question}\n\nCorrect solution: {solution}\n\n"
                "Correctly solve the original question."
            )
    for problem, rows in answers["unguided"].items():
        assert rows[0]["messages"] == answers["collected"][problem][0]["messages"]
        # The same questions with new answers.
        assert [r["completion"] for r in rows] != [
            r["completion"] for r in answers["collected"][problem]
        ]


def test_finetuning_reads_the_data_sets_of_a_study(finished):
    sizes = []
    for name in ("d_ug", "d_sg"):
        source = str(finished / f"{name}.jsonl")
        read, _ = conversations.load(source, turns="last", on_bad_row="error")
        assert all("Correct solution" not in d.messages[0]["content"] for d in read)
        graded = even([Attempt(d.completion, "3", False, "0") for d in read])
        assert all(grade.correct for grade in graded)
        sizes.append(len(read))
    assert sizes[0] == sizes[1] > 0


@pytest.mark.parametrize("cut", ["collected.jsonl", "answers/regenerated.jsonl"])
def test_a_resumed_study_equals_an_uninterrupted_one(finished, model, tmp_path, cut):
    out = tmp_path / "parts"
    (out / "answers").mkdir(parents=True)
    names = ["config.json", "collected.jsonl", *(f"answers/{name}.jsonl" for name in CONDITIONS)]
    kept = names[: names.index(cut)]
    for name in kept:
        (out / name).write_bytes((finished / name).read_bytes())
    whole = (finished / cut).read_bytes()
    (out / cut).write_bytes(whole[: 2 * len(whole) // 3])  # in the middle of a line
    study_job.run(job(model, out, resume=True))
    for name in [*names[1:], "trajectories.jsonl", "scores.json", "scores.md", "d_sg.jsonl"]:
        assert (out / name).read_bytes() == (finished / name).read_bytes(), name


def test_a_finished_study_loads_no_model_again(finished, model, monkeypatch):
    monkeypatch.setattr(
        loaded_model.LoadedModel, "load", lambda self: pytest.fail("weights are loaded")
    )
    before = (finished / "scores.json").read_bytes()
    study_job.run(job(model, finished, resume=True))
    assert (finished / "scores.json").read_bytes() == before


@pytest.mark.heavy
def test_a_study_that_finds_no_problem_says_how_often_they_were_solved(model, tmp_path):
    # No random model solves a problem four times of four.
    strict = job(model, tmp_path / "none", tried=3, solved_min=4, solved_max=4)
    with pytest.raises(config.UserError, match=r"solved_min is 4: none of 2 problems .*4: 0"):
        study_job.run(strict)


def test_a_study_does_not_write_over_another(finished, model):
    with pytest.raises(config.UserError, match="holds a run; pass --resume"):
        study_job.run(job(model, finished))
    with pytest.raises(config.UserError, match=r"made with other fields: rounds 2 -> 1; "):
        study_job.run(job(model, finished, resume=True, rounds=1))


def test_a_solution_that_could_not_stand_in_a_prompt_is_refused(model, tmp_path):
    long = replace(job(model, "").eval, max_completion_tokens=200)
    with pytest.raises(config.UserError, match=r"tokens is 200: .* 614 are needed"):
        study_job.run(job(model, tmp_path / "long", eval=long))
