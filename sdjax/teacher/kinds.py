"""Which weights the teacher has, at the start and after every step."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from sdjax.config import Teacher


def has_own_params(cfg: Teacher, adapters: bool) -> bool:
    """Returns whether the teacher's parameters are kept beside the student's.

    `adapters`: only those are trained, so that the initial model is there without them.
    """
    return cfg.kind == "ema" if adapters else cfg.kind != "live"


def initial_params(params: nnx.State, cfg: Teacher, adapters: bool) -> nnx.State | None:
    """Returns the teacher's parameters at the start of a run; None where it is the student.

    They are a copy, never the student's own buffers, which the train step donates. A moving
    average stays float32: at rate 0.01 bfloat16 would round its motion away.
    """
    if not has_own_params(cfg, adapters):
        return None
    dtype = jnp.float32 if cfg.kind == "ema" else jnp.dtype(cfg.dtype)
    return jax.tree.map(lambda p: jnp.array(p, dtype, copy=True), params)


def moved(teacher: nnx.State | None, params: nnx.State, cfg: Teacher) -> nnx.State | None:
    """Returns the teacher's parameters after a step: (1 - rate) teacher + rate student for "ema".

    Once a step, after all of its updates (arXiv:2601.20802 section 3.3 and the reference code).
    """
    if cfg.kind != "ema" or teacher is None:
        return teacher
    rate = cfg.ema_rate
    return jax.tree.map(lambda t, p: (1.0 - rate) * t + rate * p, teacher, params)
