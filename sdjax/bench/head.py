"""Measures the chunked head alone: hidden states of both contexts in, loss and gradient out."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from sdjax.bench import timing
from sdjax.bench.bench_rows import BenchRow
from sdjax.bench.subject import Subject
from sdjax.config.sections.target import SOLUTION
from sdjax.learner.chunked_head import (
    Context,
    Contexts,
    HeadSpec,
    TokenOutputs,
    Tokens,
    token_loss,
)
from sdjax.logs.writers import Timers
from sdjax.models import flops
from sdjax.parallel import rules


def measure(s: Subject, prompts: int) -> list[BenchRow]:
    """Returns the bench row of the head on prompts x group_size completions."""
    cfg, rows = s.cfg, prompts * s.cfg.group_size
    d, v = s.model.embed, s.model.vocab_size
    arrays = _arrays(s, rows, cfg.completion_tokens)

    def loss(
        hidden: jax.Array, head: jax.Array, taught: jax.Array, teacher: jax.Array, token: jax.Array
    ) -> tuple[jax.Array, TokenOutputs]:
        share = jnp.full(token.shape, 1 / token.size)
        return token_loss(
            lambda outputs, share: share * outputs.divergence,
            Contexts(
                student=Context(hidden=hidden, head=head),
                teachers={SOLUTION: Context(hidden=taught, head=teacher)},
            ),
            Tokens(token=token, mask=jnp.ones(token.shape, bool), known=share),
            HeadSpec(loss=cfg.loss, temperature=1.0),
        )

    both = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))

    def run(number: int) -> dict[str, float]:
        timers = Timers()
        with timers("head"):
            jax.block_until_ready(both(*arrays))
        return timers.take()

    tokens = rows * cfg.completion_tokens
    return [
        BenchRow(
            phase="head",
            timing=s.timings(f"head_{prompts}", run)["time/head_s"],
            sequences=rows,
            tokens=tokens,
            flops=flops.distilled_head(tokens, d, v),
            peak_bytes=timing.peak_bytes(),
        )
    ]


def _arrays(s: Subject, rows: int, width: int) -> tuple[jax.Array, ...]:
    """Returns hidden states, head, teacher's hidden states and head, and tokens.

    The teacher's hidden states differ from the student's by noise, because two independent draws
    would put the mass of the two models on different tokens.
    """
    d, v, dtype = s.model.embed, s.model.vocab_size, jnp.dtype(s.model.compute_dtype)

    def draw() -> tuple[jax.Array, ...]:
        keys = jax.random.split(jax.random.key(s.cfg.seed), 4)
        hidden = jax.random.normal(keys[0], (rows, width, d), dtype)
        noise = jax.random.normal(keys[1], (rows, width, d), dtype)
        head = jax.random.normal(keys[2], (d, v), jnp.float32) * (2.0 / d**0.5)
        token = jax.random.randint(keys[3], (rows, width), 0, v)
        return hidden, head, (hidden + noise / 2).astype(dtype), head.astype(dtype), token

    split, whole = rules.leading(s.mesh), rules.replicated(s.mesh)
    return jax.jit(draw, out_shardings=(split, whole, split, whole, split))()
