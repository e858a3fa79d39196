"""What kind of call a path is, so that no transport can forget to say."""

from __future__ import annotations

from typing import Literal

__all__ = ["Kind", "kind_of"]

Kind = Literal["health", "metrics", "repository", "admin", "model"]

_HEALTH = frozenset(
    {
        "/v2/health/live",
        "/v2/health/ready",
        "/health",
        "/ping",
        "/inference.GRPCInferenceService/ServerLive",
        "/inference.GRPCInferenceService/ServerReady",
        "/grpc.health.v1.Health/Check",
        "/grpc.health.v1.Health/Watch",
    }
)
_GRPC_REPOSITORY = (
    "/inference.GRPCInferenceService/RepositoryModelLoad",
    "/inference.GRPCInferenceService/RepositoryModelUnload",
)


def kind_of(path: str) -> Kind:
    """Return the kind of a path as the transport's own routing reads it."""
    if path in _HEALTH:
        return "health"
    if path in {"/metrics", "/v2/models/stats"}:
        return "metrics"
    if path.startswith("/fairlead/") or path == "/fairlead":
        return "admin"
    if path.startswith("/v2/repository/") and path.rstrip("/").endswith(("/load", "/unload")):
        return "repository"
    return "repository" if path in _GRPC_REPOSITORY else "model"
