"""One completion as a server returned it, before anything about it is believed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Reply:
    """Tokens and their log-probabilities, None where the server left them out."""

    tokens: Any  # list[int] | None
    logprobs: Any  # list[float] | None
    finish: str  # in the server's words
