"""What kind of call a path is, so that no transport can forget to say."""

from __future__ import annotations

from typing import Literal

__all__ = ["Kind", "kind_of", "means_default_model"]

Kind = Literal["health", "metrics", "statistics", "repository", "admin", "model"]

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
_GRPC_REPOSITORY = frozenset(
    {
        "/inference.GRPCInferenceService/RepositoryModelLoad",
        "/inference.GRPCInferenceService/RepositoryModelUnload",
    }
)
_GRPC_STATISTICS = "/inference.GRPCInferenceService/ModelStatistics"
_OF_DEFAULT_MODEL = ("/predict", "/invocations")
_GRPC_MODEL = "/inference.GRPCInferenceService/Model"


def kind_of(path: str) -> Kind:
    """Return the kind of a path as the transport's own routing reads it.

    `metrics` are of the whole server, `statistics` of the model that is named.
    """
    if path in _HEALTH:
        return "health"
    if path in {"/metrics", "/v2/models/stats"}:
        return "metrics"
    if path.startswith("/fairlead/") or path == "/fairlead":
        return "admin"
    if path.startswith("/v2/repository/") and path.rstrip("/").endswith(("/load", "/unload")):
        return "repository"
    if path == _GRPC_STATISTICS or (path.startswith("/v2/models/") and path.endswith("/stats")):
        return "statistics"
    return "repository" if path in _GRPC_REPOSITORY else "model"


def means_default_model(path: str) -> bool:
    """Return whether a call of this path that names no model is for the default one."""
    return path in _OF_DEFAULT_MODEL or path.startswith(_GRPC_MODEL)
