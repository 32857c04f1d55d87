"""Requests to a vLLM server: the OpenAI completions endpoint with fields of vLLM.

The server must return token ids. Newer servers do so by `return_token_ids`, older ones by
`return_tokens_as_token_ids`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sdjax.config import Sampling
from sdjax.errors import UserError
from sdjax.rollout.server.http import Client, Reply

HONEST = "start vLLM with --logprobs-mode processed_logprobs"
DEV_MODE = "start vLLM (seen: 0.32) with VLLM_SERVER_DEV_MODE=1, or it loads no weights"
PREFIX = "token_id:"


def model_name(client: Client) -> str:
    """Returns the name under which the server serves its model."""
    listed = client.get("/v1/models", remedy="is it a vLLM server? see server.engine")
    try:
        return str(listed["data"][0]["id"])
    except (KeyError, IndexError, TypeError):
        raise UserError(f"{client.base}/v1/models: lists no model: set server.model") from None


def draw(
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
    answer = client.post("/v1/completions", body, remedy="does the server fit the config?")
    choices = answer.get("choices") if isinstance(answer, dict) else None
    return [_reply(choice) for choice in choices or ()] * (len(seeds) // n)


def _reply(choice: dict[str, Any]) -> Reply:
    logprobs = choice.get("logprobs") or {}
    ids = choice.get("token_ids")
    if ids is None:
        named = logprobs.get("tokens") or []
        if all(isinstance(t, str) and t.startswith(PREFIX) for t in named):
            ids = [int(t.removeprefix(PREFIX)) for t in named]
    return Reply(
        tokens=ids,
        logprobs=logprobs.get("token_logprobs"),
        finish=str(choice.get("finish_reason")),
    )


def load(client: Client, folder: str) -> None:
    """Makes the server read its weights from a Hugging Face folder."""
    body = {"method": "reload_weights", "kwargs": {"weights_path": folder}}
    client.post("/collective_rpc", body, remedy=DEV_MODE)
    # The prefix cache holds keys and values of the old weights.
    answer = client.post("/reset_prefix_cache", {}, remedy=DEV_MODE)
    if isinstance(answer, dict) and answer.get("success") is False:
        raise UserError(
            f"{client.base}/reset_prefix_cache: refused: the server has other requests running; "
            "start another server for the training"
        )
