"""Requests to an SGLang server: the endpoint /generate.

The server's OpenAI endpoint returns no token ids and ignores the seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sdjax.config import Sampling
from sdjax.errors import UserError
from sdjax.rollout.server.http import Client, Reply

HONEST = "start SGLang without SGLANG_RETURN_ORIGINAL_LOGPROB"


def model_name(client: Client) -> str:
    """Returns "", because an SGLang server serves one model and /generate takes no name."""
    del client
    return ""


def draw(
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
    answer = client.post("/generate", body, remedy="does the server fit the config?")
    return [_reply(one) for one in answer] if isinstance(answer, list) else []


def _reply(one: dict[str, Any]) -> Reply:
    meta = one.get("meta_info") or {}
    # Entries are [log-probability, token id, text or None].
    entries = meta.get("output_token_logprobs")
    return Reply(
        tokens=one.get("output_ids") if entries is None else [e[1] for e in entries],
        logprobs=None if entries is None else [e[0] for e in entries],
        finish=str((meta.get("finish_reason") or {}).get("type")),
    )


def load(client: Client, folder: str) -> None:
    """Makes the server read weights from a Hugging Face folder and empty its cache."""
    path = "/update_weights_from_disk"
    answer = client.post(path, {"model_path": folder}, remedy="can the server read the folder?")
    if not isinstance(answer, dict) or not answer.get("success"):
        reason = answer.get("message") if isinstance(answer, dict) else answer
        raise UserError(f"{client.base}{path}: not loaded: {reason}: can the server read {folder}?")
