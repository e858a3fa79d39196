"""`fairlead mcp`: the way in for agents."""

from __future__ import annotations

import sys

from fairlead.core.errors import UsageError
from fairlead.core.extras import requires

__all__ = ["mcp_command"]


def mcp_command() -> None:
    """Serve an agent over stdin and stdout (Model Context Protocol) until it hangs up."""
    if sys.stdin.isatty():
        raise UsageError(
            "this speaks a protocol on stdin, not with people",
            hint="name `fairlead mcp` as a command in the settings of an agent",
        )
    with requires("mcp", needed_by="`fairlead mcp`"):
        from fairlead.entrypoints.mcp import serve_stdio
    serve_stdio()
