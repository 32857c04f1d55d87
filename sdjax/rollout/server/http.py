"""Sends JSON over HTTP to a server that may be busy, restarting, gone or wrong.

The requests run in a thread of their own. So a caller sees signals and the errors of other requests
while a server does not answer, and it can drop the requests that are still open.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent import futures
from typing import Any, TypeVar

import aiohttp
import pydantic

from sdjax.config import Judge, Server
from sdjax.errors import UserError

T = TypeVar("T")

CONNECT_S = 10.0
LOOK_S = 0.2
"""Seconds between two calls of `between` while requests are open."""
BUSY = (429, 500, 502, 503, 504)
MOST_PAUSE_S = 10.0
MOST_BYTES = 1 << 28
"""Bytes of the longest answer: 16 completions of 100,000 tokens are some 100 MB."""


class Client:
    """Sends requests to one server. Its methods `get` and `post` run inside `each` or `wait`."""

    def __init__(self, cfg: Server | Judge, section: str = "server") -> None:
        """`section` is the name of the config section, for messages."""
        assert cfg.url is not None
        self.cfg, self.base, self.section = cfg, cfg.url.rstrip("/"), section
        self.restore: Callable[[], Coroutine[Any, Any, None]] | None = None
        """Gives the weights again to a server that was gone; None: the server keeps its own."""
        self.answered = time.monotonic()
        """When the server last answered, in seconds of time.monotonic."""
        self._known = False
        self._key = _key(cfg.key_variable, section)
        self._headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        self._restored = 0
        self._restorer: asyncio.Task | None = None
        self._restoring = asyncio.Lock()

    async def get(self, path: str, schema: Any, *, remedy: str) -> Any:
        """Returns the server's JSON answer, checked against a type that pydantic knows.

        Raises UserError, one line with the address, for an error, a wrong answer or no answer.
        `remedy` says what to do about a refused request.
        """
        return self._checked(await self._ask("GET", path, None, remedy), schema, path)

    async def post(self, path: str, body: dict[str, Any], schema: Any, *, remedy: str) -> Any:
        """Returns the server's answer to `body`, sent as JSON. The rest is as in `get`."""
        return self._checked(await self._ask("POST", path, body, remedy), schema, path)

    async def reach(self, path: str) -> None:
        """Raises UserError, one line with the address, unless the server answers, if by a no."""
        await self._ask("GET", path, None, "", any_status=True)

    async def _ask(
        self, method: str, path: str, body: Any, remedy: str, *, any_status: bool = False
    ) -> bytes:
        """Returns the bytes of an answer. After a try that may succeed later, it tries again.

        A server that has answered before may be restarting. It is waited for as long as for an
        answer.
        """
        url, begun = self.base + path, time.monotonic()
        for tries in itertools.count(1):
            last, seen = tries > self.cfg.retries, self._restored
            try:
                status, data = await self._send(method, url, body)
            except aiohttp.ClientError as error:
                refused = isinstance(error, aiohttp.ClientConnectorError)
                waits = self._known and refused and time.monotonic() - begun < self.cfg.timeout_s
                if last and not waits:
                    count = f"{tries} tries" if tries > 1 else "1 try"
                    raise UserError(
                        f"{url}: not reached in {count} ({_reason(error)}): start the server, or "
                        f"correct {self.section}.url"
                    ) from None
                await _pause(tries)
                if refused:
                    await self._restore(seen)
                continue
            if 200 <= status < 300 or (any_status and status not in BUSY):
                self.answered, self._known = time.monotonic(), True
                return data
            if status not in BUSY or last:
                raise UserError(f"{url}: HTTP {status}: {self._message(data)}: {remedy}")
            await _pause(tries)
        raise AssertionError("the loop has no end")

    async def _send(self, method: str, url: str, body: Any) -> tuple[int, bytes]:
        """Returns the status and the bytes of one try.

        The time limit holds for the whole answer, so a server that sends a byte now and then does
        not extend it. A redirection is an answer, because a key must not follow it.
        """
        limit = aiohttp.ClientTimeout(total=self.cfg.timeout_s, sock_connect=CONNECT_S)
        options: dict[str, Any] = {} if body is None else {"json": body}
        data = bytearray()
        try:
            async with aiohttp.request(
                method, url, headers=self._headers, timeout=limit, allow_redirects=False, **options
            ) as answer:
                async for chunk in answer.content.iter_any():
                    data += chunk
                    if len(data) > MOST_BYTES:
                        raise UserError(
                            f"{url}: an answer of more than {MOST_BYTES >> 20} MiB: correct "
                            f"{self.section}.url"
                        )
                return answer.status, bytes(data)
        except aiohttp.ConnectionTimeoutError:
            raise
        except TimeoutError:
            raise UserError(
                f"{url}: no answer in {self.cfg.timeout_s:g} s: look at the server, or raise "
                f"{self.section}.timeout_s"
            ) from None

    async def _restore(self, seen: int) -> None:
        """Gives the weights to a server that refused a connection, because it may be a new one.

        Of several requests that saw the same server go, only the first does it.
        """
        if self.restore is None or asyncio.current_task() is self._restorer:
            return
        async with self._restoring:
            if self._restored == seen:
                self._restorer = asyncio.current_task()
                try:
                    await self.restore()
                finally:
                    self._restorer = None
                self._restored += 1

    def _checked(self, data: bytes, schema: Any, path: str) -> Any:
        """Returns an answer's content. Numbers must be numbers: neither text nor booleans."""
        url, remedy = self.base + path, f"correct {self.section}.url"
        try:
            return _adapter(schema).validate_json(data or b"null", strict=True)
        except pydantic.ValidationError as error:
            first = error.errors(include_url=False, include_context=False)[0]
        if not data:
            raise UserError(f"{url}: an empty answer: {remedy}")
        if first["type"] == "json_invalid":
            text = self._short(data.decode(errors="replace"))
            raise UserError(f"{url}: answered no JSON but {text!r}: {remedy}")
        at = ".".join(map(str, first["loc"])) or "the answer"
        given = self._short(repr(first["input"]), 60)
        says = "is missing" if first["type"] == "missing" else f"is {given}"
        see = f"see {self.section}.engine" if isinstance(self.cfg, Server) else remedy
        raise UserError(f"{url}: {at} {says}: {first['msg'].lower()}: {see}")

    def _message(self, data: bytes) -> str:
        """Returns the server's message about an error."""
        text = data.decode(errors="replace")
        try:
            fields = json.loads(text)
        except (ValueError, RecursionError):
            return self._short(text)
        if isinstance(fields, dict) and isinstance(fields.get("error"), dict):
            fields = fields["error"]
        if isinstance(fields, dict):
            text = str(fields.get("message") or fields.get("detail") or fields.get("error") or text)
        return self._short(text)

    def _short(self, text: str, longest: int = 300) -> str:
        """Returns the beginning of a text on one line, without the key."""
        line = " ".join((text.replace(self._key, "***") if self._key else text).split())
        return line if len(line) <= longest else line[:longest] + "..."


