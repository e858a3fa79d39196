"""A client of any server of the Open Inference Protocol (V2): `Client` waits for its answers.

Needs nothing but the standard library and numpy. Connections are kept and shared by threads;
`async_client.AsyncClient` is the same for asyncio.
"""

from __future__ import annotations

import select
import selectors
import socket
import ssl
import threading
import time
from pathlib import Path
from typing import Any, Self, TypeVar

from fairlead.backends.certificates import trusting_context
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
from fairlead.core.errors import UsageError
from fairlead.core.ports import Feeds
from fairlead.core.values import Value

__all__ = ["Client", "TlsOptions", "client_headers", "tls_context"]

T = TypeVar("T")
_MOST_IDLE = 64
_IDLE_S = 60.0
_PIECE = 1 << 16


class TlsOptions(Value):
    """How a client and a server make sure of one another."""

    authorities: Path | None = None
    """PEM file of the authorities to trust; None trusts those of this machine."""
    pinned: Path | None = None
    """PEM file of the one server certificate to trust, whatever names it has."""
    certificate: Path | None = None
    """PEM file that shows the server who asks."""
    key: Path | None = None
    """PEM file of the key of `certificate`, when it is not in the same file."""


def tls_context(options: TlsOptions) -> ssl.SSLContext:
    """Return a context that trusts what the options say.

    Raises:
        UsageError: A file cannot be read.
        EndpointError: The pinned certificate cannot be read.
    """
    try:
        if options.pinned is not None:
            context = trusting_context(str(options.pinned))
        else:
            context = ssl.create_default_context(cafile=options.authorities)
        if options.certificate is not None:
            context.load_cert_chain(options.certificate, options.key)
    except (OSError, ssl.SSLError) as exc:
        raise UsageError(f"the certificates cannot be read: {exc}", hint="give PEM files") from exc
    return context


def client_headers(api_key: str | None, token: str | None) -> dict[str, str]:
    """Return the headers that say who asks."""
    headers = {} if api_key is None else {"X-API-Key": api_key}
    return headers if token is None else {**headers, "Authorization": f"Bearer {token}"}


