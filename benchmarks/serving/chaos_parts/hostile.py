"""Clients that nobody wants: fuzzed, huge, slow, gone before the answer."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import struct

import numpy as np

from chaos_parts.load import Scene
from chaos_parts.talk import Talk

__all__ = ["HOSTILE", "mutated"]

_HANG_S = 45.0
_FINE = {100, 200, *range(400, 500), 501, 503, 504, 505}
"""What may be said to anybody; 501 and 505 to what is no HTTP that is spoken."""
_TOKENS = (
    b"NaN", b"-1", b"1e999", b"99999999999999999999", b"null", b"true", b'""', b"{}", b"[[[[]]]]",
    b'"\\ud800"', b"\x00", b"\xff\xfe", b"[" * 3000, b"\r\n\r\n", b"4294967296", b"0", b"-0.0",
)  # fmt: skip
_HEADS = (
    b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: xchunked\r\n",
    b"Inference-Header-Content-Length: -3\r\n", b"Inference-Header-Content-Length: 7\r\n",
    b"Content-Encoding: gzip\r\n", b"Expect: 100-continue\r\n", b"X: " + b"y" * 70_000 + b"\r\n",
    b"Connection: upgrade\r\nUpgrade: h2c\r\n", b"x-request-timeout-ms: nan\r\n", b": empty\r\n",
)  # fmt: skip
_POST = b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
_PATHS = (
    "/v2/models/steady/infer", "/v2/models/texts/infer", "/predict", "/invocations",
    "/v2/models/steady/infer_stream", "/v2/models/%00/infer", "/v2/models/../../etc/infer",
    "/v2/models/steady/versions/9/infer", "/v2/repository/index", "/fairlead/outcomes",
)  # fmt: skip


def mutated(draw: random.Random, raw: bytes) -> bytes:
    """Return bytes that were a request once."""
    data = bytearray(raw)
    for _ in range(draw.choice((1, 1, 2, 8))):
        at = draw.randrange(len(data) + 1)
        what = draw.randrange(5)
        if what == 0 and data:
            data[at % len(data)] = draw.randrange(256)
        elif what == 1:
            del data[at : at + draw.choice((1, 4, 30))]
        elif what == 2:
            data[at:at] = draw.choice(_TOKENS)
        elif what == 3:
            data[at:at] = data[at : at + 40]
        else:
            del data[at:]
    return bytes(data)


def _valid(draw: random.Random) -> tuple[bytes, bytes]:
    """Return a body that is right, and the header fields that it needs."""
    x = np.array([[1, 2, 3, 4]], np.float32)
    item = {"name": "x", "datatype": "FP32", "shape": [1, 4]}
    if draw.random() < 0.5:
        head = json.dumps({"inputs": [{**item, "parameters": {"binary_data_size": 16}}]}).encode()
        return head + x.tobytes(), b"Inference-Header-Content-Length: %d\r\n" % len(head)
    if draw.random() < 0.3:
        return json.dumps({"rows": [dict.fromkeys("abcd", 1.0)]}).encode(), b""
    return json.dumps({"id": "q", "inputs": [{**item, "data": x.tolist()}]}).encode(), b""


async def fuzzed(scene: Scene, _: Talk) -> None:
    """A request whose body, or all of it, was mutated; the client then stops sending."""
    body, fields = _valid(scene.draw)
    path = scene.draw.choice(_PATHS).encode()
    body = mutated(scene.draw, body)
    if scene.draw.random() < 0.3:
        fields += scene.draw.choice(_HEADS)
    raw = b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n%s\r\n%s" % (
        path, len(body), fields, body,
    )  # fmt: skip
    if scene.draw.random() < 0.3:
        raw = mutated(scene.draw, raw)
    await _throw(scene, "fuzzed", scene.port, raw)


async def fuzzed_frames(scene: Scene, _: Talk) -> None:
    """HTTP/2 frames that make little sense, after a preface that does."""
    raw = bytearray(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(4, 0, 0, b""))
    for _ in range(scene.draw.randrange(1, 12)):
        body = scene.draw.randbytes(scene.draw.choice((0, 4, 8, 60, 17_000)))
        raw += _frame(
            scene.draw.randrange(12), scene.draw.getrandbits(8),
            scene.draw.choice((0, 1, 2, 3, 99)), body,
        )  # fmt: skip
    port = int(scene.grpc.rsplit(":", 1)[1])
    await _throw(scene, "fuzzed frames", port, bytes(raw), has_status=False)


def _frame(kind: int, flags: int, stream: int, body: bytes) -> bytes:
    return struct.pack(">I", len(body))[1:] + struct.pack(">BBI", kind, flags, stream) + body


async def _throw(
    scene: Scene, kind: str, port: int, raw: bytes, *, has_status: bool = True
) -> None:
    """Send bytes, end our side, and read until the server ends its own."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 24)
    except OSError:
        return
    said = b""
    try:
        writer.write(raw)
        writer.write_eof()
        async with asyncio.timeout(_HANG_S):
            said = await reader.read(-1)
    except TimeoutError:
        scene.ledger.hangs[kind] += 1
        scene.ledger.note(f"{kind} hangs: {raw[:300]!r}")
    except (OSError, RuntimeError):
        said = b""
    finally:
        writer.transport.abort()
    if has_status and said.startswith(b"HTTP/1."):
        scene.ledger.status(kind, int(said.split(None, 2)[1]), _FINE, (raw[:300], said[-300:]))
    else:
        scene.ledger.statuses[kind]["closed"] += 1