def each(
    requests: Sequence[Coroutine[Any, Any, T]], between: Callable[[], None]
) -> Iterator[tuple[int, T]]:
    """Yields (i, result of requests[i]) as each ends, and calls `between` every LOOK_S seconds.

    What `between` or a request raises ends the others at once.
    """
    loop = _loop()
    pending = {asyncio.run_coroutine_threadsafe(one, loop): i for i, one in enumerate(requests)}
    try:
        while pending:
            done, _ = futures.wait(pending, LOOK_S, return_when=futures.FIRST_COMPLETED)
            between()
            for future in done:
                yield pending.pop(future), future.result()
    finally:
        for future in pending:
            future.cancel()


def wait(request: Coroutine[Any, Any, T], between: Callable[[], None]) -> T:
    """Returns the result of one request, and calls `between` as `each` does."""
    [(_, result)] = each([request], between)
    return result


@functools.cache
def _loop() -> asyncio.AbstractEventLoop:
    """Returns the event loop of the thread that sends requests; the process's end ends it."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="requests", daemon=True).start()
    return loop


async def _pause(tries: int) -> None:
    """Waits before the next try: 0 s after the first one, then 1 s, 2 s, 4 s and so on."""
    await asyncio.sleep(0.0 if tries == 1 else min(MOST_PAUSE_S, 0.5 * 2.0 ** (tries - 1)))


def _key(variable: str | None, section: str) -> str:
    if variable is None:
        return ""
    if not os.environ.get(variable):
        raise UserError(
            f"{section}.key_variable is {variable!r}: no such variable is set; export it"
        )
    return os.environ[variable]


@functools.cache
def _adapter(schema: Any) -> pydantic.TypeAdapter:
    return pydantic.TypeAdapter(schema)


def _reason(error: aiohttp.ClientError) -> str:
    """Returns in plain words why a request failed."""
    match error:
        case aiohttp.ClientConnectorCertificateError() | aiohttp.ClientConnectorSSLError():
            return "its certificate is not accepted"
        case aiohttp.ConnectionTimeoutError():
            return f"no connection in {CONNECT_S:g} s"
        case aiohttp.ClientConnectorError() if isinstance(error.os_error, socket.gaierror):
            return "no such host"
        case aiohttp.ClientConnectorError():
            number = error.os_error.errno
            return os.strerror(number).lower() if number else "no connection"
        case aiohttp.ClientPayloadError():
            return "the answer ended early or is damaged"
        case aiohttp.ServerDisconnectedError() | aiohttp.ClientOSError():
            return "the connection broke before an answer"
        case aiohttp.InvalidURL():
            return "no valid address"
    return "the answer is not HTTP"
