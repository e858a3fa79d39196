"""What a connection sees of the server that it belongs to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from fairlead.serve.inference.http.exchange import Exchange, Sender
from fairlead.serve.inference.http.head import Head, HttpError
from fairlead.serve.inference.http.known_heads import KnownHeads
from fairlead.serve.inference.http.limits import HttpLimits
from fairlead.serve.inference.http.wire import Wire

__all__ = ["Surroundings"]


class Surroundings(Protocol):
    """What all connections of a server share; see `HttpServer`."""

    limits: HttpLimits
    wire: Wire
    heads: KnownHeads
    connections: set[Any]
    buffered_bytes: int
    is_draining: bool
    dispatch: Callable[[Exchange], None]
    count_fault: Callable[[int], object]
    screen: Callable[[Head, Sender], HttpError | None]
