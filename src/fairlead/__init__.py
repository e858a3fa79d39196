"""Fairlead takes a trained model to production and keeps it there.

The names below load on first use, so that `import fairlead` stays cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fairlead.core.version import __version__

if TYPE_CHECKING:
    from fairlead.api import ask, follow, pack, plan

__all__ = ["__version__", "ask", "follow", "pack", "plan"]


def __getattr__(name: str) -> Any:  # noqa: ANN401 (the types are declared above)
    if name in __all__:
        return getattr(import_module("fairlead.api"), name)
    raise AttributeError(f"module 'fairlead' has no attribute {name!r}")
