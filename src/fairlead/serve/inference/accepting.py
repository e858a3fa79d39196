"""Several workers at one listening socket: the one with the fewest connections takes the next.

Left to themselves, the worker that wakes first takes nearly all of them, and keep-alive keeps it
so. A socket of its own for each worker would spread them by chance, but strand those that wait at
a worker that was killed.
"""

from __future__ import annotations

import asyncio
import mmap
import socket
import ssl
import struct
from collections.abc import Callable, Sequence

from fairlead.serve.inference.anonymous_file import anonymous_file

__all__ = ["Acceptor", "OpenCounts", "listen", "new_open_counts"]

_COUNT = struct.Struct("<q")
_ABSENT = -1
_MOST_WORKERS = 256
_LISTENERS = 2
_BACKLOG = 2048
_PAUSE_S = 0.002
_MOST_PAUSES = 10
"""A worker that shall take the next connection may be busy: after this the others take it."""
_STARVED_S = 0.05


def new_open_counts() -> int:
    """Return the descriptor of a nameless file for `OpenCounts`, every worker absent."""
    return anonymous_file("fairlead-connections", _COUNT.pack(_ABSENT) * _MOST_WORKERS * _LISTENERS)


class OpenCounts:
    """How many connections each worker holds, in memory that all of them see."""

    def __init__(self, descriptor: int, number: int, *, listener: int = 0) -> None:
        """Map the file.

        Args:
            descriptor: Of `new_open_counts`.
            number: The worker that this is, from 0.
            listener: Which of the shared listening sockets it is about, 0 or 1.
        """
        size = _COUNT.size * _MOST_WORKERS
        memory = memoryview(mmap.mmap(descriptor, size * _LISTENERS))
        self._memory = memory[listener * size : (listener + 1) * size]
        self._number = number

    def publish(self, count: int) -> None:
        """Tell the others how many connections this worker holds."""
        _COUNT.pack_into(self._memory, self._number * _COUNT.size, count)

    def remove(self, number: int) -> None:
        """Forget a worker that ended."""
        _COUNT.pack_into(self._memory, number * _COUNT.size, _ABSENT)

    def is_least(self, count: int) -> bool:
        """Return whether no other worker holds fewer than `count`."""
        others = _COUNT.iter_unpack(self._memory)
        return all(found >= count for (found,) in others if found != _ABSENT)


class Acceptor:
    """Takes connections one by one, when it is this worker's turn; lives in one event loop."""

    def __init__(
        self,
        listener: socket.socket,
        counts: OpenCounts,
        *,
        protocol: Callable[[], asyncio.Protocol],
        n_open: Callable[[], int],
        context: ssl.SSLContext | None = None,
        handshake_timeout_s: float = 15.0,
    ) -> None:
        """Prepare; `start` begins.

        Args:
            listener: Listening socket that the workers share.
            counts: What each of them holds.
            protocol: Makes the protocol of a connection.
            n_open: Returns how many connections this worker holds.
            context: For TLS, or None.
            handshake_timeout_s: How long a client may take for the handshake, in seconds.
        """
        self._listener = listener
        self._counts = counts
        self._protocol = protocol
        self._n_open = n_open
        self._context = context
        self._handshake_timeout_s = handshake_timeout_s
        self._pauses = 0
        self._timer: asyncio.TimerHandle | None = None
        self._coming: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Begin to listen."""
        self._listener.setblocking(False)
        self._counts.publish(self._n_open())
        self._wait_for_one()

    def close(self) -> None:
        """Stop to listen."""
        if self._timer is not None:
            self._timer.cancel()
        if self._listener.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self._listener.fileno())
            self._listener.close()

    def _wait_for_one(self) -> None:
        self._timer = None
        asyncio.get_running_loop().add_reader(self._listener.fileno(), self._take)

    def _take(self) -> None:
        count = self._n_open() + len(self._coming)
        self._counts.publish(count)
        if self._pauses < _MOST_PAUSES and not self._counts.is_least(count):
            self._pauses += 1
            self._pause(_PAUSE_S)
            return
        self._pauses = 0
        try:
            client, _ = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError, InterruptedError):
            return  # Another worker was faster, or the client left.
        except OSError:
            self._pause(_STARVED_S)  # Out of descriptors: what waits, waits.
            return
        client.setblocking(False)
        task = asyncio.get_running_loop().create_task(self._connect(client))
        self._coming.add(task)
        task.add_done_callback(self._coming.discard)
        self._counts.publish(count + 1)

    def _pause(self, pause_s: float) -> None:
        loop = asyncio.get_running_loop()
        # The socket stays readable; listening on would turn the loop at full speed.
        loop.remove_reader(self._listener.fileno())
        self._timer = loop.call_later(pause_s, self._wait_for_one)

    async def _connect(self, client: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        timeout = self._handshake_timeout_s if self._context is not None else None
        try:
            await loop.connect_accepted_socket(
                self._protocol, client, ssl=self._context, ssl_handshake_timeout=timeout
            )
        except (OSError, ConnectionError):
            client.close()  # The handshake failed, or the client left.


async def listen(
    sockets: Sequence[socket.socket],
    protocol: Callable[[], asyncio.Protocol],
    n_open: Callable[[], int],
    *,
    context: ssl.SSLContext | None,
    counts: OpenCounts | None,
    handshake_timeout_s: float,
) -> list[asyncio.Server | Acceptor]:
    """Take connections from sockets, alone or in turn with other workers.

    Args:
        sockets: Bound sockets.
        protocol: Makes the protocol of one connection.
        n_open: Returns how many connections there are.
        context: What TLS needs, or None for plain connections.
        counts: Shared with the other workers, or None without any.
        handshake_timeout_s: Longest time for the handshake of TLS, in seconds.

    Returns:
        What `close` stops.
    """
    loop = asyncio.get_running_loop()
    found: list[asyncio.Server | Acceptor] = []
    for listener in sockets:
        listener.setblocking(False)
        if counts is None:
            server = await loop.create_server(
                protocol,
                sock=listener,
                ssl=context,
                backlog=_BACKLOG,
                ssl_handshake_timeout=handshake_timeout_s if context else None,
            )
            found.append(server)
            continue
        acceptor = Acceptor(
            listener,
            counts,
            protocol=protocol,
            n_open=n_open,
            context=context,
            handshake_timeout_s=handshake_timeout_s,
        )
        acceptor.start()
        found.append(acceptor)
    return found
