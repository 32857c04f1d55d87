"""Requests to a vLLM server: the OpenAI completions endpoint with fields of vLLM.

The server must return token ids. Newer servers do so by `return_token_ids`, older ones by
`return_tokens_as_token_ids`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel, Field

from sdjax.config import Sampling
from sdjax.errors import UserError
from sdjax.rollout.server.http import Client
from sdjax.rollout.server.reply import LogProb, Reply, TokenId

HONEST = "start vLLM with --logprobs-mode processed_logprobs"
DEV_MODE = "start vLLM (seen: 0.32) with VLLM_SERVER_DEV_MODE=1, or it loads no weights"
PREFIX = "token_id:"


class _Served(BaseModel):
    id: str


class _Models(BaseModel):
    data: list[_Served]


class _LogProbs(BaseModel):
    tokens: list[Annotated[str, Field(pattern=rf"^{PREFIX}[0-9]{{1,9}}$")]] = []
    token_logprobs: list[LogProb]


class _Choice(BaseModel):
    token_ids: list[TokenId] | None = None
    logprobs: _LogProbs
    finish_reason: str | None


class _Completions(BaseModel):
    choices: list[_Choice]


class _Reset(BaseModel):
    success: bool = True


async def model_name(client: Client) -> str:
    """Returns the name under which the server serves its model."""
    listed = await client.get(
        "/v1/models", _Models, remedy="is it a vLLM server? see server.engine"
    )
    if not listed.data:
        raise UserError(f"{client.base}/v1/models: lists no model: set server.model")
    return listed.data[0].id


async def draw(
    client: Client,
    model: str,
    prompt: Sequence[int],
    seeds: Sequence[int],
    sampling: Sampling,
    stop_ids: Sequence[int],
) -> list[Reply]:
    """Returns one completion of the prompt per seed.

    vLLM takes one seed per request and adds the completion's index to it, so only the first seed
    is sent.

    Args:
        client: Sends the request.
        model: The name that `model_name` returned.
        prompt: Token ids.
        seeds: One number in [0, 2^31) per completion.
        sampling: Temperature, top-p, top-k and the limit of tokens.
        stop_ids: The tokens that end a completion.
    """
    # Greedy completions of a prompt are all the same, and vLLM refuses to draw more than one.
    n = 1 if sampling.temperature == 0 else len(seeds)
    body = {
        "model": model,
        "prompt": list(prompt),
        "n": n,
        "seed": seeds[0],
        "max_tokens": sampling.max_completion_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k or -1,
        # Send these values, because the defaults are those of the model's generation_config.json.
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "stop_token_ids": list(stop_ids),
        "logprobs": 0,
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
    }
    answer = await client.post(
        "/v1/completions", body, _Completions, remedy="does the server fit the config?"
    )
    return [_reply(choice) for choice in answer.choices] * (len(seeds) // n)


def _reply(choice: _Choice) -> Reply:
    ids = choice.token_ids
    if ids is None:
        ids = [int(token.removeprefix(PREFIX)) for token in choice.logprobs.tokens]
    return Reply(
        tokens=ids, logprobs=choice.logprobs.token_logprobs, finish=str(choice.finish_reason)
    )


async def load(client: Client, folder: str) -> None:
    """Makes the server read its weights from a Hugging Face folder."""
    body = {"method": "reload_weights", "kwargs": {"weights_path": folder}}
    await client.post("/collective_rpc", body, Any, remedy=DEV_MODE)
    # The prefix cache holds keys and values of the old weights.
    answer = await client.post("/reset_prefix_cache", {}, _Reset | None, remedy=DEV_MODE)
    if answer is not None and not answer.success:
        raise UserError(
            f"{client.base}/reset_prefix_cache: refused: the server has other requests running; "
            "start another server for the training"
        )
