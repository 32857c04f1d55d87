"""LiveCodeBench problems: programs that must pass tests, with feedback in words.

Training and evaluation use the same problems, as in the SDPO paper. Training uses a share of each
problem's tests, and evaluation uses all of them. The held-out score therefore says how well
programs generalise to hidden tests, not to new problems.
"""

from __future__ import annotations

import base64
import json
import pickletools
import random
import re
import zlib
from dataclasses import dataclass, replace
from typing import Any

from sdjax import config, own_functions
from sdjax.data.messages import prompt, with_system
from sdjax.data.rows import RowError, columns, convert_rows, text_field
from sdjax.data.sources import read_rows
from sdjax.graders.code import grade_code, sandbox
from sdjax.own_functions import Function
from sdjax.records import Example, Message
from sdjax.tasks import Task
from sdjax.tasks.from_rows import json_values, own_or_rule, with_last

INSTRUCTION = (
    "You are a coding expert. You will be given a coding problem, and you need to write a correct "
    "Python program that matches the specification and passes all tests. The time limit is 1 "
    "second. You may start by outlining your thought process. In the end, please provide the "
    "complete code in a code block enclosed with ``` ```.\n\n"
)
LIMIT_S = 6


@dataclass(frozen=True, kw_only=True)
class LiveCodeBench(config.TaskConfig):
    """Coding problems with tests. The programs run in a sandbox (bubblewrap)."""

    source: str = "hf://datasets/livecodebench/code_generation_lite/test6.jsonl"
    """Rows of LiveCodeBench itself, or of the SDPO paper's code (prompt and tests)."""
    first_date: str = "2025-02-01"
    """Contest date of the first problems that are used. Rows without a date are always used."""
    last_date: str = "2025-05-01"
    """Problems of this date and later dates are left out."""
    problems: tuple[str, ...] = ()
    """Ids of the only problems to use, as the answers of an evaluation show them. Test-time
    self-distillation trains on one problem. If empty, all are used."""
    held_out: int = 10_000
    """Problems that are evaluated, at most; 0: none."""
    train_share: float = 0.5
    """Share of each problem's tests that training uses. It uses at least one test."""
    grader: Function = "code"
    """code, or code_reference, which restricts builtins and imports, and splits arguments at any
    space, as the papers' code does. Or a function of yours."""
    parallel: int = 0
    """Programs that run at a time. 0 runs one per core."""

    def __post_init__(self) -> None:
        super().__post_init__()
        own_functions.check_rule(self.grader, ("code", "code_reference"))
        config.require(0 < self.train_share <= 1, "task.train_share", self.train_share, "in (0, 1]")
        config.require(self.parallel >= 0, "task.parallel", self.parallel, "must not be negative")
        for name in ("first_date", "last_date"):
            date = getattr(self, name)
            good = re.fullmatch(r"\d{4}-\d\d-\d\d", date) is not None
            config.require(good, f"task.{name}", date, "should read YYYY-MM-DD")


def load(cfg: LiveCodeBench, data: config.Data) -> Task:
    """Returns the task; raises UserError if the sandbox does not work on this machine."""
    sandbox.require()
    reference = cfg.grader == "code_reference"

    def convert(row: dict[str, Any], number: int) -> Example | None:
        date = str(row.get("contest_date", ""))[:10]
        if date and not cfg.first_date <= date < cfg.last_date:
            return None
        messages, tests = fields(row)
        if reference:  # Its sandbox calls plain functions, not methods.
            messages = with_last(messages, lambda question: question.replace("(self, ", "("))
        return Example(
            id=str(number),
            messages=messages,
            answer=tests,
            task="livecodebench",
            columns=json_values(dict(row)) if cfg.keeps_columns() else {},
        )

    examples, skipped = convert_rows(cfg.source, read_rows(cfg.source), convert, data.on_bad_row)
    ids = [example.id for example in examples]
    config.require(
        set(cfg.problems) <= set(ids),
        "task.problems",
        cfg.problems,
        f"must be among those of {cfg.source}: {', '.join(ids)}",
    )
    if cfg.problems:
        examples = [example for example in examples if example.id in cfg.problems]
    return Task(
        name="livecodebench",
        train=[replace(e, answer=_share(cfg, e)) for e in examples],
        held_out=examples[: cfg.held_out],
        grader=own_or_rule(cfg, cfg.grader, parallel=cfg.parallel or None),
        skipped=skipped,
    )


