"""The EMA teacher and the learning rate are those of the reference code, number by number."""

import json

import jax
import numpy as np
import pytest
from flax import nnx
from paths import GOLDEN

from sdjax import config
from sdjax.learner import adamw
from sdjax.learner.state import moved_teacher

EMA = np.load(GOLDEN / "ema.npz")
SCHEDULES = json.loads((GOLDEN / "lr_schedule.json").read_text())["lr"]


def state(arrays):
    return nnx.State({str(i): nnx.Param(jax.numpy.asarray(a)) for i, a in enumerate(arrays)})


def recorded(rate, step):
    return state([EMA[f"rate_{rate}/teacher_f32/{k}"][step] for k in range(3)])


@pytest.mark.parametrize("run", range(5))
def test_the_ema_teacher_is_the_reference_s_step_by_step(run):
    # The file's runs share one buffer: each starts where the one before it ended, and its
    # "teacher_init" holds the end of the last. The first run's own start is therefore unknown.
    rates = [float(r) for r in EMA["rates"]]
    first = 1 if run == 0 else 0
    teacher = recorded(rates[0], 0) if run == 0 else recorded(rates[run - 1], 4)
    for step in range(first, 5):
        student = state([EMA[f"student_sequence/{k}"][step] for k in range(3)])
        teacher = moved_teacher(teacher, student, rates[run])
        for k, expected in recorded(rates[run], step).items():
            got = teacher[k].get_value()
            np.testing.assert_allclose(got, expected.get_value(), atol=1e-6)


@pytest.mark.parametrize("case", SCHEDULES, ids=lambda c: f"warmup{c['num_warmup_steps']}")
def test_the_rate_of_every_step_is_the_reference_s_with_warmup_from_zero(case):
    cfg = config.Optim(lr=3e-4, warmup_steps=case["num_warmup_steps"], warmup_from="zero")
    for step, multiplier in enumerate(case["multiplier_per_iteration"]):
        rate = float(adamw.learning_rate(np.int32(step), cfg))
        np.testing.assert_allclose(rate, 3e-4 * multiplier, rtol=1e-6)