class Client:
    """Asks one model; safe to use from several threads.

    ```python
    with Client("http://127.0.0.1:8080", "digits", hedge=HedgePolicy()) as client:
        result = client.infer({"x": rows}, timeout_s=0.2)
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
        """Remember where the server is; nothing is sent yet.

        Args:
            url: Base URL, for example `http://127.0.0.1:8080`.
            model: Name of the model.
            api_key: Key of the caller, sent as `X-API-Key`.
            token: Token of the caller, sent as `Authorization: Bearer`.
            timeout_s: Time for a whole call, retries and pauses included, in seconds.
            retry: When a request is sent again; None takes the defaults.
            hedge: When a second request is sent for a slow one; None never.
            tls: What to trust and to show where the URL is `https`.

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
        self._pool = _Pool(place, tls_context(tls or TlsOptions()) if place.is_tls else None)

    @property
    def url(self) -> str:
        """Base URL of the server."""
        return self._calls.place.url

    @property
    def model(self) -> str:
        """Name of the model."""
        return self._calls.model

    def infer(
        self,
        feeds: Feeds,
        *,
        id: str | None = None,  # noqa: A002
        version: str | None = None,
        timeout_s: float | None = None,
        is_probe: bool = False,
        is_binary: bool = True,
    ) -> InferResult:
        """Run the model on one batch.

        Args:
            feeds: One array per input, first dimension the rows.
            id: Id of the request; the server makes one up when None.
            version: Ask for this version instead of leaving the choice to the traffic split.
            timeout_s: Time for this call, in seconds; the server is told how much is left.
            is_probe: Whether the request only tests the server; it is measured but not logged.
            is_binary: Whether tensors go as bytes; else as JSON, which every server takes.

        Raises:
            DataError: The server found the input wrong.
            NotFoundError: It has no such model or version.
            AccessError: It does not know the caller, or the caller may not, or not so often.
            OverloadedError: It refused the request to protect itself.
            DeadlineError: The time was up.
            EndpointError: It cannot be reached, or failed.
        """
        return self._run(
            self._calls.infer(
                feeds, id=id, version=version, timeout_s=timeout_s, is_probe=is_probe,
                is_binary=is_binary,
            )
        )  # fmt: skip

    def predict(
        self,
        rows: list[dict[str, Any]],
        *,
        id: str | None = None,  # noqa: A002
        timeout_s: float | None = None,
    ) -> dict[str, Any]:
        """Ask the plain JSON endpoint for predictions of rows given as column → value.

        Raises:
            DataError: A row does not fit the model.
            AccessError: The server does not know the caller, or the caller may not.
            OverloadedError: The server refused the request to protect itself.
            DeadlineError: The time was up.
            EndpointError: It cannot be reached, or failed.
        """
        return self._run(self._calls.predict(rows, id=id, timeout_s=timeout_s))

    def ready(self) -> bool:
        """Return whether the server answers and is ready for inference."""
        return self._run(self._calls.ready())

    def metadata(self) -> dict[str, Any]:
        """Return the model's metadata: versions, inputs and outputs.

        Raises:
            NotFoundError: The server has no such model.
            EndpointError: The server cannot be reached or refuses.
        """
        return self._run(self._calls.metadata())

    def server_metadata(self) -> dict[str, Any]:
        """Return what the server says of itself: name, version, extensions of the protocol.

        Raises:
            EndpointError: The server cannot be reached or refuses.
        """
        return self._run(self._calls.server_metadata())

    def statistics(self) -> dict[str, Any]:
        """Return the model's statistics, as the protocol's statistics extension gives them.

        Raises:
            NotFoundError: The server does not have the extension.
            EndpointError: The server cannot be reached or refuses.
        """
        return self._run(self._calls.statistics())

    def close(self) -> None:
        """Close every connection; the client may be used again."""
        self._pool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *details: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r}, {self.model!r})"

    def _run(self, steps: Steps[T]) -> T:
        """Do what a call asks for, step by step."""
        heard: Response | Failure | None = None
        try:
            while True:
                step = steps.send(heard)
                if isinstance(step, Pause):
                    time.sleep(step.seconds)
                    heard = None
                else:
                    heard = _exchange(self._pool, step)
        except StopIteration as end:
            result: T = end.value
            return result


class _Connection:
    """One connection, and the answer that is arriving on it."""

    def __init__(self, link: socket.socket) -> None:
        self.link = link
        self.reader = ResponseReader()
        self.is_kept = False
        self.idle_since = 0.0

    def receive(self) -> Response | None:
        """Read what has arrived; returns the answer once it is whole."""
        while True:
            data = self.link.recv(_PIECE)
            answer = self.reader.feed(data) if data else self.reader.end()
            if answer is None and not data:
                raise ConnectionResetError("the server closed the connection")
            # What TLS has decrypted already, no selector tells of.
            if answer is not None or not _pending(self.link):
                return answer

    def close(self) -> None:
        """Close it; the server sees that nobody waits any more."""
        self.link.close()


def _pending(link: socket.socket) -> bool:
    return isinstance(link, ssl.SSLSocket) and link.pending() > 0


