"""The OpenAPI description of a service, made from the signatures of its models."""

from __future__ import annotations

import html
import json
from typing import Any

from fairlead.core.bundle import Bundle

__all__ = ["api_document", "api_page"]


def api_document(bundles: dict[str, Bundle], default: str) -> dict[str, Any]:
    """Return the description, OpenAPI 3.1; see `openapi.py`."""
    return {"openapi": "3.1.0", "info": {"title": default, "version": "2"}, "paths": {}}


def api_page(document: dict[str, Any]) -> str:
    """Return a page for people that needs nothing from elsewhere."""
    return (
        f"<!doctype html><title>API</title><pre>{html.escape(json.dumps(document, indent=1))}</pre>"
    )