def fields(row: dict[str, Any]) -> tuple[tuple[Message, ...], str]:
    """Returns the messages of a row's prompt and its tests as JSON text.

    Raises RowError for a row that is not a problem with tests.
    """
    if "question_content" in row:
        asked: tuple[Message, ...] = ({"role": "user", "content": _question(row)},)
        messages, tests = with_system(asked, row), json.dumps(_hidden_tests(row))
    elif "tests" in row:
        messages = prompt(row, "", ("prompt", "messages", "conversations"))
        tests = text_field(row, "tests")
    else:
        raise RowError(
            f"has the columns {columns(row)}; needs question_content and "
            "private_test_cases, or prompt and tests"
        )
    try:
        grade_code.read_tests(tests)
    except (ValueError, TypeError) as error:
        raise RowError(f"has no usable tests ({error})") from None
    return messages, tests


def _question(row: dict[str, Any]) -> str:
    problem = text_field(row, "question_content")
    starter = row.get("starter_code")
    if starter:
        problem += (
            f"\n\nYour solution should have the following signature: ```python\n{starter}\n```"
        )
    return INSTRUCTION + problem


def _hidden_tests(row: dict[str, Any]) -> dict[str, Any]:
    """Returns LiveCodeBench's private tests in the form that `grade_code.read_tests` reads."""
    try:
        cases = _unpacked(text_field(row, "private_test_cases"))
        name = json.loads(row.get("metadata") or "{}").get("func_name", "")
        return {
            "testtype": "functional" if cases[0]["testtype"] == "functional" else "stdin",
            "fn_name": name,
            "inputs": [case["input"] for case in cases],
            "outputs": [case["output"] for case in cases],
            "time_limit": LIMIT_S,
        }
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, zlib.error) as error:
        if isinstance(error, RowError):
            raise
        raise RowError(f"field 'private_test_cases' cannot be read ({error!r})") from None


def _unpacked(text: str) -> Any:
    """Returns the value of a JSON text, or of base64 of zlib of a pickle of a JSON text."""
    if text.lstrip().startswith("["):
        return json.loads(text)
    return json.loads(pickled_text(zlib.decompress(base64.b64decode(text))))


def pickled_text(data: bytes) -> str:
    """Returns the one text that a pickle holds, without running the pickle.

    A data file must not run code, so this raises ValueError for any other instruction.
    """
    plain = {"PROTO", "FRAME", "MEMOIZE", "BINPUT", "LONG_BINPUT", "PUT", "STOP"}
    texts = []
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name.endswith("UNICODE") or opcode.name.endswith("UNICODE8"):
            texts.append(argument)
        elif opcode.name not in plain:
            raise ValueError(f"the pickle holds more than a text ({opcode.name})")
    if len(texts) != 1:
        raise ValueError(f"the pickle holds {len(texts)} texts, not one")
    return str(texts[0])


def _share(cfg: LiveCodeBench, example: Example) -> str:
    """Returns the tests of a problem that training uses, in order; the seed chooses them."""
    tests = json.loads(example.answer)
    count = len(tests["inputs"])
    kept = random.Random(f"{cfg.seed}/{example.id}").sample(
        range(count), max(1, int(count * cfg.train_share))
    )
    for column in ("inputs", "outputs"):
        tests[column] = [tests[column][i] for i in sorted(kept)]
    return json.dumps(tests)
