"""Which handler a request is for; by hand, because it happens on every request."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from fairlead.serve.inference.http.exchange import Exchange
from fairlead.serve.inference.http.head import HttpError, path_of
from fairlead.serve.inference.security.endpoints import kind_of

__all__ = ["Handler", "Route", "Routes"]

_MAX_CACHED = 512
_LONGEST_CACHED = 512


class Route(NamedTuple):
    """Where a request goes.

    Attributes:
        handler: Answers it.
        path: Its path, decoded.
        model: Model that the path names, or None.
        version: Version that the path names, or None.
        is_model: Whether it asks a model or about one, and not how the server is run.
    """

    handler: Handler
    path: str
    model: str | None
    version: str | None
    is_model: bool = True


Handler = Callable[[Exchange, Route], None]
"""Answers an exchange, now or later; what it raises becomes the answer."""

Methods = Mapping[str, Handler]


class Routes:
    """The table of paths.

    Patterns are paths whose segment `*` stands for a name: the first one for a model, the second
    one for a version.
    """

    def __init__(self, table: Mapping[str, Methods]) -> None:
        """Prepare a table: pattern → method → handler; HEAD is answered like GET."""
        self._exact: dict[tuple[str, ...], Methods] = {}
        self._patterns: list[tuple[tuple[str, ...], Methods]] = []
        for pattern, methods in table.items():
            segments = tuple(pattern[1:].split("/"))
            if "*" in segments:
                self._patterns.append((segments, methods))
            else:
                self._exact[segments] = methods
        self._cache: dict[tuple[str, bytes], Route] = {}

    def find(self, method: str, target: bytes) -> Route:
        """Return where a request goes.

        Raises:
            HttpError: There is no such path (404), or it does not take the method (405).
        """
        key = (method, target)
        route = self._cache.get(key)
        if route is None:
            route = self._search(method, target)
            if len(self._cache) >= _MAX_CACHED:
                self._cache.clear()
            if len(target) <= _LONGEST_CACHED:
                self._cache[key] = route
        return route

    def allowed(self, target: bytes) -> tuple[str, ...]:
        """Return the methods that a path takes; none where there is no such path."""
        segments = path_of(target)
        found = None if segments is None else self._match(segments)
        return () if found is None else _with_head(found[0])

    def _search(self, method: str, target: bytes) -> Route:
        segments = path_of(target)
        found = None if segments is None else self._match(segments)
        if segments is None or found is None:
            raise HttpError(
                404,
                "there is no such endpoint",
                "the endpoints are /v2/…, /predict, /invocations, /metrics, /docs and /fairlead/…",
            )
        methods, names = found
        handler = methods.get("GET" if method == "HEAD" else method)
        if handler is None:
            raise HttpError(
                405,
                f"{method} is not what this endpoint takes",
                f"it takes {', '.join(_with_head(methods))}",
            )
        model, version = (*names, None, None)[:2]
        # Rights hang on the path, so that there must be one way of writing it.
        path = "/" + "/".join(_bare(segments))
        return Route(handler, path, model, version, kind_of(path) == "model")

    def _match(self, segments: tuple[str, ...]) -> tuple[Methods, tuple[str, ...]] | None:
        segments = _bare(segments)
        methods = self._exact.get(segments)
        if methods is not None:
            return methods, ()
        for pattern, candidates in self._patterns:
            if len(pattern) == len(segments):
                names = tuple(n for p, n in zip(pattern, segments, strict=True) if p == "*")
                is_same = all(p in ("*", n) for p, n in zip(pattern, segments, strict=True))
                if is_same and all(names):
                    return candidates, names
        return None


def _bare(segments: tuple[str, ...]) -> tuple[str, ...]:
    """Leave out what a slash at the end adds."""
    return segments[:-1] if len(segments) > 1 and not segments[-1] else segments


def _with_head(methods: Methods) -> tuple[str, ...]:
    return tuple(sorted({*methods, *(("HEAD",) if "GET" in methods else ())}))
