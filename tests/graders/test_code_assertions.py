"""Assertions run beside the program: what they may do, and what no program gains from them."""

import json
import time

import pytest

from sdjax.graders.code import grade_code
from sdjax.graders.workers.grade_batch import Attempt

pytestmark = pytest.mark.usefixtures("sandboxed")


def attempt(program, *tests, limit_s=5):
    answer = {"testtype": "code", "fn_name": "f", "inputs": tests, "outputs": [""] * len(tests)}
    return Attempt(f"```python\n{program}\n```", json.dumps(answer | {"time_limit": limit_s}))


VECTOR = """
class V:
    def __init__(self, x): self.x = x
    def __add__(self, other): return V(self.x + other.x)
    def __eq__(self, other): return self.x == other.x
    def __repr__(self): return f'V({self.x})'
"""
VALUES = "2**50000, 1.5, float('inf'), None, {1, 2}, {(1, 2): [3]}, b'x', Fraction(1, 2)"
# Programs, and assertions that are true of them.
TRUE = {
    "two tests": ("def f(x): return x + 1", "assert f(1) == 2", "assert f(2) == 3"),
    "a method": (
        "class Solution:\n    def g(self, a): return [a] * 2",
        "assert Solution().g((1, 2)) == [(1, 2)] * 2",
    ),
    "a change in place": ("def f(a): a.sort()", "x = [3, 1]\nf(x)\nassert x == [1, 3]"),
    "a changed dict": ("def f(d): d['b'] = [2]", "x = {}\nf(x)\nassert x == {'b': [2]}"),
    "a function as argument": ("def f(g, x): return g(x)", "assert f(lambda y: y * 2, 4) == 8"),
    "a generator": ("def f(n): yield from range(n)", "assert list(f(3)) == [0, 1, 2]"),
    "an exception": (
        "def f(x): raise ValueError('bad')",
        "try:\n    f(1)\n    assert False\nexcept ValueError as e:\n    assert str(e) == 'bad'",
    ),
    "an own exception": (
        "class E(Exception): pass\ndef f(): raise E('x')",
        "try:\n    f()\nexcept E:\n    pass\nelse:\n    assert False",
    ),
    "objects": (
        VECTOR,
        "assert V(1) + V(2) == V(3) and V(1) != V(2)\nassert repr(V(4)) == 'V(4)'\n"
        "v = V(1)\nv.x = 9\nassert v.x == 9 and isinstance(v, V)",
    ),
    "names of the program": (
        "import math\nfrom collections import Counter\ndef f(s): return Counter(s)",
        "assert f('aab') == {'a': 2, 'b': 1} and math.sqrt(4) == 2",
    ),
    "arrays": (
        "import numpy as np\ndef f(): return np.arange(3)",
        "assert (f() == np.array([0, 1, 2])).all()",
    ),
    "values of every type": (
        f"from fractions import Fraction\ndef f(): return {VALUES}",
        f"from fractions import Fraction\nassert f() == ({VALUES})",
    ),
    "a check function": (
        "def f(x): return x",
        "def check(c):\n    assert c('é') == 'é' and c(c)(1) == 1\ncheck(f)",
    ),
}
# Programs that return 0 where 2 is asserted, and try to be rewarded for it.
UNSOLVED = {
    "wrong": "def f(x): return 0",
    "a patched json": (
        "import json\njson.dump = lambda o, s, **k: s.write('{}')\ndef f(x): return 0"
    ),
    "a report on every descriptor": (
        "import os\nfor fd in range(3, 64):\n    try: os.write(fd, b'{}\\n')\n"
        "    except OSError: pass\nos._exit(0)"
    ),
    "a message of the protocol": (
        "import os\nos.write(3, b'[\"value\", null]\\n[\"value\", {\"d\": []}]\\n')\n"
        "os._exit(0)"
    ),
    "an object that equals everything": (
        "class A:\n    def __eq__(self, other): return True\ndef f(x): return A()"
    ),
    "a number that equals everything": (
        "class A(int):\n    def __eq__(self, other): return True\ndef f(x): return A(5)"
    ),
    "a search of its memory for the test": (
        "import gc\ndef f(x):\n"
        "    texts = [v for o in gc.get_objects() if type(o) is dict for v in list(o.values())]\n"
        "    return 2 * any('assert ' + 'f(1)' in t for t in texts if type(t) is str)"
    ),
    "files of the other processes": (
        "import os\nfor p in os.listdir('/proc'):\n    if p.isdigit() and int(p) != os.getpid():\n"
        "        try:\n            for fd in os.listdir(f'/proc/{p}/fd'):\n"
        "                open(f'/proc/{p}/fd/{fd}', 'w').write('{}')\n"
        "        except OSError: pass\ndef f(x): return 0"
    ),
    "an exit at the import": "raise SystemExit(0)",
    "an exit in the call": "def f(x): raise SystemExit(0)",
    "an end of the process": "import os\ndef f(x): os._exit(0)",
    "an end of the other processes": (
        "import os\nfor p in os.listdir('/proc'):\n"
        "    if p.isdigit() and int(p) not in (1, os.getpid(), os.getppid()): os.kill(int(p), 9)\n"
        "def f(x): return 0"
    ),
}  # fmt: skip


def test_true_assertions_pass():
    grades = grade_code.grader()([attempt(*of) for of in TRUE.values()])
    wrong = {n: g.feedback for n, g in zip(TRUE, grades, strict=True) if not g.correct}
    assert not wrong


@pytest.mark.heavy
def test_no_program_is_rewarded_unsolved():
    grades = grade_code.grader()([attempt(p, "assert f(1) == 2") for p in UNSOLVED.values()])
    rewarded = [n for n, g in zip(UNSOLVED, grades, strict=True) if g.reward]
    assert not rewarded
    errors = {n: g.details["pred"] for n, g in zip(UNSOLVED, grades, strict=True)}
    assert "AssertionError" in errors["an object that equals everything"]
    assert "AssertionError" in errors["a search of its memory for the test"]


@pytest.mark.heavy
def test_a_program_that_stops_the_runner_costs_its_whole_time_and_no_more():
    program = "import os, signal\nos.kill(os.getppid(), signal.SIGSTOP)\ndef f(x): return 0"
    start = time.perf_counter()
    grade = grade_code.grade(attempt(program, "assert f(1) == 2", limit_s=0.5))
    assert not grade.correct
    assert time.perf_counter() - start < grade_code.TOTAL_FACTOR * 1.5 + 4


def test_the_error_of_a_program_names_its_line():
    grade = grade_code.grade(attempt("def f(x):\n    return 1 // 0", "assert f(1) == 2"))
    assert "ZeroDivisionError" in grade.feedback and "Line 2 in f (Solution.py)" in grade.feedback