class _Pool:
    """Connections to one server that wait for their next request."""

    def __init__(self, place: Place, tls: ssl.SSLContext | None) -> None:
        self._place = place
        self._tls = tls
        self._idle: list[_Connection] = []
        self._lock = threading.Lock()

    def take(self) -> _Connection | None:
        """Return a kept connection that the server has not closed, or None."""
        while True:
            with self._lock:
                if not self._idle:
                    return None
                connection = self._idle.pop()
            is_old = time.monotonic() - connection.idle_since > _IDLE_S
            # Bytes that nobody asked for, or the end: either way it is of no more use.
            if not is_old and not select.select([connection.link], [], [], 0)[0]:
                return connection
            connection.close()

    def open(self, timeout_s: float) -> _Connection:
        """Connect.

        Raises:
            OSError: The server cannot be reached.
        """
        place = self._place
        link = socket.create_connection((place.host, place.port), timeout_s)
        try:
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._tls is not None:
                link = self._tls.wrap_socket(link, server_hostname=place.host)
        except BaseException:
            link.close()
            raise
        return _Connection(link)

    def keep(self, connection: _Connection) -> None:
        """Keep a connection for the next request."""
        connection.reader = ResponseReader()
        connection.is_kept = True
        connection.idle_since = time.monotonic()
        with self._lock:
            if len(self._idle) < _MOST_IDLE:
                self._idle.append(connection)
                return
        connection.close()

    def close(self) -> None:
        """Close all that wait."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()


class _Race:
    """The requests under way for one exchange: one, or two of which the first answer counts."""

    def __init__(self, pool: _Pool, step: Exchange) -> None:
        self._pool = pool
        self._step = step
        self.running: list[_Connection] = []
        self.problem: Failure | None = None

    @property
    def left_s(self) -> float:
        """Seconds until nobody waits any more."""
        return self._step.deadline - time.monotonic()

    def start(self, *, must_be_new: bool = False) -> None:
        """Send the request once more; what goes wrong is remembered as the problem."""
        connection = None if must_be_new else self._pool.take()
        try:
            if connection is None:
                connection = self._pool.open(max(0.001, self.left_s))
        except OSError as exc:
            self.problem = Failure(exc, is_refused=True)
            return
        try:
            connection.link.settimeout(max(0.001, self.left_s))
            connection.link.sendall(self._step.data)
        except OSError as exc:
            self.lose(connection, exc)
            return
        self.running.append(connection)

    def lose(self, connection: _Connection, error: Exception) -> None:
        """Give a connection up; a kept one that was dead all the time is replaced."""
        connection.close()
        if connection in self.running:
            self.running.remove(connection)
        was_dead = connection.is_kept and not connection.reader.has_begun
        if was_dead and not isinstance(error, TimeoutError):
            self.start(must_be_new=True)
        else:
            self.problem = Failure(error)

    def receive(self, connection: _Connection) -> Response | None:
        """Read from a connection; returns the answer once it is whole."""
        try:
            connection.link.settimeout(max(0.001, self.left_s))
            answer = connection.receive()
        except (OSError, WireError) as exc:
            self.lose(connection, exc)
            return None
        if answer is not None:
            self.running.remove(connection)
            if answer.is_reusable:
                self._pool.keep(connection)
            else:
                connection.close()
        return answer

    def end(self) -> None:
        """Give up what is still under way."""
        for connection in self.running:
            connection.close()


def _exchange(pool: _Pool, step: Exchange) -> Response | Failure:
    race = _Race(pool, step)
    hedge_at = None
    if step.hedge_after_s is not None:
        hedge_at = time.monotonic() + step.hedge_after_s
    try:
        race.start()
        while race.running:
            if race.left_s <= 0:
                return Failure(TimeoutError("no answer in time"))
            until = step.deadline if hedge_at is None else min(step.deadline, hedge_at)
            for connection in _arrived(race.running, until - time.monotonic(), hedge_at):
                answer = race.receive(connection)
                if answer is not None:
                    return answer
            if hedge_at is not None and time.monotonic() >= hedge_at:
                hedge_at = None
                if race.running and step.may_hedge():
                    race.start()
        return race.problem or Failure(ConnectionResetError("no connection was left"))
    finally:
        race.end()


def _arrived(
    running: list[_Connection], wait_s: float, hedge_at: float | None
) -> list[_Connection]:
    if hedge_at is None and len(running) == 1:
        return list(running)  # Reading from it waits as long as is right.
    with selectors.DefaultSelector() as selector:
        for connection in running:
            selector.register(connection.link, selectors.EVENT_READ, connection)
        return [key.data for key, _ in selector.select(max(0.0, wait_s))]
