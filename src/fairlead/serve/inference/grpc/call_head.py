"""What the header fields of a call say."""

from __future__ import annotations

import re
from typing import NamedTuple

from fairlead.serve.inference.grpc.header_blocks import Fields

__all__ = ["CallHead"]

_TIMEOUT = re.compile(r"(\d{1,8})([HMSmun])")
_UNIT_S = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
_FORBIDDEN = {"connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade"}
_TELLING = {"traceparent", "x-request-id", "fairlead-probe"}
_PSEUDO = {":method", ":path", ":scheme", ":authority"}


class CallHead(NamedTuple):
    """The beginning of a call.

    Attributes:
        path: `/package.Service/Method`.
        timeout_s: How long the client waits, in seconds, or None.
        encoding: How messages may be compressed: `identity`, `gzip` or `deflate`.
        metadata: Other fields, the last of equal names.
        http_status: 200, or why this is no call: 405 or 415.
        is_valid: Whether the fields obey the rules of HTTP/2.
        is_usual: Whether the fields say nothing about how to serve the call but when it ends.
    """

    path: str
    timeout_s: float | None
    encoding: str
    metadata: dict[str, str]
    http_status: int
    is_valid: bool
    is_usual: bool

    @classmethod
    def of(cls, fields: Fields) -> CallHead:
        """Read the fields."""
        metadata: dict[str, str] = {}
        pseudo: dict[str, str] = {}
        is_valid = True
        for name, value in fields:
            if name.startswith(":"):
                is_valid &= name in _PSEUDO and name not in pseudo and not metadata
                pseudo[name] = value
            else:
                is_valid &= name == name.lower() and name not in _FORBIDDEN
                metadata[name] = value
        path = pseudo.get(":path", "")
        # Without any pseudo field these are the trailers of a request.
        is_valid &= not pseudo or (":method" in pseudo and ":scheme" in pseudo and path != "")
        found = _TIMEOUT.fullmatch(metadata.get("grpc-timeout", ""))
        timeout_s = None if found is None else int(found[1]) * _UNIT_S[found[2]]
        status = 200 if pseudo.get(":method") == "POST" else 405
        if status == 200 and not metadata.get("content-type", "").startswith("application/grpc"):
            status = 415
        encoding = metadata.get("grpc-encoding", "identity")
        is_usual = not _TELLING & metadata.keys()
        return cls(path, timeout_s, encoding, metadata, status, bool(is_valid), is_usual)

    @property
    def is_trailer(self) -> bool:
        """Whether these fields end a request instead of beginning one."""
        return not self.path
