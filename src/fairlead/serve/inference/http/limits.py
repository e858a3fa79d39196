"""What a client may ask of a connection."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["HttpLimits"]


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """Sizes, rates and times that no client may exceed.

    Attributes:
        max_connections: Connections at the same time; further ones are answered with 503.
        max_target_bytes: Longest request target; a longer one is answered with 414.
        max_headers: Header fields of a request; more are answered with 431.
        max_header_bytes: Bytes of all header fields together; more are answered with 431.
        max_body_bytes: Largest body, also after decompression; a larger one is answered with 413.
        max_buffered_bytes: Bodies that the server holds at the same time; beyond, 503.
        max_pipelined: Requests of one connection that may wait behind the one that is answered.
        header_timeout_s: Time from the first byte of a request to the end of its headers.
        body_grace_s: Time that a body may take however slow it is.
        min_body_rate: Slowest body after that, in bytes per second on average.
        keep_alive_s: How long a connection may idle.
        write_timeout_s: How long a client may leave an answer unread.
        refusal_pause_s: How long refusals for want of room are held back when there are many.
        linger_s: How long what a refused client still sends is read and forgotten, so that it
            gets to read why.
    """

    max_connections: int = 4096
    max_target_bytes: int = 8 << 10
    max_headers: int = 100
    max_header_bytes: int = 32 << 10
    max_body_bytes: int = 64 << 20
    max_buffered_bytes: int = 1 << 30
    max_pipelined: int = 16
    header_timeout_s: float = 15.0
    body_grace_s: float = 20.0
    min_body_rate: int = 1024
    keep_alive_s: float = 75.0
    write_timeout_s: float = 30.0
    refusal_pause_s: float = 1.0
    linger_s: float = 10.0
