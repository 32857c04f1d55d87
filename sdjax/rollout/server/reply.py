"""One completion as a server returns it, and the checks that need nothing but its numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from sdjax.records import Finish, Sampled

TokenId = Annotated[int, Field(ge=0, lt=2**31)]
LogProb = Annotated[float, Field(ge=-1000.0, le=1e-3, allow_inf_nan=False)]
"""A natural logarithm. vLLM writes -9999 for the probability 0, which no sampled token has.
Rounding may put the logarithm of a probability of 1 just above 0."""


@dataclass(frozen=True, kw_only=True)
class Reply:
    """The tokens of one completion, their log-probabilities, and why it ended."""

    tokens: list[int]
    logprobs: list[float]
    finish: str  # in the server's words


@dataclass(frozen=True, kw_only=True)
class Wrong:
    """What is wrong with a reply, and the remedy."""

    what: str
    remedy: str


def checked(
    reply: Reply, *, longest: int, stop_ids: tuple[int, ...], vocab_size: int
) -> Sampled | Wrong:
    """Returns a completion in the form of LocalSampler, or what is wrong with it.

    The arguments are the limit of tokens, the tokens that end a completion and the vocabulary's
    size.
    """
    same_model = "let it serve the model of model.path"
    tokens, logprobs = np.array(reply.tokens, np.int64), np.array(reply.logprobs, np.float32)
    if len(logprobs) != len(tokens):
        what = f"returns {len(logprobs)} log-probabilities for {len(tokens)} tokens"
        return Wrong(what=what, remedy="use a vLLM or SGLang that returns one per token")
    if not len(tokens) or reply.finish not in ("stop", "length"):
        what = f"ended a completion with {reply.finish!r} after {len(tokens)} tokens"
        return Wrong(what=what, remedy="look at its log")
    if tokens.max() >= vocab_size:
        what = f"returns token {tokens.max()}, and the vocabulary has {vocab_size}"
        return Wrong(what=what, remedy=same_model)
    if len(tokens) > longest:
        what = f"returns {len(tokens)} tokens, and the limit is {longest}"
        return Wrong(what=what, remedy="is it the server of server.engine?")
    stops = np.flatnonzero(np.isin(tokens, stop_ids))
    if len(stops) and stops[0] < len(tokens) - 1:
        what = f"goes on after the stop token {tokens[stops[0]]}"
        return Wrong(what=what, remedy="start it without options that ignore stop tokens")
    finish: Finish = "stop" if len(stops) else "length"
    # A stop token that the server left out has no log-probability, so it cannot be restored.
    if finish == "length" and reply.finish == "stop":
        what = f"stopped at token {tokens[-1]}, none of the stop tokens {list(stop_ids)}"
        return Wrong(what=what, remedy=f"{same_model}, and return the stop token")
    if finish == "length" and len(tokens) < longest:
        what = f"cut a completion at {len(tokens)} of {longest} tokens"
        return Wrong(what=what, remedy="raise its longest context")
    return Sampled(
        tokens=tokens.astype(np.int32), logprobs=np.minimum(logprobs, 0.0), finish=finish
    )
