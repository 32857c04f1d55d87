"""Nothing that a model writes raises, hangs, escapes, or keeps the next from being graded."""

import contextlib
import gc
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import marks
import pytest

from sdjax import config, tasks
from sdjax.graders import tool_calls
from sdjax.graders.answer import choice, number
from sdjax.graders.code import grade_code
from sdjax.graders.math import grade_math, paper_grade
from sdjax.graders.workers.grade_batch import Attempt, each
from sdjax.graders.workers.pool import LIMIT_S as POOL_LIMIT_S
from sdjax.graders.workers.pool import Pool, shared
from sdjax.tasks.arithmetic import Arithmetic

# Of a call; every answer must be graded within it and a second.
LIMIT_S = 1.0
SLACK_S = 1.0


class Strict:
    """The shared pool of a function, with LIMIT_S for each call."""

    def __init__(self, function: str, limit_s: float = POOL_LIMIT_S):
        self._pool = shared(f"sdjax.graders.{function}", limit_s=limit_s, warm_up=("x", "1"))
        self._warm = False

    def map(self, calls):
        if not self._warm:
            # sympy's first simplification takes most of LIMIT_S on a slow machine.
            self._pool.map([("(x+1)^2", "x^2+2x+1")], limit_s=60)
            self._warm = True
        return self._pool.map(calls, limit_s=LIMIT_S)


# Pools start their processes at the first call.
GRADERS = {
    "number": each(number.grade),
    "choice": each(choice.grade),
    "choice_reference": each(choice.grade_reference),
    "tooluse": each(tool_calls.grade),
    "tooluse_reference": each(tool_calls.grade_reference),
    "math": grade_math.ours(Strict("math.symbolic:same")),
    "math_reference": grade_math.reference(Strict("math.symbolic:reference", limit_s=10.0)),
    "math_eval_reference": paper_grade.reference(Strict("math.paper_symbolic:same")),
}
CALLS = '[{"Action": "f", "Action_Input": "{\\"k\\": 1}"}]'
RIGHT = {
    "number": ("8", "8"),
    "choice": ("<answer>A</answer>", "A"),
    "tooluse": ('Action: f\nAction Input: {"k": 1}', CALLS),
    "math": (r"\boxed{(x+1)^2}", "x^2+2x+1"),
    "math_reference": (r"\boxed{\frac{8}{2}}", "4"),
    "math_eval_reference": (r"\boxed{\frac{8}{2}}", "4"),
}
RIGHT["choice_reference"], RIGHT["tooluse_reference"] = RIGHT["choice"], RIGHT["tooluse"]


