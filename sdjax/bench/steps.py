"""Measures a training step through the functions that training calls: rollout, packing, update.

Work of the host on texts (tokenizer, grader, reprompt) is not part of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np
from flax import nnx

from sdjax import config
from sdjax.bench import synthetic, timing
from sdjax.bench.bench_rows import BenchRow
from sdjax.bench.subject import Subject
from sdjax.bench.timing import Timing
from sdjax.learner import adamw, state, update
from sdjax.learner import batch as batches
from sdjax.learner.batch import Reprompts
from sdjax.learner.objective import Objective
from sdjax.logs.writers import Timers
from sdjax.models import flops
from sdjax.models.network.transformer import DecodeWeights
from sdjax.objectives import targets
from sdjax.parallel import hosts
from sdjax.parallel import mesh as meshes
from sdjax.records import Group, Sampled
from sdjax.rollout import interface
from sdjax.rollout.interface import SamplingRequest


def measure(s: Subject, prompts: int) -> list[BenchRow]:
    """Returns the bench rows of the step's phases that the config names."""
    cfg, rng, vocab = s.cfg, s.rng(), s.model.vocab_size
    questions = synthetic.prompts(cfg, prompts, vocab, rng)
    params = s.params()
    learner = Learner(s, params) if "update" in cfg.phases else None

    def rollout(tokens: int, number: int, timers: Timers) -> list[list[Sampled]]:
        with timers("weights"):
            params_now = learner.state.model_params() if learner else params
            decoding = jax.block_until_ready(s.sampler.weights(params_now))
        with timers("sample"):
            return sample(s, decoding, questions, tokens, number)

    def run(number: int) -> dict[str, float]:
        timers = Timers()
        if "rollout" in cfg.phases:
            sampled = rollout(cfg.completion_tokens, number, timers)
        else:
            sampled = synthetic.completions(cfg, prompts, vocab, rng)
        if learner:
            groups = synthetic.groups(questions, sampled)
            names = targets.contexts(cfg.target) if cfg.loss.distillation > 0 else ()
            read = {name: synthetic.reprompts(cfg, groups, vocab, rng) for name in names}
            learner.update(groups, read, timers)
        return timers.take()

    def prefill(number: int) -> dict[str, float]:
        timers = Timers()
        rollout(1, number, timers)
        return timers.take()

    name = "_".join([p for p in ("rollout", "update") if p in cfg.phases] + [str(prompts)])
    times = s.timings(name, run)
    peak = timing.peak_bytes()  # before the prefill alone
    rows: list[BenchRow] = []
    if "rollout" in cfg.phases:
        first = timing.repeated(prefill, cfg.repeats)["time/sample_s"]
        rows += _rollout_rows(s, prompts, times, first, peak)
    if learner:
        rows += _update_rows(s, prompts, times, peak, tuple(learner.losses))
    if len(times) == 4:
        whole = timing.added(*times.values())
        rows.append(_row(s, "step", prompts, whole, peak_bytes=peak))
    return rows


def sample(
    s: Subject, decoding: DecodeWeights, prompts: Sequence[np.ndarray], tokens: int, number: int
) -> list[list[Sampled]]:
    """Returns a group of completions of `tokens` tokens each for every prompt."""
    request = SamplingRequest(
        prompts=prompts,
        group_size=s.cfg.group_size,
        sampling=config.Sampling(max_completion_tokens=tokens),
        key=jax.random.fold_in(jax.random.key(s.cfg.seed), number),
    )
    return interface.sample(s.sampler, decoding, request)


