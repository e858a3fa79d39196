"""HTTP as plain as can be: what is sent is seen, and no library retries behind our back."""

from __future__ import annotations

import asyncio
from typing import NamedTuple

from chaos_parts.ledger import Cut

__all__ = ["Reply", "Talk"]

_PATIENCE_S = 60.0


class Reply(NamedTuple):
    """An answer as it came."""

    status: int
    headers: dict[str, str]
    body: bytes


class Talk:
    """One keep-alive connection, opened again when it is gone."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._link: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(
        self, path: str, body: bytes = b"", headers: dict[str, str] | None = None,
        method: str = "POST",
    ) -> Reply:  # fmt: skip
        """Send a request and return the answer.

        Raises:
            Cut: The connection ended first.
            TimeoutError: Nothing came for a minute.
        """
        lines = [f"{method} {path} HTTP/1.1", "Host: chaos", f"Content-Length: {len(body)}"]
        lines += [f"{key}: {value}" for key, value in (headers or {}).items()]
        raw = "\r\n".join(lines).encode() + b"\r\n\r\n" + body
        try:
            async with asyncio.timeout(_PATIENCE_S):
                return await self._exchange(raw)
        except (ConnectionError, asyncio.IncompleteReadError) as exc:
            self.close()
            raise Cut(repr(exc)) from exc
        except BaseException:
            self.close()
            raise

    async def _exchange(self, raw: bytes) -> Reply:
        if self._link is not None and self._link[0].at_eof():
            self.close()
        if self._link is None:
            self._link = await asyncio.open_connection("127.0.0.1", self._port, limit=1 << 20)
        reader, writer = self._link
        writer.write(raw)
        await writer.drain()
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {k.lower(): v for k, v in (line.split(": ", 1) for line in head[1:] if line)}
        if headers.get("transfer-encoding") == "chunked":
            body = await self._chunks(reader)
        else:
            body = await reader.readexactly(int(headers.get("content-length", 0)))
        if headers.get("connection") == "close":
            self.close()
        return Reply(int(head[0].split()[1]), headers, body)

    @staticmethod
    async def _chunks(reader: asyncio.StreamReader) -> bytes:
        body = b""
        while size := int(await reader.readuntil(b"\r\n"), 16):
            body += (await reader.readexactly(size + 2))[:-2]
        await reader.readexactly(2)
        return body

    def close(self) -> None:
        """End the connection."""
        if self._link is not None:
            self._link[1].transport.abort()
            self._link = None
