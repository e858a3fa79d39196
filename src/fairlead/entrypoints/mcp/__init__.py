"""The Model Context Protocol: Fairlead's verbs as tools, its guides as resources."""

from fairlead.entrypoints.mcp.server import serve_stdio

__all__ = ["serve_stdio"]
