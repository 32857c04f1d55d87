"""Requests to an SGLang server: the endpoint /generate.

The server's OpenAI endpoint returns no token ids and ignores the seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel

from sdjax.config import Sampling
from sdjax.errors import UserError
from sdjax.rollout.server.http import Client
from sdjax.rollout.server.reply import LogProb, Reply, TokenId

HONEST = "start SGLang without SGLANG_RETURN_ORIGINAL_LOGPROB"


class _Finish(BaseModel):
    type: str


class _Meta(BaseModel):
    finish_reason: _Finish | None
    output_token_logprobs: list[tuple[LogProb, TokenId, Any]]
    """[log-probability, token id, text or None] of each token."""


class _Generated(BaseModel):
    meta_info: _Meta


class _Loaded(BaseModel):
    success: bool
    message: str = ""


async def model_name(client: Client) -> str:
    """Returns "", because an SGLang server serves one model and /generate takes no name."""
    del client
    return ""


async def draw(
    client: Client,
    model: str,
    prompt: Sequence[int],
    seeds: Sequence[int],
    sampling: Sampling,
    stop_ids: Sequence[int],
) -> list[Reply]:
    """Returns one completion of the prompt per seed.

    The prompt is sent once per seed, because SGLang gives all n completions of one prompt the same
    seed.

    Args:
        client: Sends the request.
        model: Unused.
        prompt: Token ids.
        seeds: One number in [0, 2^31) per completion.
        sampling: Temperature, top-p, top-k and the limit of tokens.
        stop_ids: The tokens that end a completion.
    """
    del model
    settings = {
        "max_new_tokens": sampling.max_completion_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k or -1,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "stop_token_ids": list(stop_ids),
    }
    body = {
        "input_ids": [list(prompt)] * len(seeds),
        "sampling_params": [settings | {"sampling_seed": seed} for seed in seeds],
        "return_logprob": True,
    }
    answer = await client.post(
        "/generate", body, list[_Generated], remedy="does the server fit the config?"
    )
    return [_reply(one.meta_info) for one in answer]


def _reply(meta: _Meta) -> Reply:
    return Reply(
        tokens=[entry[1] for entry in meta.output_token_logprobs],
        logprobs=[entry[0] for entry in meta.output_token_logprobs],
        finish=str(meta.finish_reason and meta.finish_reason.type),
    )


async def load(client: Client, folder: str) -> None:
    """Makes the server read weights from a Hugging Face folder and empty its cache."""
    path = "/update_weights_from_disk"
    answer = await client.post(
        path, {"model_path": folder}, _Loaded, remedy="can the server read the folder?"
    )
    if not answer.success:
        raise UserError(
            f"{client.base}{path}: not loaded: {answer.message}: can the server read {folder}?"
        )
