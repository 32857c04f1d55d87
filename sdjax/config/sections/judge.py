"""The section of a judge: a model behind a server that scores completions."""

from __future__ import annotations

import re
from dataclasses import dataclass

from sdjax.config.checks import require, require_finite, require_one

PROMPT = """\
Judge an answer to a question.

Question:
{question}

Answer:
{completion}

Say in a sentence what is right and what is wrong. Then write a line "Score: N", where N is a \
number from 0 (useless) to 10 (perfect)."""


@dataclass(frozen=True, kw_only=True)
class Judge:
    """A model behind an OpenAI-compatible server that scores completions, as the reward `judge`."""

    url: str | None = None
    """Address that OpenAI's clients call base_url, such as http://127.0.0.1:8000/v1."""
    model: str = ""
    """The name under which the server has the model."""
    prompt: str = PROMPT
    """What the judge reads. {question} stands for the last message of the prompt, {completion} for
    the text of the completion, and {answer} or {NAME} for the answer or a column of the row. It
    must ask for a line "Score: N"."""
    top: float = 10.0
    """The best score. The reward is the judge's score divided by it, from 0 to 1."""
    temperature: float | None = 0.0
    """Temperature of the judge; None sends none."""
    max_tokens: int | None = 1024
    """Most tokens of the judge's answer; None sends no limit."""
    key_variable: str | None = None
    """Environment variable that holds the server's API key; None sends no key. The key is never
    printed."""
    timeout_s: float = 120.0
    """Longest wait in seconds for a whole answer, each try apart."""
    retries: int = 5
    """Further tries, with growing pauses, while the server is busy, fails or cannot be reached."""
    concurrency: int = 16
    """Completions that are judged at the same time."""

    def __post_init__(self) -> None:
        require_finite(self, "task.judge.")
        good = self.url is None or re.match(r"https?://[^\s/]", self.url) is not None
        require(good, "task.judge.url", self.url, "must be such as http://127.0.0.1:8000/v1")
        require(
            "{completion}" in self.prompt, "task.judge.prompt", self.prompt, "needs {completion}"
        )
        require(self.top > 0, "task.judge.top", self.top, "must be positive")
        heat = self.temperature
        require(heat is None or heat >= 0, "task.judge.temperature", heat, "must not be negative")
        if self.max_tokens is not None:
            require_one("task.judge.max_tokens", self.max_tokens)
        require_one("task.judge.concurrency", self.concurrency)
        require(self.timeout_s > 0, "task.judge.timeout_s", self.timeout_s, "must be positive")
        require(self.retries >= 0, "task.judge.retries", self.retries, "must not be negative")
