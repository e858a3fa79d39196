"""What the header fields and the parameters of a request say about how to serve it."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from fairlead.core.errors import DataError
from fairlead.serve.inference.http.head import Head, HttpError

__all__ = ["Asking", "asking_of", "body_of", "deadline_of", "priority_of"]

_LONGEST_S = 3600.0


class Asking(NamedTuple):
    """The header fields that matter to inference; "" where one is missing.

    Attributes:
        header_length: Bytes of the JSON before binary tensors, or None.
        coding: How the body is compressed.
        request_id: The client's id.
        trace_id: Id of the distributed trace.
        timeout_ms: How long the client waits, as it came.
        is_probe: Whether the request only tests the server.
        content_type: What the body is said to be.
        is_usual: Whether the header fields ask for nothing but an answer in JSON.
    """

    header_length: str | None = None
    coding: str = ""
    request_id: str = ""
    trace_id: str = ""
    timeout_ms: str = ""
    is_probe: bool = False
    content_type: str = ""
    is_usual: bool = True


_PLAIN = Asking()
_PLAIN_JSON = Asking(content_type="application/json")
_WANTED = {
    b"inference-header-content-length": "header_length",
    b"content-encoding": "coding",
    b"x-request-id": "request_id",
    b"traceparent": "traceparent",
    b"x-request-timeout-ms": "timeout_ms",
    b"fairlead-probe": "probe",
    b"content-type": "content_type",
}


def asking_of(head: Head) -> Asking:
    """Read the header fields that matter to inference."""
    known = head.asking
    if isinstance(known, Asking):
        return known
    asking = _read(head)
    head.asking = asking
    return asking


def _read(head: Head) -> Asking:
    found = [(_WANTED[name], value) for name, value in head.headers if name in _WANTED]
    if not found:
        return _PLAIN
    if len(found) == 1 and found[0] == ("content_type", b"application/json"):
        return _PLAIN_JSON
    text = {name: value.decode("latin-1").strip() for name, value in found}
    trace = text.get("traceparent", "").split("-")
    is_usual = not any(name in text for name in ("header_length", "coding", "timeout_ms", "probe"))
    return Asking(
        header_length=text.get("header_length"),
        coding=text.get("coding", "").lower(),
        request_id=text.get("request_id", "")[:256],
        trace_id=trace[1] if len(trace) == 4 and len(trace[1]) == 32 else "",
        timeout_ms=text.get("timeout_ms", ""),
        is_probe=text.get("probe") == "1",
        content_type=text.get("content_type", ""),
        is_usual=is_usual,
    )


def deadline_of(asking: Asking, parameters: Mapping[str, Any], arrived: float) -> float | None:
    """Return when the client stops to wait, in seconds of `time.perf_counter`, or None.

    `x-request-timeout-ms` is in milliseconds, the parameter `timeout` in microseconds as in
    Triton; the sooner one counts, and 0 asks for no deadline.

    Raises:
        DataError: It is no number of 0 or more.
    """
    wait_s = _LONGEST_S
    if asking.timeout_ms:
        wait_s = min(wait_s, _seconds(asking.timeout_ms, 1e3, "x-request-timeout-ms"))
    if parameters and parameters.get("timeout") is not None:
        wait_s = min(wait_s, _seconds(parameters["timeout"], 1e6, "timeout"))
    return None if wait_s >= _LONGEST_S else arrived + wait_s


def _seconds(value: object, per_second: float, name: str) -> float:
    try:
        number = float(str(value)) if not isinstance(value, bool) else -1.0
    except ValueError:
        number = -1.0
    if not 0 <= number < 1e18:
        raise DataError(
            f"`{name}` is {str(value)[:40]!r}, expected a number of 0 or more",
            hint="x-request-timeout-ms is in milliseconds, the parameter timeout in microseconds",
        )
    return number / per_second or _LONGEST_S


def priority_of(parameters: Mapping[str, Any]) -> int:
    """Return the priority: as in Triton 1 is the highest, and 0 leaves it at normal, which is 2.

    Raises:
        DataError: It is no whole number of 0 or more.
    """
    level = parameters.get("priority", 0) if parameters else 0
    if isinstance(level, str) and level.isascii() and level.isdigit():
        level = int(level[:9])
    if not isinstance(level, int) or isinstance(level, bool) or level < 0:
        raise DataError(
            f"`priority` is {str(level)[:40]!r}, expected a whole number of 0 or more",
            hint="1 is served first, 2 is normal, 3 and more are served last",
        )
    return 2 - min(level, 3) if level else 0


def body_of(body: bytes, coding: str, limit: int) -> bytes:
    """Return a body as it was before compression.

    Raises:
        HttpError: The coding is unknown (415), or the body larger than the limit (413).
        DataError: It is damaged.
    """
    if coding in {"", "identity"}:
        return body
    if coding not in {"gzip", "x-gzip", "deflate"}:
        raise HttpError(
            415,
            f"content encoding {coding[:40]!r} is not known",
            "send the body as it is, or with gzip or deflate",
        )
    # 47: accept the headers of both gzip and zlib.
    stream = zlib.decompressobj(47)
    try:
        plain = stream.decompress(body, limit + 1)
    except zlib.error as exc:
        raise DataError(
            f"the body is not {coding}: {exc}", hint="leave Content-Encoding out"
        ) from exc
    if len(plain) > limit:
        raise HttpError(
            413,
            f"the body is larger than {limit} bytes",
            "send fewer rows at once, or raise `max_body_bytes`",
        )
    if not stream.eof or stream.unused_data:
        raise DataError(
            f"the {coding} body ends too early or too late", hint="send exactly one whole body"
        )
    return plain
