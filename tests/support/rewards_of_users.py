"""Rewards and graders as users write them; tests address them as rewards_of_users:NAME."""

import asyncio
import os
import sys
from fractions import Fraction

import numpy as np

from sdjax.graders import batched
from sdjax.records import Grade


def brevity(completion, row):
    return 1 / (1 + len(completion))


def level(completion, row):
    return row["level"]


def asks(completion, row, *, answer, truncated, messages):
    return Grade(
        reward=1.5,
        correct=not truncated,
        feedback=messages[-1]["content"],
        details={"vote": answer},
    )


async def patient(completion, row):
    await asyncio.sleep(0.2)
    return len(completion)


async def async_fails(completion, row):
    await asyncio.sleep(0)
    raise TimeoutError("the server")


async def async_late(completion, row):
    await asyncio.sleep(30)


@batched
def many(completions, rows):
    return np.array([len(c) + r["level"] for c, r in zip(completions, rows, strict=True)])


@batched
def too_few(completions, rows):
    return [1.0]


@batched
async def many_async(completions, rows):
    return [Fraction(1, 2)] * len(completions)


def trl(prompts, completions, level, **kwargs):
    assert "prompt" not in kwargs and "answer" in kwargs
    return [n if text else None for text, n in zip(completions, level, strict=True)]


def trl_chat(completions, prompts):
    said = [(p[-1]["content"], c[0]["role"], c[0]["content"]) for p, c in zip(prompts, completions)]  # noqa: B905
    return [float(s == ("q1", "assistant", "yes")) for s in said]


def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    return {"score": float(solution_str == ground_truth), "source": data_source, "more": extra_info}


def fails(completion, row):
    print("seen by the user")
    return row["nothing"]


def hangs(completion, row):
    while True:
        pass


def exits(completion, row):
    sys.exit(3)


def nan(completion, row):
    return float("nan")


def infinite(completion, row):
    return Grade(reward=float("inf"), correct=True)


def text(completion, row):
    return "1.0"


def nothing(completion, row):
    pass


def no_json(completion, row):
    return Grade(reward=1.0, correct=True, details={"x": object()})


def accelerator(completion, row):
    return float(os.environ["JAX_PLATFORMS"] == "cpu")


not_a_function = 3


def odd(completion, row):
    return len(completion) % 2


def odd_grade(completion, row):
    good = len(completion) % 2 == 1
    return Grade(reward=float(good), correct=good)
