"""Hands control requests to the Starlette application, which is imported at the first of them."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, MutableMapping
from typing import Any

from fairlead.serve.inference.http.exchange import Exchange
from fairlead.serve.inference.http.routes import Route
from fairlead.serve.inference.http.wire import field

__all__ = ["AsgiBridge"]

Message = MutableMapping[str, Any]


class AsgiBridge:
    """Speaks ASGI to one application; whole requests in, whole answers out."""

    def __init__(
        self,
        make_app: Callable[[], Any],
        spawn: Callable[[Coroutine[Any, Any, None]], object],
        refuse: Callable[[Exchange, Exception], None],
    ) -> None:
        """Prepare.

        Args:
            make_app: Imports and returns the application; called once, when it is needed.
            spawn: Runs a coroutine.
            refuse: Turns an error into the answer of an exchange.
        """
        self._make_app = make_app
        self._spawn = spawn
        self._refuse = refuse
        self._app: Any = None

    def serve(self, exchange: Exchange, route: Route) -> None:
        """Answer one request; see `Handler`."""
        if self._app is None:
            self._app = self._make_app()
        self._spawn(self._run(exchange, _scope(exchange, route.path)))

    async def _run(self, exchange: Exchange, scope: Message) -> None:
        messages = [{"type": "http.request", "body": exchange.body, "more_body": False}]
        status, headers, parts = 500, b"", []

        async def receive() -> Message:
            return messages.pop() if messages else {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            nonlocal status, headers
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = b"".join(
                    field(name.decode("latin-1"), value.decode("latin-1"))
                    for name, value in message.get("headers", ())
                    if name != b"content-length"
                )
            elif message["type"] == "http.response.body":
                parts.append(message.get("body", b""))

        try:
            await self._app(scope, receive, send)
        except Exception as exc:  # noqa: BLE001 (becomes the answer)
            self._refuse(exchange, exc)
            return
        exchange.answer(status, b"".join(parts), headers)


def _scope(exchange: Exchange, path: str) -> Message:
    head = exchange.head
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.0" if head.is_old else "1.1",
        "method": head.method,
        "scheme": "http",
        "path": path,
        "raw_path": head.target.partition(b"?")[0],
        "query_string": head.query.encode("latin-1"),
        "root_path": "",
        "headers": list(head.headers),
        "client": (exchange.peer, 0),
        "server": None,
        "extensions": {},
    }
