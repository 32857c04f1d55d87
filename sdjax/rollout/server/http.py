"""Sends JSON over HTTP to a server that may be busy, restarting or gone."""

from __future__ import annotations

import os
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import urllib3
from urllib3.exceptions import HTTPError, ReadTimeoutError

from sdjax.config import Server
from sdjax.errors import UserError

CONNECT_S = 10.0
BUSY = (429, 500, 502, 503, 504)


@dataclass(frozen=True, kw_only=True)
class Reply:
    """One completion as a server returned it, not checked yet."""

    tokens: Any  # list[int], or None where the server left them out
    logprobs: Any  # list[float], or None where the server left them out
    finish: str  # in the server's words


class Retry(urllib3.Retry):
    """Retries after a refused or broken connection and after BUSY, but not after a timeout.

    After a timeout of minutes, a retry would delay the run by as many minutes more.
    """

    def increment(
        self,
        method: str | None = None,
        url: str | None = None,
        response: urllib3.BaseHTTPResponse | None = None,
        error: Exception | None = None,
        _pool: urllib3.connectionpool.ConnectionPool | None = None,
        _stacktrace: TracebackType | None = None,
    ) -> Retry:
        """Returns the retries that are left; raises the last error if none is left.

        The arguments are those of urllib3.Retry.increment.
        """
        if isinstance(error, ReadTimeoutError):
            raise error
        return super().increment(method, url, response, error, _pool, _stacktrace)


class Client:
    """Sends requests to one server, from up to `cfg.concurrency` threads."""

    def __init__(self, cfg: Server) -> None:
        assert cfg.url is not None
        self.cfg, self.base = cfg, cfg.url.rstrip("/")
        retries = Retry(
            total=cfg.retries,
            allowed_methods=None,  # all, because these POST requests can be repeated
            status_forcelist=BUSY,
            backoff_factor=0.5,
            backoff_max=30,
            raise_on_status=False,
            respect_retry_after_header=False,  # a server may request a wait of hours
        )
        self.pool = urllib3.PoolManager(
            maxsize=cfg.concurrency,
            retries=retries,
            timeout=urllib3.Timeout(connect=CONNECT_S, read=cfg.timeout_s),
            headers=_authorization(cfg.key_variable),
        )

    def get(self, path: str, *, remedy: str) -> Any:
        """Returns the server's JSON answer; None for an empty answer.

        Raises UserError, one line with the address, for an error or no answer. `remedy` says what
        to do about a refused request.
        """
        return self._ask("GET", path, None, remedy)

    def post(self, path: str, body: dict[str, Any], *, remedy: str) -> Any:
        """Returns the server's answer to `body`, sent as JSON. The rest is as in `get`."""
        return self._ask("POST", path, body, remedy)

    def _ask(self, method: str, path: str, body: dict[str, Any] | None, remedy: str) -> Any:
        url = self.base + path
        try:
            # Send no body with a GET: some servers refuse one, and urllib3 would send None as JSON.
            answer = self.pool.request(method, url, **({} if body is None else {"json": body}))
        except ReadTimeoutError:
            raise UserError(
                f"{url}: no answer in {self.cfg.timeout_s:g} s: look at the server, or raise "
                "server.timeout_s"
            ) from None
        except HTTPError as error:
            raise UserError(
                f"{url}: not reached in {self.cfg.retries + 1} tries ({_reason(error)}): start "
                "the server, or correct server.url"
            ) from None
        if answer.status >= 400:
            raise UserError(f"{url}: HTTP {answer.status}: {_message(answer)}: {remedy}")
        try:
            return answer.json() if answer.data else None
        except ValueError:
            text = _short(answer.data.decode(errors="replace"))
            raise UserError(f"{url}: answered no JSON but {text!r}: correct server.url") from None


def _authorization(variable: str | None) -> dict[str, str]:
    if variable is None:
        return {}
    if not os.environ.get(variable):
        raise UserError(f"server.key_variable is {variable!r}: no such variable is set; export it")
    return {"Authorization": f"Bearer {os.environ[variable]}"}


def _reason(error: HTTPError) -> str:
    """Returns why a connection failed, without urllib3's object names and repetitions."""
    cause = getattr(error, "reason", None) or error
    return _short(str(cause).rsplit(": ", 1)[-1])


def _message(answer: urllib3.BaseHTTPResponse) -> str:
    """Returns the server's message about an error."""
    text = answer.data.decode(errors="replace")
    try:
        fields = answer.json()
    except ValueError:
        return _short(text)
    if isinstance(fields, dict) and isinstance(fields.get("error"), dict):
        fields = fields["error"]
    if isinstance(fields, dict):
        text = str(fields.get("message") or fields.get("detail") or fields.get("error") or text)
    return _short(text)


def _short(text: str, longest: int = 300) -> str:
    line = " ".join(text.split())
    return line if len(line) <= longest else line[:longest] + "..."
