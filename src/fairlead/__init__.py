"""Fairlead takes a trained model to production and keeps it there.

The names below load on first use, so that `import fairlead` stays cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fairlead.core.version import __version__

if TYPE_CHECKING:
    from fairlead.api import ask, follow, pack, plan
    from fairlead.backends.async_client import AsyncClient
    from fairlead.backends.client import Client, TlsOptions
    from fairlead.backends.client_policy import HedgePolicy, RetryPolicy

__all__ = [
    "AsyncClient",
    "Client",
    "HedgePolicy",
    "RetryPolicy",
    "TlsOptions",
    "__version__",
    "ask",
    "follow",
    "pack",
    "plan",
]
_HOMES = {
    "AsyncClient": "fairlead.backends.async_client",
    "Client": "fairlead.backends.client",
    "HedgePolicy": "fairlead.backends.client_policy",
    "RetryPolicy": "fairlead.backends.client_policy",
    "TlsOptions": "fairlead.backends.client",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 (the types are declared above)
    if name in __all__:
        return getattr(import_module(_HOMES.get(name, "fairlead.api")), name)
    raise AttributeError(f"module 'fairlead' has no attribute {name!r}")
