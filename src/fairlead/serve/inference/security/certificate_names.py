"""Who a client's certificate names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["certificate_name"]


def certificate_name(certificate: Mapping[str, Any] | None) -> str | None:
    """Return the common name of a client's verified certificate, or None without one.

    Args:
        certificate: As `ssl.SSLObject.getpeercert` gives it.
    """
    # Several relative names may stand in a subject; an ambiguous one is nobody.
    pairs = [pair for part in (certificate or {}).get("subject", ()) for pair in part]
    names = [str(value) for key, value in pairs if key == "commonName"]
    return names[0] if len(names) == 1 else None
