"""`AsyncClient`: the client for asyncio; what it does is the same as what `client.Client` does."""

from __future__ import annotations

import asyncio
import ssl
import time
from contextlib import suppress
from typing import Any, Self, TypeVar

from fairlead.backends.client import TlsOptions, client_headers, tls_context
from fairlead.backends.client_calls import (
    Calls,
    Exchange,
    Failure,
    InferResult,
    Pause,
    Place,
    Steps,
)
from fairlead.backends.client_policy import HedgePolicy, RetryPolicy
from fairlead.backends.http_wire import Response, ResponseReader, WireError
from fairlead.core.ports import Feeds

__all__ = ["AsyncClient"]

T = TypeVar("T")
_MOST_IDLE = 256
_IDLE_S = 60.0
_PIECE = 1 << 16


class AsyncClient:
    """Asks one model from one event loop, as many requests at a time as there are.

    ```python
    async with AsyncClient("http://127.0.0.1:8080", "digits") as client:
        results = await asyncio.gather(*(client.infer({"x": row}) for row in rows))
    ```
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        api_key: str | None = None,
        token: str | None = None,
        timeout_s: float = 30.0,
        retry: RetryPolicy | None = None,
        hedge: HedgePolicy | None = None,
        tls: TlsOptions | None = None,
    ) -> None:
        """Remember where the server is; see `Client`.

        Raises:
            UsageError: It is no URL of a server, or a certificate cannot be read.
        """
        place = Place.parse(url)
        self._calls = Calls(
            place,
            model,
            headers=client_headers(api_key, token),
            timeout_s=timeout_s,
            retry=retry or RetryPolicy(),
            hedge=hedge,
        )
        self._tls = tls_context(tls or TlsOptions()) if place.is_tls else None
        self._idle: list[_Connection] = []

    @property
    def url(self) -> str:
        """Base URL of the server."""
        return self._calls.place.url

    @property
    def model(self) -> str:
        """Name of the model."""
        return self._calls.model

    async def infer(
        self,
        feeds: Feeds,
        *,
        id: str | None = None,  # noqa: A002
        version: str | None = None,
        timeout_s: float | None = None,
        is_probe: bool = False,
        is_binary: bool = True,
    ) -> InferResult:
        """Run the model on one batch; see `Client.infer`."""
        return await self._run(
            self._calls.infer(
                feeds, id=id, version=version, timeout_s=timeout_s, is_probe=is_probe,
                is_binary=is_binary,
            )
        )  # fmt: skip

    async def predict(
        self,
        rows: list[dict[str, Any]],
        *,
        id: str | None = None,  # noqa: A002
        timeout_s: float | None = None,
    ) -> dict[str, Any]:
        """Ask the plain JSON endpoint for predictions of rows; see `Client.predict`."""
        return await self._run(self._calls.predict(rows, id=id, timeout_s=timeout_s))

    async def ready(self) -> bool:
        """Return whether the server answers and is ready for inference."""
        return await self._run(self._calls.ready())

    async def metadata(self) -> dict[str, Any]:
        """Return the model's metadata; see `Client.metadata`."""
        return await self._run(self._calls.metadata())

    async def server_metadata(self) -> dict[str, Any]:
        """Return what the server says of itself; see `Client.server_metadata`."""
        return await self._run(self._calls.server_metadata())

    async def statistics(self) -> dict[str, Any]:
        """Return the model's statistics; see `Client.statistics`."""
        return await self._run(self._calls.statistics())

    async def close(self) -> None:
        """Close every connection; the client may be used again."""
        idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()
            with suppress(OSError, ssl.SSLError):
                await connection.writer.wait_closed()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *details: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r}, {self.model!r})"

    async def _run(self, steps: Steps[T]) -> T:
        """Do what a call asks for, step by step."""
        heard: Response | Failure | None = None
        try:
            while True:
                step = steps.send(heard)
                if isinstance(step, Pause):
                    await asyncio.sleep(step.seconds)
                    heard = None
                else:
                    heard = await self._exchange(step)
        except StopIteration as end:
            result: T = end.value
            return result

    async def _exchange(self, step: Exchange) -> Response | Failure:
        """Send a request, and a second one where the first is slow; the first answer counts."""
        running = {asyncio.ensure_future(self._send(step.data))}
        waits = [step.deadline]
        if step.hedge_after_s is not None:
            waits.insert(0, min(step.deadline, time.monotonic() + step.hedge_after_s))
        problem: Failure | None = None
        try:
            while running:
                ended, running = await asyncio.wait(
                    running,
                    timeout=max(0.0, waits[0] - time.monotonic()),
                    return_when=asyncio.FIRST_COMPLETED,
                )
                for heard in [task.result() for task in ended]:
                    if isinstance(heard, Response):
                        return heard
                    problem = heard
                if not ended and len(waits) == 1:
                    return Failure(TimeoutError("no answer in time"))
                if not ended and waits.pop(0) and step.may_hedge():
                    running.add(asyncio.ensure_future(self._send(step.data)))
            return problem or Failure(ConnectionResetError("no connection was left"))
        finally:
            # The loser's connection is closed with it: the server sees that nobody waits.
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def _send(self, data: bytes) -> Response | Failure:
        connection = self._kept()
        if connection is not None:
            heard = await self._send_on(connection, data)
            was_dead = isinstance(heard, Failure) and not connection.reader.has_begun
            if not was_dead:
                return heard
        place = self._calls.place
        try:
            streams = await asyncio.open_connection(place.host, place.port, ssl=self._tls)
        except OSError as exc:
            return Failure(exc, is_refused=True)
        return await self._send_on(_Connection(*streams), data)

    async def _send_on(self, connection: _Connection, data: bytes) -> Response | Failure:
        answer: Response | None = None
        try:
            connection.writer.write(data)
            while answer is None:
                piece = await connection.stream.read(_PIECE)
                answer = connection.reader.feed(piece) if piece else connection.reader.end()
                if answer is None and not piece:
                    raise ConnectionResetError("the server closed the connection")
        except (OSError, WireError) as exc:
            return Failure(exc)
        finally:
            if answer is None or not answer.is_reusable or len(self._idle) >= _MOST_IDLE:
                connection.close()
        if answer.is_reusable and not connection.writer.is_closing():
            connection.rest()
            self._idle.append(connection)
        return answer

    def _kept(self) -> _Connection | None:
        """Return a kept connection that the server has not closed, or None."""
        while self._idle:
            connection = self._idle.pop()
            if connection.is_fresh():
                return connection
            connection.close()
        return None


class _Connection:
    """One connection, and the answer that is arriving on it."""

    def __init__(self, stream: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.stream = stream
        self.writer = writer
        self.reader = ResponseReader()
        self._idle_since = 0.0

    def rest(self) -> None:
        """Get ready for the next answer."""
        self.reader = ResponseReader()
        self._idle_since = time.monotonic()

    def is_fresh(self) -> bool:
        """Say whether it may take another request."""
        is_young = time.monotonic() - self._idle_since < _IDLE_S
        return is_young and not self.stream.at_eof() and not self.writer.is_closing()

    def close(self) -> None:
        """Close it."""
        self.writer.close()
