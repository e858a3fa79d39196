"""What a client may ask of a connection."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["GrpcLimits"]


@dataclass(frozen=True, slots=True)
class GrpcLimits:
    """Sizes, rates and times that no client may exceed.

    Attributes:
        max_connections: Connections at the same time; further ones are closed.
        max_streams: Calls of one connection at the same time; further ones are refused.
        max_message_bytes: Largest message, also after decompression.
        max_buffered_bytes: Unfinished messages of one connection at the same time.
        max_header_bytes: Header fields of a call.
        max_nuisance: Frames that carry nothing (pings, settings, resets, empty data) in one
            `sweep_s`.
        sweep_s: How often a connection is looked after, in seconds.
        idle_s: How long a connection without calls may stay, in seconds.
        stall_s: How long a client may leave a frame or a message unfinished, or what was sent
            unread, in seconds.
    """

    max_connections: int = 4096
    max_streams: int = 1024
    max_message_bytes: int = 64 << 20
    max_buffered_bytes: int = 192 << 20
    max_header_bytes: int = 16 << 10
    max_nuisance: int = 10_000
    sweep_s: float = 5.0
    idle_s: float = 3600.0
    stall_s: float = 30.0