async def huge(scene: Scene, talk: Talk) -> None:
    """Bodies over the limit, by their length or by their chunks; many rows; deep nesting."""
    which = scene.draw.randrange(4)
    path = b"/v2/models/steady/infer"
    if which == 0:
        raw = b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n" % path
    elif which == 1:
        chunk = b"100000\r\n" + b" " * 0x100000 + b"\r\n"
        head = b"POST %s HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" % path
        raw = head + chunk * 6
    else:
        if which == 2:
            body = b'{"inputs":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
        else:
            head = b'{"inputs":[{"name":"x","datatype":"FP32","shape":[100001,4],"data":['
            body = head + b"[1,2,3,4]," * 100_000 + b"[1,2,3,4]]}]}"
        raw = _POST % (path, len(body)) + body
    await _throw(scene, "huge", scene.port, raw)


async def gone(scene: Scene, _: Talk) -> None:
    """A client that leaves, politely or not, before or while it is answered."""
    x = scene.rows()
    body = json.dumps({"inputs": [
        {"name": "x", "datatype": "FP32", "shape": list(x.shape), "data": x.tolist()}
    ]}).encode()  # fmt: skip
    model = scene.draw.choice(("steady", "heavy"))
    raw = _POST % (b"/v2/models/%s/infer" % model.encode(), len(body)) + body
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", scene.port)
        writer.write(raw[: scene.draw.choice((20, len(raw) - 3, len(raw)))])
        await asyncio.sleep(scene.draw.choice((0, 0.002, 0.02)))
        if scene.draw.random() < 0.5:
            place = writer.get_extra_info("socket")
            place.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
    except OSError:
        return
    scene.ledger.statuses["gone"]["left"] += 1


async def slow(scene: Scene, _: Talk) -> None:
    """A client that sends a byte now and then, or reads nothing of a large answer."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", scene.port)
        if scene.draw.random() < 0.5:
            writer.write((_POST % (b"/v2/models/steady/infer", 900)).removesuffix(b"\r\n"))
            for _ in range(20):
                await asyncio.sleep(0.2)
                writer.write(b"\r\n" if scene.draw.random() < 0.1 else b"a")
        else:
            x = [[1, 2, 3, 4]] * 20_000
            body = json.dumps({"inputs": [
                {"name": "x", "datatype": "FP32", "shape": [20_000, 4], "data": x}
            ]}).encode()  # fmt: skip
            reader._transport.pause_reading()
            writer.write(_POST % (b"/v2/models/steady/infer", len(body)) + body)
            await asyncio.sleep(3)
        writer.transport.abort()
    except OSError:
        pass
    scene.ledger.statuses["slow"]["done"] += 1


HOSTILE = {
    "fuzzed": fuzzed, "fuzzed frames": fuzzed_frames, "huge": huge, "gone": gone, "slow": slow,
}  # fmt: skip
