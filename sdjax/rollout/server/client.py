"""Completions from a vLLM or SGLang server, with the contract of the sampler here.

Log-probabilities must be those of the distribution sampled from, after temperature, top-k and
top-p: training divides by them. vLLM reports the model's own unless it was started with
--logprobs-mode processed_logprobs; SGLang reports them after temperature but before top-k and
top-p. `check` finds out which.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import jax
import numpy as np
from flax import nnx

from sdjax.config import Sampling, Server
from sdjax.errors import UserError
from sdjax.records import Finish
from sdjax.rollout.interface import Sampled, in_groups
from sdjax.rollout.server import sglang, vllm
from sdjax.rollout.server.http import Client
from sdjax.rollout.server.reply import Reply


class Engine(Protocol):
    """How a kind of server is asked: the modules vllm and sglang."""

    HONEST: str
    """What makes it report log-probabilities of the distribution sampled from."""

    def model_name(self, client: Client) -> str:
        """Returns what `draw` calls the model."""

    def draw(
        self,
        client: Client,
        model: str,
        prompt: Sequence[int],
        seeds: Sequence[int],
        sampling: Sampling,
        stop_ids: Sequence[int],
    ) -> list[Reply]:
        """Returns a completion of the prompt for each seed."""

    def load(self, client: Client, folder: str) -> None:
        """Makes the server read its weights from a Hugging Face folder."""


ENGINES: dict[str, Engine] = {"vllm": vllm, "sglang": sglang}


@dataclass(frozen=True, kw_only=True)
class RemoteSampler:
    """Draws completions on a server.

    The server's sampler is its own: with the same key it draws the same tokens again only as far
    as the server itself repeats (SGLang: --enable-deterministic-inference), and never those of
    the sampler here.
    """

    client: Client
    engine: Engine
    model: str | None
    concurrency: int
    stop_ids: tuple[int, ...]
    vocab_size: int
    write: Callable[[nnx.State], str] | None
    """Writes params for the server and returns the folder; None: it keeps the weights it has."""
    between: Callable[[], None] = lambda: None
    """Called as prompts are done; what it raises ends the sampling."""

    def weights(self, params: nnx.State) -> None:
        """Gives the params to the server."""
        if self.write is not None:
            self.engine.load(self.client, self.write(params))

    def sample(
        self,
        weights: None,
        prompts: Sequence[np.ndarray],
        *,
        group_size: int,
        sampling: Sampling,
        key: jax.Array,
    ) -> list[list[Sampled]]:
        """Returns `group_size` completions of each prompt."""
        ended = self.stream(weights, prompts, group_size=group_size, sampling=sampling, key=key)
        return in_groups(ended, group_size)

    def stream(
        self,
        weights: None,
        prompts: Sequence[np.ndarray],
        *,
        group_size: int,
        sampling: Sampling,
        key: jax.Array,
    ) -> Iterator[tuple[int, Sampled]]:
        """Yields (p * group_size + g, completion g of prompt p), stop token included, by group.

        A completion that was drawn greedily has log-probability 0 throughout, as here. Raises
        UserError, one line with the address, where the server fails or answers something else.
        """
        del weights
        model = self.engine.model_name(self.client) if self.model is None else self.model
        seeds = _seeds(key, len(prompts), group_size)

        def group(prompt: np.ndarray, own: np.ndarray) -> list[Sampled]:
            replies = self.engine.draw(
                self.client, model, prompt.tolist(), own.tolist(), sampling, self.stop_ids
            )
            if len(replies) != group_size:
                raise UserError(
                    f"{self.client.base}: {len(replies)} completions in place of {group_size}: "
                    "is it the server of server.engine?"
                )
            return [self._sampled(reply, sampling) for reply in replies]

        with ThreadPoolExecutor(self.concurrency) as pool:
            asked = {
                pool.submit(group, p, s): i
                for i, (p, s) in enumerate(zip(prompts, seeds, strict=True))
            }
            try:
                for future in as_completed(asked):
                    self.between()
                    first = asked[future] * group_size
                    yield from enumerate(future.result(), first)
            finally:
                # After an error, those not yet sent are not sent.
                pool.shutdown(wait=False, cancel_futures=True)

    def check(self, sampling: Sampling | None) -> None:
        """Raises UserError where the server does not answer as it must; draws 8 tokens.

        `sampling` is that of training, whose log-probabilities must be honest; None: of no use.
        """
        # After tokens that make no sense no model is sure of the next one, but near temperature 0
        # it is drawn almost surely. The median forgives two tokens that are equally likely.
        prompts = np.random.default_rng(0).integers(self.vocab_size, size=(8, 16))
        cold = Sampling(temperature=0.01, max_completion_tokens=1)
        drawn = self.sample(None, list(prompts), group_size=1, sampling=cold, key=jax.random.key(0))
        if sampling is None or _is_plain(sampling):
            return
        if np.median([one.logprobs[0] for [one] in drawn]) < -0.05:
            raise UserError(
                f"{self.client.base}: reports log-probabilities of another distribution than the "
                f"one sampled from (temperature {sampling.temperature:g}, top_p "
                f"{sampling.top_p:g}, top_k {sampling.top_k}): {self.engine.HONEST}"
            )

    def _sampled(self, reply: Reply, sampling: Sampling) -> Sampled:
        """Returns a completion in the form of the sampler here, or says what is wrong with it."""
        if reply.tokens is None:
            raise self._wrong("returns no token ids", "use a vLLM or SGLang that does")
        if reply.logprobs is None or len(reply.logprobs) != len(reply.tokens):
            raise self._wrong(
                "returns no log-probability for each token", "use a vLLM or SGLang that does"
            )
        try:
            tokens = np.array(reply.tokens, np.int32)
            logprobs = np.array(reply.logprobs, np.float32)
        except (TypeError, ValueError, OverflowError):
            raise self._wrong("returns tokens that are no numbers", "see server.engine") from None
        if not len(tokens) or reply.finish not in ("stop", "length"):
            raise self._wrong(
                f"ended a completion with {reply.finish!r} after {len(tokens)} tokens",
                "look at its log",
            )
        if tokens.min() < 0 or tokens.max() >= self.vocab_size or not np.isfinite(logprobs).all():
            raise self._wrong(
                f"returns tokens outside the vocabulary of {self.vocab_size} or log-probabilities "
                "that are not finite",
                "let it serve the model of model.path",
            )
        finish: Finish = "stop" if tokens[-1] in self.stop_ids else "length"
        # A stop token that was left out has no log-probability, so it cannot be put back.
        if finish == "length" and reply.finish == "stop":
            raise self._wrong(
                f"stopped at token {tokens[-1]}, none of the stop tokens {list(self.stop_ids)}",
                "let it serve the model of model.path, and return the stop token",
            )
        if finish == "length" and len(tokens) < sampling.max_completion_tokens:
            raise self._wrong(
                f"cut a completion at {len(tokens)} of {sampling.max_completion_tokens} tokens",
                "raise its longest context",
            )
        if sampling.temperature == 0:
            logprobs = np.zeros_like(logprobs)
        return Sampled(tokens=tokens, logprobs=logprobs, finish=finish)

    def _wrong(self, what: str, remedy: str) -> UserError:
        return UserError(f"{self.client.base}: {what}: {remedy}")


def make(
    cfg: Server,
    *,
    stop_ids: tuple[int, ...],
    vocab_size: int,
    write: Callable[[nnx.State], str],
    between: Callable[[], None] = lambda: None,
) -> RemoteSampler:
    """Returns the sampler that asks the server of a config section; asks it nothing yet.

    `write` puts params into a Hugging Face folder that the server can read and returns its path.
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


def _is_plain(sampling: Sampling) -> bool:
    """Returns whether it leaves the model's distribution as it is."""
    return sampling.temperature == 1 and sampling.top_p == 1 and sampling.top_k == 0


def _seeds(key: jax.Array, prompts: int, group_size: int) -> np.ndarray:
    """Returns int64[P, G] seeds in [0, 2^31), from the same keys as those of the sampler here."""
    keys = jax.vmap(partial(jax.random.fold_in, key))(jax.numpy.arange(prompts * group_size))
    bits = jax.vmap(partial(jax.random.bits, shape=(), dtype=np.uint32))(keys)
    return (np.asarray(bits).astype(np.int64) >> 1).reshape(prompts, group_size)