@contextlib.contextmanager
def not_collecting():
    """Keeps the garbage of earlier tests, seconds of work, from the time of what is measured."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


TEXTS = {
    "digits": "1" * 1_000_000,
    "boxed digits": r"\boxed{" + "1" * 1_000_000 + "}",
    "tower": r"\boxed{9**9**9**9}",
    "tower in TeX": r"\boxed{9^{9^{9^{9}}}}",
    "factorials": r"\boxed{99999999!!}",
    "sum": r"\boxed{\sum_{k=1}^{10^{12}} \frac{1}{k^2}}",
    "open braces": "{" * 200_000 + r"\boxed{" * 1000,
    "close braces": r"\boxed{" + "}" * 200_000,
    "open boxes": r"\boxed{" * 50_000,
    "brackets": r"\boxed{" + "(" * 5000 + ")" * 5000 + "}",
    "fractions": r"\boxed{" + r"\frac{" * 300 + "}" * 600 + "}",
    "spaces": r"\boxed{1" + " " * 100_000 + "!}",
    "commas": r"\boxed{" + "1," * 100_000 + "}",
    "words": r"\boxed{1 " + "a " * 100_000 + "!}",
    "thousands": r"\boxed{" + "1,111" * 40_000 + "}",
    "thousands in brackets": r"\boxed{" + "[1,000, " * 40_000 + "}",
    "lines": r"\boxed{" + ", ; " * 450 + r"x\\x}",
    "a system of spaces": r"\boxed{" + " " * 1900 + r"\begin{cases}x=1\\x=2}",
    "hedges": "Answer: " + "I am sure that it's probably " * 5000,
    "tags": "<answer>" * 50_000 + "</answer>" * 50_000,
    "answers": "answer is " * 50_000 + "(" * 50_000,
    "actions": "Action: f\nAction Input: {" * 20_000,
    "nested JSON": 'Action: f\nAction Input: {"a":' + "[" * 100_000,
    "NUL": "\\boxed{\x005\x00}\x00",
    "lone surrogates": "\ud800\\boxed{\udfff5}\ud800",
    "right to left": "\u202e\\boxed{\u202e5}\u200f",
    "other digits": "\\boxed{\u0665\u00b2\u2460}",
    "code": r"\boxed{__import__('os').system('kill -9 -1')}",
    "code without names": r"\boxed{().__class__.__base__.__subclasses__()}",
    "empty": "",
}


@pytest.mark.parametrize(
    "name", marks.heavy_but(GRADERS.keys() - {"math", "math_eval_reference"}, GRADERS)
)
def test_hostile_texts_are_graded_wrong_in_time_and_the_next_is_graded_right(name):
    grader = GRADERS[name]
    text, answer = RIGHT[name]
    # Neither other programs nor other threads change the CPU time of a rule that works in this one.
    clock = time.perf_counter if name.startswith("math") else time.thread_time
    assert grader([Attempt(text, answer)])[0].correct
    for title, hostile in TEXTS.items():
        with not_collecting():
            start = clock()
            grades = grader([Attempt(hostile, answer, cut) for cut in (False, True)])
            seconds = clock() - start
        assert seconds < LIMIT_S + SLACK_S, title
        assert [g.correct for g in grades] == [False, False], title
        json.dumps([g.details for g in grades])
    assert grader([Attempt(text, answer)])[0].correct


@pytest.mark.parametrize(
    "name", marks.heavy_but(GRADERS.keys() - {"math", "math_eval_reference"}, GRADERS)
)
def test_hostile_answers_of_a_data_file_do_no_harm_either(name):
    answers = ["", "\\boxed{", "{", "\x00", "\ud800", "1" * 10_000, "[]", "null"]
    grades = GRADERS[name]([Attempt(RIGHT[name][0], answer) for answer in answers])
    assert not any(grade.correct for grade in grades)


@pytest.mark.heavy
def test_a_pool_survives_calls_that_hang_die_raise_or_eat_memory(tmp_path, monkeypatch):
    (tmp_path / "misbehave.py").write_text(
        "import os, time\n"
        "def call(kind, value=0):\n"
        "    if kind == 'hang':\n"
        "        while True: pass\n"
        "    if kind == 'stubborn':\n"
        "        while True:\n"
        "            try: time.sleep(60)\n"
        "            except BaseException: pass\n"
        "    if kind == 'die': os._exit(1)\n"
        "    if kind == 'raise': raise RecursionError\n"
        "    if kind == 'memory': return len(bytearray(10**11))\n"
        "    if kind == 'print': print('x' * 10**6)\n"
        "    if kind == 'write':\n"
        "        with open('left', 'w') as file: file.write('x')\n"
        "    return value\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    pool = Pool("misbehave:call", workers=2, limit_s=LIMIT_S)
    kinds = ["hang", "stubborn", "die", "raise", "memory", "write"]
    calls = [[kind] for kind in kinds] + [["print", i] for i in range(20)]
    start = time.perf_counter()
    results = pool.map(calls)
    assert time.perf_counter() - start < 2 * (LIMIT_S + SLACK_S) + 2
    assert [r.reason for r in results[:6]] == ["late", "late", "died", "error", "error", "error"]
    assert results[6:] == list(range(20))
    start = time.perf_counter()
    assert pool.map([["fine", i] for i in range(2000)]) == list(range(2000))
    assert time.perf_counter() - start < 3.0
    assert (tmp_path / "left").read_text() == ""
    pool.close()


def test_a_pool_that_cannot_start_says_so():
    with pytest.raises(RuntimeError, match="does not start"):
        Pool("sdjax.graders.no_such_module:call", workers=1).map([[1]])


def processes() -> str:
    """Returns the command lines of all processes; those that have ended have none."""
    lines = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            lines.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
    return "\n".join(lines)


def gone(word: str, allowed: int = 0) -> bool:
    """Returns whether at most so many command lines hold a word, now or within two seconds."""
    deadline = time.monotonic() + 2
    while processes().count(word) > allowed:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="no /proc to look for processes in")
def test_closing_a_pool_ends_its_processes():
    pool = Pool("json:dumps", workers=2, memory_mb=1789)
    assert pool.map([[1], [2]]) == ["1", "2"]
    assert processes().count("sdjax.graders.workers.worker json:dumps 1789") >= 2
    pool.close()
    assert gone("sdjax.graders.workers.worker json:dumps 1789")


def test_a_worker_whose_caller_died_in_a_call_ends():
    command = [sys.executable, "-m", "sdjax.graders.workers.worker", "time:sleep", "2048", "null"]
    worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert b"ready" in worker.stdout.readline() + worker.stdout.readline()
    worker.stdin.write(b"[5, [0.5]]\n")
    worker.stdin.flush()
    worker.stdout.close()  # as the death of the caller does
    worker.stdin.close()
    assert worker.wait(timeout=20) == 0


def test_a_call_has_the_limit_that_it_is_given_and_renewed_workers_forget_earlier_calls(
    tmp_path, monkeypatch
):
    (tmp_path / "counting.py").write_text(
        "import time\n"
        "calls = 0\n"
        "def call(seconds):\n"
        "    global calls\n"
        "    calls += 1\n"
        "    time.sleep(seconds)\n"
        "    return calls\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    pool = Pool("counting:call", workers=1, limit_s=LIMIT_S)
    assert pool.map([[0], [0]]) == [1, 2]
    pool.renew()
    assert pool.map([[0]]) == [1]
    assert pool.map([[0.3]], limit_s=0.1)[0].reason == "late"
    assert pool.map([[0.3]]) == [3]
    pool.close()


@pytest.mark.heavy
@pytest.mark.parametrize("name", ["countdown", "n_queens"])
def test_generators_that_evaluate_answers_get_nothing_to_evaluate(name, tmp_path):
    task = tasks.load(Arithmetic(name=name, size=2, held_out=2), config.Data())
    mark = tmp_path / "mark"
    hostile = [
        f"open({str(mark)!r}, 'w')",
        f"[__import__('os').system('touch {mark}')]",
        f"(lambda: exec('open({str(mark)!r}, chr(119))'))()",
        "9**9**9**9",
        "[" * 5000,
    ]
    for text in hostile:
        assert not task.grade(text, task.train[0], truncated=False).correct
    assert not mark.exists()
    right = f"<answer>{task.train[1].answer}</answer>"
    assert task.grade(right, task.train[1], truncated=False).correct


HOME_FILE = str(Path.home() / "sdjax-was-here")
PROGRAMS = {
    "fork bomb": "import os\nwhile True:\n  try: os.fork()\n  except OSError: pass",
    "threads": (
        "import threading, time\n"
        "while True: threading.Thread(target=time.sleep, args=(99,)).start()"
    ),
    "socket": "import socket\nsocket.create_connection(('1.1.1.1', 80), 3)\nprint(6)",
    "listen": "import socket\ns = socket.create_server(('127.0.0.1', 47113))\nwhile 1: s.accept()",
    "write home": f"open({HOME_FILE!r}, 'w').write('x')\nprint(6)",
    "write Python": "import os\nopen(os.__file__, 'a').write('x')\nprint(6)",
    "endless print": "while True: print('x' * 1000)",
    "endless error": "import sys\nwhile True: sys.stderr.write('x' * 1000)",
    "memory": "x = bytearray(10 * 2**30)\nprint(6)",
    "disk": "for i in range(99): open(f'/tmp/{i}', 'wb').write(b'x' * 10**7)\nprint(6)",
    "ignores signals": (
        "import signal\nfor s in range(1, 65):\n"
        "  try: signal.signal(s, signal.SIG_IGN)\n  except (OSError, ValueError): pass\n"
        "while True: pass"
    ),
    "kills all": "import os\nos.kill(-1, 9)",
    "leaves a daemon": (
        "import os, time\n"
        "if os.fork() == 0:\n  os.setsid()\n  os.fork()\n  time.sleep(4711)\nprint(5)"
    ),
    "crashes": "import ctypes\nctypes.string_at(0)",
    "recursion": "def f(): return f()\nf()",
    "closes everything": "import os\nos.closerange(0, 256)",
    "tower": "print(9**9**9**9)",
    "NUL": "\x00",
    "surrogate": "print('\ud800')",
    "huge source": "x = [" + "1," * 300_000 + "]",
    "deep source": "(" * 100_000,
}  # fmt: skip
TESTS = json.dumps(
    {"testtype": "stdin", "fn_name": "", "inputs": ["1\n"], "outputs": ["6\n"], "time_limit": 0.5}
)


@pytest.mark.parametrize("name", marks.heavy_but(["fork bomb", "leaves a daemon"], PROGRAMS))
def test_hostile_programs_end_in_time_and_leave_nothing(sandboxed, name):
    before = processes()
    start = time.perf_counter()
    grade = grade_code.grade(Attempt(f"```python\n{PROGRAMS[name]}\n```", TESTS))
    # The limit of a test is its time limit and a second; starting and ending take some more.
    assert time.perf_counter() - start < 1.5 + SLACK_S
    assert not grade.correct and grade.feedback and len(grade.feedback) <= 2000
    json.dumps(grade.details)
    assert not os.path.exists(HOME_FILE)
    assert gone("bwrap", before.count("bwrap")) and gone("4711", before.count("4711"))
    assert grade_code.grade(Attempt("```python\nprint(6)\n```", TESTS)).correct


@pytest.mark.heavy
def test_a_program_cannot_use_more_than_its_whole_time(sandboxed):
    tests = json.loads(TESTS)
    tests |= {"inputs": ["1\n"] * 50, "outputs": ["6\n"] * 50, "time_limit": 0.1}
    start = time.perf_counter()
    grade = grade_code.grade(Attempt("```python\nwhile True: pass\n```", json.dumps(tests)))
    assert time.perf_counter() - start < grade_code.TOTAL_FACTOR * 1.1 + SLACK_S
    assert not grade.correct and grade.feedback.startswith("Time Limit Exceeded")
