"""The reward `judge`: a model behind an OpenAI-compatible server scores completions.

The rule for its answer: after its thinking, the last "Score: N" counts. N is a number from 0 to
`top`; "N/10" counts if the 10 is `top`. Any other answer is a failure.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from functools import partial
from typing import Any

from pydantic import BaseModel

from sdjax import config
from sdjax.errors import UserError
from sdjax.graders.answer.regions import after_thinking
from sdjax.graders.own import Failures, Judgement
from sdjax.graders.workers.grade_batch import Attempt
from sdjax.rollout.server import http

_SCORE = re.compile(
    r"\bscore\b[*_`\s]*[:=][*_`\s]*(-?\d+(?:\.\d+)?)(?:\s*/\s*(\d+(?:\.\d+)?))?(?![\d.]*\d)",
    re.IGNORECASE,
)
KEPT = 2000
"""Characters of the judge's answer that the details of a grade keep."""
_REMEDY = "correct the section task.judge"


class _Message(BaseModel):
    content: str | None = None


class _Choice(BaseModel):
    message: _Message


class _Reply(BaseModel):
    choices: list[_Choice]


class ServedJudge:
    """Asks the server about each completion, `concurrency` at a time."""

    def __init__(self, cfg: config.Judge) -> None:
        """Raises UserError, one line with the address, if the server cannot be reached."""
        self.cfg = cfg
        self._client = http.Client(cfg, "task.judge")
        http.wait(self._client.reach("/models"), lambda: None)

    def __call__(self, attempts: Sequence[Attempt], failures: Failures) -> list[Judgement]:
        """Returns the judgement of each attempt, in order."""
        turns = asyncio.Semaphore(self.cfg.concurrency)

        async def ask(attempt: Attempt) -> str | UserError:
            async with turns:
                try:
                    return await self._answer(attempt)
                except UserError as error:
                    return error

        answers = dict(http.each(list(map(ask, attempts)), lambda: None))
        return [self._judged(a, answers[i], failures) for i, a in enumerate(attempts)]

    async def _answer(self, attempt: Attempt) -> str:
        """Returns the judge's text; raises UserError, one line with the address, without one."""
        body: dict[str, Any] = {
            "model": self.cfg.model,
            "messages": [{"role": "user", "content": written(self.cfg.prompt, attempt)}],
        }
        for name in ("temperature", "max_tokens"):
            value = getattr(self.cfg, name)
            body |= {} if value is None else {name: value}
        reply = await self._client.post("/chat/completions", body, _Reply, remedy=_REMEDY)
        if not reply.choices:
            raise UserError(f"{self._client.base}/chat/completions: no choices: {_REMEDY}")
        return reply.choices[0].message.content or ""

    def _judged(self, attempt: Attempt, answer: str | UserError, failures: Failures) -> Judgement:
        if isinstance(answer, UserError):
            return failures.judgement("judge", attempt, str(answer))
        found = score(answer, self.cfg.top)
        if found is None:
            said = " ".join(answer.split())[-120:]
            why = f"no 'Score: N' with N from 0 to {self.cfg.top:g} ends its answer {said!r}"
            return failures.judgement("judge", attempt, why)
        return Judgement(value=found / self.cfg.top, details={"judge": answer[:KEPT]})


def written(template: str, attempt: Attempt) -> str:
    """Returns the judge's prompt; what is filled in is not searched for further names."""
    known = dict(attempt.columns) | {"answer": attempt.answer, "completion": attempt.text}
    if attempt.messages:
        known["question"] = attempt.messages[-1]["content"]
    return re.sub(r"\{(\w+)\}", partial(_filled, known), template)


def _filled(known: dict[str, Any], match: re.Match[str]) -> str:
    value = known.get(match[1], match[0])
    return value if isinstance(value, str) else str(value)


def score(answer: str, top: float) -> float | None:
    """Returns the last score that a judge's answer states, None without one from 0 to `top`."""
    found = _SCORE.findall(after_thinking(answer))
    if not found:
        return None
    number, of = found[-1]
    value = float(number)
    return value if 0 <= value <= top and (not of or float(of) == top) else None