class Learner:
    """Holds a train state and the jitted functions that update it."""

    def __init__(self, s: Subject, params: nnx.State) -> None:
        cfg, self.mesh, self.cfg = s.cfg, s.mesh, s.cfg
        objective = Objective(
            loss=cfg.loss,
            policy=cfg.policy,
            teacher=cfg.teacher,
            target=cfg.target,
            temperature=config.Sampling().temperature,
            off_policy=False,
        )
        tx = adamw.make(cfg.optim)
        shardings = state.shardings(s.abstract, tx, cfg.teacher, s.mesh)
        self.state = state.initialiser(tx, cfg.teacher, shardings)(params)
        self.train = update.make_train_step(
            s.graphdef, objective, cfg.optim, shardings, cfg.model.remat
        )
        self.after = update.make_after_step(cfg.teacher, shardings)
        self.losses: list[float] = []  # of every update so far

    def update(self, groups: Sequence[Group], contexts: Reprompts, timers: Timers) -> None:
        """Updates the state; times "pack", which includes the copy to the devices, and "update"."""
        cfg = self.cfg
        with timers("pack"):
            samples = batches.samples_of(
                groups, contexts, cfg.loss, cfg.policy, cfg.completion_tokens
            )
            epistemic = [np.zeros(len(c.tokens), bool) for g in groups for c in g.completions]
            packed = batches.pack(groups, contexts, samples, epistemic, cfg.optim, 0)
            placed = hosts.place(packed, update.batch_shardings(packed, self.mesh))
            jax.block_until_ready(placed)
        with timers("update"):
            moved, metrics, record = self.train(self.state, placed)
            self.state = self.after(moved)
            jax.block_until_ready((self.state, metrics, record))
        self.losses.append(float(metrics["loss/total"]))


def _row(s: Subject, phase: str, prompts: int, times: Timing, **fields: object) -> BenchRow:
    sequences = prompts * s.cfg.group_size
    tokens = sequences * s.cfg.completion_tokens
    size = {"sequences": sequences, "tokens": tokens} | fields
    return BenchRow(phase=phase, timing=times, **size)  # type: ignore[arg-type]


def _rollout_rows(
    s: Subject, prompts: int, times: dict[str, Timing], first: Timing, peak: int | None
) -> list[BenchRow]:
    """Returns the rows of prefill (it draws one token), decode (the other tokens), and both."""
    cfg, n = s.cfg, prompts * s.cfg.group_size
    steps = cfg.completion_tokens - 1
    contexts = [cfg.prompt_tokens] * n
    prefill = flops.forward(s.model, contexts[:prompts])
    decode = flops.forward(s.model, [c + steps for c in contexts], contexts)
    ends = flops.head(n * steps, s.model.embed, s.model.vocab_size)
    read = flops.decode_bytes(s.model, contexts, steps, shards=meshes.batch_shards(s.mesh))
    rest = times["time/sample_s"].less(first.median)
    whole = timing.added(times["time/weights_s"], times["time/sample_s"])
    return [
        _row(s, "prefill", prompts, first, tokens=None, compiles=False, flops=prefill),
        _row(
            s, "decode", prompts, rest,
            tokens=n * steps, steps=steps, compiles=False, flops=decode + ends, bytes=read,
        ),
        _row(s, "rollout", prompts, whole, peak_bytes=peak),
    ]  # fmt: skip


def _update_rows(
    s: Subject,
    prompts: int,
    times: dict[str, Timing],
    peak: int | None,
    losses: tuple[float, ...],
) -> list[BenchRow]:
    """Returns the rows of packing and update."""
    cfg, n = s.cfg, prompts * s.cfg.group_size
    distils = cfg.loss.distillation > 0
    read = len(targets.contexts(cfg.target)) if distils else 0
    teachers = read + (read > 0 and cfg.teacher.kind == "trust_region")
    contexts, completions = [cfg.prompt_tokens] * n, [cfg.completion_tokens] * n
    needed = flops.update(
        s.model, contexts, [cfg.reprompt_tokens] * n, completions, teachers=teachers
    )
    again = flops.recomputed(s.model, contexts, completions)
    return [
        _row(s, "pack", prompts, times["time/pack_s"], compiles=False),
        _row(
            s, "update", prompts, times["time/update_s"],
            flops=needed, recomputed=again, peak_bytes=peak, losses=losses,
        ),
    ]  # fmt: skip
