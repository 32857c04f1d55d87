"""Functions of users in worker processes: how they are called, and what their failures mean."""

import subprocess
import sys
import time

import pytest
from paths import ROOT

from sdjax.errors import UserError
from sdjax.graders import grade, grader
from sdjax.graders.own import Failures, OwnFunction
from sdjax.graders.workers.grade_batch import Attempt

SUPPORT = str(ROOT / "tests" / "support")
MESSAGES = ({"role": "user", "content": "q1"},)


def attempt(text="yes", cut=False, **columns):
    row = {"question": "q1", "answer": "yes", "level": 2} | columns
    return Attempt(text, "yes", cut, "train-4", row, MESSAGES)


def values(name, attempts, limit_s=5.0, stop=True):
    function = OwnFunction(f"rewards_of_users:{name}", "task.reward", limit_s)
    return function(attempts, Failures(stop=stop))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("brevity", [0.25, 1.0]),
        ("level", [2, 2]),
        ("patient", [3, 0]),
        ("many", [5, 2]),
        ("many_async", [0.5, 0.5]),
        ("trl", [2, None]),
        ("compute_score", [1.0, 0.0]),
        ("accelerator", [1.0, 1.0]),
    ],
)
def test_a_function_gets_completions_and_rows_in_the_way_that_it_shows(name, expected):
    assert [j.value for j in values(name, [attempt(), attempt("")])] == expected


def test_a_function_of_trl_gets_conversations_where_the_prompt_is_one():
    chat = attempt(prompt=list(MESSAGES))
    assert [j.value for j in values("trl_chat", [chat, attempt("no", prompt=list(MESSAGES))])] == [
        1.0,
        0.0,
    ]


def test_a_function_of_verl_gets_the_ground_truth_of_its_row():
    row = {"reward_model": {"ground_truth": "42"}, "data_source": "s", "extra_info": {"index": 1}}
    (judged,) = values("compute_score", [attempt("42", **row)])
    assert (judged.value, judged.details) == (1.0, {"source": "s", "more": {"index": 1}})


def test_a_function_may_ask_for_more_by_name_and_return_a_grade():
    whole, cut = values("asks", [attempt(), attempt(cut=True)])
    assert (whole.grade.reward, whole.grade.feedback) == (1.5, "q1")
    assert whole.grade.details == {"vote": "yes"}
    assert [whole.grade.correct, cut.grade.correct] == [True, False]


def test_async_calls_wait_at_the_same_time():
    values("patient", [attempt()])  # starts the worker
    began = time.monotonic()
    assert len(values("patient", [attempt()] * 40)) == 40
    assert time.monotonic() - began < 4  # one after the other would take 8 s


FAULTS = {
    "fails": "KeyError: 'nothing' (rewards_of_users.py, line ",
    "exits": "its process ended",
    "hangs": "no value in 0.3 s (task.reward_timeout_s)",
    "async_late": "no value in 0.3 s (task.reward_timeout_s)",
    "async_fails": "TimeoutError: the server (rewards_of_users.py, line ",
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_failure_names_its_row_and_ends_the_run_or_scores_0(name, caplog):
    with pytest.raises(UserError) as error:
        values(name, [attempt()], limit_s=0.3)
    said = str(error.value)
    assert said.startswith(f"rewards_of_users:{name}, row 4 of task.train: {FAULTS[name]}")
    assert said.endswith("task.on_reward_error zero") and "\n" not in said
    judged = values(name, [attempt(), attempt()], limit_s=0.3, stop=False)
    assert [j.value for j in judged] == [0.0, 0.0] and FAULTS[name] in judged[0].failed
    assert len(caplog.messages) == 1 and "row 4 of task.train" in caplog.messages[0]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("nan", "returned nan"),
        ("infinite", "returned a Grade with the reward inf"),
        ("text", "returned '1.0'"),
        ("nothing", "returned None"),
        ("no_json", "returned a Grade whose details are no JSON values"),
        ("too_few", "returned 1 values for 2 completions"),
    ],
)
def test_what_is_no_finite_reward_is_an_error_that_names_the_row(name, says):
    for stop in (True, False):
        with pytest.raises(UserError) as error:
            values(name, [attempt(), attempt()], stop=stop)
        assert f"rewards_of_users:{name}, row 4 of task.train: {says}" in str(error.value)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("rewards_of_users:brevit", "has no function brevit; perhaps you meant brevity"),
        ("rewards_of_users:not_a_function", "is int, not a function"),
        ("no_such_rewards:f", "no module no_such_rewards in"),
        ("no_such_rewards.py:f", "no file no_such_rewards.py in"),
        ("ends_itself.py:f", "SystemExit: 1 (ends_itself.py, line 1)"),
        ("no_python.py:f", "SyntaxError: "),
    ],
)
def test_a_name_without_a_function_is_refused_when_it_is_loaded(name, says, tmp_path, monkeypatch):
    (tmp_path / "ends_itself.py").write_text("raise SystemExit(1)\n")
    (tmp_path / "no_python.py").write_text("def f(:\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        OwnFunction(name, "task.reward", 1.0)
    said = str(error.value)
    assert said.startswith(f"task.reward is '{name}': ") and says in said and "\n" not in said


def test_a_file_that_starts_a_job_when_it_is_imported_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("SDJAX_OWN_WORKER", "1")
    with pytest.raises(UserError, match="starts a job when it is imported"):
        OwnFunction("rewards_of_users:level", "task.reward", 1.0)


def test_a_function_is_a_grader_by_its_name():
    assert grade("rewards_of_users:brevity", "", "7").correct
    low = grade("rewards_of_users:brevity", "long text", "7")
    assert (low.reward, low.correct) == (0.1, False)
    graded = grader("rewards_of_users:asks")([attempt()])
    assert (graded[0].reward, graded[0].correct) == (1.5, True)


def test_what_a_function_prints_reaches_standard_error():
    code = (
        f"import sys; sys.path.append({SUPPORT!r})\n"
        "from sdjax.graders import grade\n"
        "try:\n    grade('rewards_of_users:fails', '', '')\nexcept ValueError: pass"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "seen by the user" in done.stderr and done.stdout == ""
