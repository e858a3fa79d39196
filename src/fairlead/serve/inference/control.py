"""The control plane on Starlette: administration, the repository's changes, and the pages.

Imported at the first request to one of them. Who may ask is decided before; nothing here looks
at credentials.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import orjson
from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from fairlead.core.endpoint import TrafficSplit
from fairlead.core.errors import FairleadError, UsageError
from fairlead.core.values import describe_validation_error
from fairlead.serve.inference.openapi import api_document, api_page
from fairlead.serve.inference.openinference import parse_json
from fairlead.serve.inference.problems import describe, status_of
from fairlead.serve.inference.service import Service

__all__ = ["build_control"]

_MAX_OUTCOMES = 10_000
_PAGE = {
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
}
"""A page that loads nothing, sends nothing, and stands in no other page."""


def build_control(service: Service) -> Starlette:
    """Return the ASGI application of a service's control plane."""
    control = _Control(service)
    get, post, put = ["GET"], ["POST"], ["PUT"]
    table: list[tuple[str, Callable[[Request], Awaitable[Response]], list[str]]] = [
        ("/fairlead/service", control.service, get),
        ("/fairlead/status", control.status, get),
        ("/fairlead/traffic", control.traffic, put),
        ("/fairlead/outcomes", control.outcomes, get),
        ("/v2/repository/index", control.index, post),
        ("/v2/repository/models/{model}/load", control.load, post),
        ("/v2/repository/models/{model}/unload", control.unload, post),
        ("/docs", control.docs, get),
        ("/openapi.json", control.openapi, get),
    ]
    return Starlette(
        routes=[Route(path, call, methods=ways) for path, call, ways in table],
        exception_handlers={FairleadError: _problem},
    )


class _Control:
    """One method per endpoint."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def service(self, _: Request) -> Response:
        endpoint = self._service.endpoint
        plane = await self._service.repository.obtain()
        return _json(
            {
                "endpoint": None if endpoint is None else endpoint.model_dump(mode="json"),
                "traffic": plane.traffic.split.model_dump(mode="json"),
            }
        )

    async def status(self, _: Request) -> Response:
        return _json(await self._service.bus.ask("status.read", {}))

    async def traffic(self, request: Request) -> Response:
        document = parse_json(await request.body())
        try:
            split = TrafficSplit.model_validate(document)
        except ValidationError as exc:
            raise UsageError(
                f"this is no traffic split: {describe_validation_error(exc)}",
                hint='send {"weights": {"baseline": 0.9, "candidate": 0.1}, "shadow": null}',
            ) from exc
        told = split.model_dump(mode="json")
        await self._service.bus.broadcast("traffic.set", told, keep="traffic")
        return _json(told)

    async def outcomes(self, request: Request) -> Response:
        after = _whole(request, "after", 0)
        limit = min(_whole(request, "limit", 1000), _MAX_OUTCOMES)
        body = {"after": after, "limit": limit}
        return _json(await self._service.bus.ask("outcomes.read", body))

    async def index(self, request: Request) -> Response:
        raw = await request.body()
        wanted = parse_json(raw).get("ready") if raw.strip() else None
        if wanted is not None and not isinstance(wanted, bool):
            raise UsageError(f"`ready` is {str(wanted)[:40]!r}", hint="send true or false")
        # As in the protocol: false, the default, asks for all models.
        states = self._service.repository.index(wanted or None)
        return _json([state._asdict() for state in states])

    async def load(self, request: Request) -> Response:
        return await self._change("repository.load", request)

    async def unload(self, request: Request) -> Response:
        return await self._change("repository.unload", request)

    async def docs(self, _: Request) -> Response:
        return HTMLResponse(api_page(self._api()), headers=_PAGE)

    async def openapi(self, _: Request) -> Response:
        return _json(self._api())

    async def _change(self, op: str, request: Request) -> Response:
        raw = await request.body()
        parameters = parse_json(raw).get("parameters") if raw.strip() else None
        if parameters is None:
            parameters = {}
        if not isinstance(parameters, dict):
            raise UsageError("`parameters` is no object", hint='send {"parameters": {}}')
        name = request.path_params["model"]
        body = {"name": name, "parameters": parameters}
        await self._service.bus.broadcast(op, body, keep=f"repository/{name}")
        return _json({})

    def _api(self) -> dict[str, Any]:
        repository = self._service.repository
        bundles = {name: repository.bundle(name) for name in repository.names()}
        return api_document(bundles, repository.default_name)


async def _problem(_: Request, error: Exception) -> Response:
    message, hint = describe(error)
    return _json({"error": message, "hint": hint}, status=status_of(error))


def _json(document: object, *, status: int = 200) -> Response:
    raw = orjson.dumps(document, option=orjson.OPT_NON_STR_KEYS)
    return Response(raw, status, None, "application/json")


def _whole(request: Request, name: str, default: int) -> int:
    text = request.query_params.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit()) or len(text) > 18:
        raise UsageError(
            f"`{name}` is {text[:40]!r}, expected a whole number", hint=f"give {name}=0 or more"
        )
    return int(text)
