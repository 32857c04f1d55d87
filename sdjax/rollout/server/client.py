"""Draws completions on a vLLM or SGLang server, under the contract of LocalSampler.

Log-probabilities must be those of the distribution that was sampled from, after temperature, top-k
and top-p, because training divides by them. vLLM reports the model's own log-probabilities unless
it was started with --logprobs-mode processed_logprobs. SGLang reports them after temperature but
before top-k and top-p. `check` finds out which of them a server reports.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import jax
import numpy as np
from flax import nnx

from sdjax.config import Sampling, Server
from sdjax.errors import UserError
from sdjax.records import Sampled
from sdjax.rollout.interface import SamplingRequest, sample
from sdjax.rollout.server import http, sglang, vllm
from sdjax.rollout.server.http import Client
from sdjax.rollout.server.reply import Reply, Wrong, checked


class Engine(Protocol):
    """The requests that a kind of server understands: the modules vllm and sglang."""

    HONEST: str
    """What makes the server report log-probabilities of the distribution sampled from."""

    async def model_name(self, client: Client) -> str:
        """Returns the name of the model that `draw` must send."""

    async def draw(
        self,
        client: Client,
        model: str,
        prompt: Sequence[int],
        seeds: Sequence[int],
        sampling: Sampling,
        stop_ids: Sequence[int],
    ) -> list[Reply]:
        """Returns one completion of the prompt per seed.

        Args:
            client: Sends the request.
            model: The name that `model_name` returned.
            prompt: Token ids.
            seeds: One number in [0, 2^31) per completion.
            sampling: Temperature, top-p, top-k and the limit of tokens.
            stop_ids: The tokens that end a completion.
        """

    async def load(self, client: Client, folder: str) -> None:
        """Makes the server read its weights from a Hugging Face folder."""


RESTART_S = 10.0
"""A server may have restarted after so many seconds without an answer. It then gets the weights
again before it draws."""
ENGINES: dict[str, Engine] = {"vllm": vllm, "sglang": sglang}


@dataclass(frozen=True, kw_only=True)
class RemoteSampler:
    """Draws completions on a server.

    The server has a sampler of another kind, so its tokens are never those of LocalSampler. The
    same key draws the same tokens only as far as the server repeats itself (SGLang:
    --enable-deterministic-inference).
    """

    client: Client
    engine: Engine
    model: str | None
    concurrency: int
    stop_ids: tuple[int, ...]
    vocab_size: int
    write: Callable[[nnx.State], str] | None
    """Writes params for the server and returns the folder; None: the server keeps its weights."""
    between: Callable[[], None] = lambda: None
    """Called several times per second; an exception in it ends the requests."""

    def weights(self, params: nnx.State) -> None:
        """Gives the params to the server, and again when the server restarts before the next."""
        if self.write is None:
            return
        load = partial(self.engine.load, self.client, self.write(params))
        self.client.restore = None
        http.wait(load(), self.between)
        self.client.restore = load

    def stream(self, weights: None, request: SamplingRequest) -> Iterator[tuple[int, Sampled]]:
        """Yields (i, completion i of the request), group by group, stop tokens included.

        As in LocalSampler, every token of a greedy completion has log-probability 0. Raises
        UserError, one line with the address, where the server fails or its answer is wrong.
        """
        del weights
        assert request.limits is None, "a server takes one limit for all completions"
        sampling, size = request.sampling, request.group_size
        if self.client.restore and time.monotonic() - self.client.answered > RESTART_S:
            http.wait(self.client.restore(), self.between)
        model = self.model
        if model is None:
            model = http.wait(self.engine.model_name(self.client), self.between)
        turns = asyncio.Semaphore(self.concurrency)

        async def group(prompt: np.ndarray, seeds: np.ndarray) -> list[Sampled]:
            async with turns:
                replies = await self.engine.draw(
                    self.client, model, prompt.tolist(), seeds.tolist(), sampling, self.stop_ids
                )
            if len(replies) != size:
                raise UserError(
                    f"{self.client.base}: {len(replies)} completions in place of {size}: "
                    "is it the server of server.engine?"
                )
            return [self._sampled(reply, sampling) for reply in replies]

        seeds = _seeds(request.key, len(request.prompts), size)
        groups = [group(*of_prompt) for of_prompt in zip(request.prompts, seeds, strict=True)]
        for i, completions in http.each(groups, self.between):
            yield from enumerate(completions, i * size)

    def check(self, sampling: Sampling | None) -> None:
        """Raises UserError where the server's answers are wrong; draws 8 tokens.

        `sampling` is that of training, whose log-probabilities must be those of the distribution
        sampled from; None: nothing reads the log-probabilities.
        """
        # After random tokens no model is sure of the next one. Near temperature 0 one token still
        # has almost all the probability. The median allows for prompts with two equally likely
        # tokens.
        prompts = np.random.default_rng(0).integers(self.vocab_size, size=(8, 16))
        cold = Sampling(temperature=0.01, max_completion_tokens=1)
        request = SamplingRequest(
            prompts=list(prompts), group_size=1, sampling=cold, key=jax.random.key(0)
        )
        drawn = sample(self, None, request)
        if sampling is None or _is_plain(sampling):
            return
        at = sampling.SECTION
        if np.median([one.logprobs[0] for [one] in drawn]) < -0.05:
            raise UserError(
                f"{self.client.base}: reports log-probabilities of another distribution than the "
                f"one sampled from ({at}temperature {sampling.temperature:g}, {at}top_p "
                f"{sampling.top_p:g}, {at}top_k {sampling.top_k}): {self.engine.HONEST}"
            )

    def _sampled(self, reply: Reply, sampling: Sampling) -> Sampled:
        """Returns a completion in the form of LocalSampler; raises UserError if it is wrong."""
        made = checked(
            reply,
            longest=sampling.max_completion_tokens,
            stop_ids=self.stop_ids,
            vocab_size=self.vocab_size,
        )
        if isinstance(made, Wrong):
            raise UserError(f"{self.client.base}: {made.what}: {made.remedy}")
        if sampling.temperature == 0:
            return replace(made, logprobs=np.zeros_like(made.logprobs))
        return made


def make(
    cfg: Server,
    *,
    stop_ids: tuple[int, ...],
    vocab_size: int,
    write: Callable[[nnx.State], str],
    between: Callable[[], None] = lambda: None,
) -> RemoteSampler:
    """Returns the sampler for the server of a config section; sends no request yet.

    Args:
        cfg: The config section; its url is not None.
        stop_ids: The tokens that end a completion.
        vocab_size: The model's; larger token ids in an answer are an error.
        write: Writes params into a Hugging Face folder that the server can read; returns its path.
        between: Called several times per second; an exception in it ends the requests.

    Raises UserError where several processes run, because a server samples for one process.
    """
    if jax.process_count() > 1:
        raise UserError(
            f"server.url is {cfg.url!r}: a server samples for one process, and this run has "
            f"{jax.process_count()}: leave it out"
        )
    return RemoteSampler(
        client=Client(cfg),
        engine=ENGINES[cfg.engine],
        model=cfg.model,
        concurrency=cfg.concurrency,
        stop_ids=stop_ids,
        vocab_size=vocab_size,
        write=write if cfg.reload == "folder" else None,
        between=between,
    )


def reach(cfg: Server, between: Callable[[], None] = lambda: None) -> None:
    """Raises UserError if the server of a config section does not answer, if only by a no.

    `between` is as in `make`.
    """
    http.wait(Client(cfg).reach("/health"), between)


def _is_plain(sampling: Sampling) -> bool:
    """Returns whether tokens are drawn from the model's unchanged distribution."""
    return sampling.temperature == 1 and sampling.top_p == 1 and sampling.top_k == 0


def _seeds(key: jax.Array, prompts: int, group_size: int) -> np.ndarray:
    """Returns int64[P, G] seeds in [0, 2^31), from the keys with which LocalSampler would draw."""
    keys = jax.vmap(partial(jax.random.fold_in, key))(jax.numpy.arange(prompts * group_size))
    bits = jax.vmap(partial(jax.random.bits, shape=(), dtype=np.uint32))(keys)
    return (np.asarray(bits).astype(np.int64) >> 1).reshape(prompts, group_size)
