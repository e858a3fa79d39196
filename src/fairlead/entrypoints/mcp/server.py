"""The MCP server over stdio: lists tools and guides, runs tools in threads, maps errors."""

from __future__ import annotations

import json
import math
from contextlib import ExitStack
from typing import Any, Final

import anyio
import mcp.server.stdio
import mcp_types as types
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.shared.exceptions import MCPError

import fairlead
from fairlead.api.guides import list_guides, read_guide
from fairlead.core.errors import FairleadError, NotFoundError
from fairlead.entrypoints.mcp.desk import Desk
from fairlead.entrypoints.mcp.front_tools import FRONT_TOOLS
from fairlead.entrypoints.mcp.progress import ToldProgress
from fairlead.entrypoints.mcp.skill_tools import skill_tools
from fairlead.entrypoints.mcp.tool import Document, Tool

__all__ = ["build_server", "serve_stdio"]

_SCHEME: Final = "fairlead://guides/"
_INSTRUCTIONS: Final = (
    "Fairlead takes a trained model to production and keeps it there. Begin with `ask` in the "
    "user's own words; when it returns a question, put it to the user and call `answer`. Then "
    "`plan` and `run` do the work, or the tools of single skills. Paths are relative to the "
    "folder this server was started in. Guides are resources under fairlead://guides/."
)

Context = ServerRequestContext[Any, Any]


def serve_stdio() -> None:
    """Serve one client over stdin and stdout until it closes them.

    Raises:
        WorkspaceError: The workspace cannot be written.
    """
    anyio.run(_serve)


async def _serve() -> None:
    with ExitStack() as stack:
        server = build_server(Desk(stack))
        async with mcp.server.stdio.stdio_server() as (reader, writer):
            await server.run(reader, writer, server.create_initialization_options())


def build_server(desk: Desk) -> Server[dict[str, Any]]:
    """Return a server whose tools share one desk."""
    room = _Room(desk, (*FRONT_TOOLS, *skill_tools()))
    return Server(
        "fairlead",
        version=fairlead.__version__,
        title="Fairlead",
        description="From a trained model to a served and watched one.",
        instructions=_INSTRUCTIONS,
        on_list_tools=room.list_tools,
        on_call_tool=room.call_tool,
        on_list_resources=room.list_resources,
        on_read_resource=room.read_resource,
    )


class _Room:
    """The handlers of one session."""

    def __init__(self, desk: Desk, tools: tuple[Tool, ...]) -> None:
        self._desk = desk
        self._tools = {tool.name: tool for tool in tools}
        # Measurements that run side by side would measure each other.
        self._one_at_a_time = anyio.CapacityLimiter(1)
        self._quick = anyio.CapacityLimiter(4)

    async def list_tools(
        self, _context: Context, _params: types.PaginatedRequestParams | None
    ) -> types.ListToolsResult:
        return types.ListToolsResult(tools=[_described(tool) for tool in self._tools.values()])

    async def call_tool(
        self, context: Context, params: types.CallToolRequestParams
    ) -> types.CallToolResult:
        tool = self._tools.get(params.name)
        if tool is None:
            known = ", ".join(self._tools)
            raise MCPError(
                types.INVALID_PARAMS, f"there is no tool `{params.name}`; the tools are {known}"
            )
        desk = self._desk.hearing(ToldProgress(context.session.report_progress))
        limiter = self._quick if tool.is_quick else self._one_at_a_time
        try:
            document = await anyio.to_thread.run_sync(
                tool.run, params.arguments, desk, limiter=limiter
            )
        except FairleadError as error:
            return _failed(error)
        return _done(document)

    async def list_resources(
        self, _context: Context, _params: types.PaginatedRequestParams | None
    ) -> types.ListResourcesResult:
        return types.ListResourcesResult(
            resources=[
                types.Resource(
                    uri=f"{_SCHEME}{guide.id}",
                    name=guide.id,
                    description=guide.description,
                    mime_type="text/markdown",
                    size=len(guide.text.encode()),
                )
                for guide in list_guides()
            ]
        )

    async def read_resource(
        self, _context: Context, params: types.ReadResourceRequestParams
    ) -> types.ReadResourceResult:
        uri = str(params.uri)
        try:
            guide = read_guide(uri.removeprefix(_SCHEME))
        except NotFoundError as error:
            raise MCPError(
                types.INVALID_PARAMS, f"{error.message}; {error.hint}", {"uri": uri}
            ) from error
        page = types.TextResourceContents(uri=uri, mime_type="text/markdown", text=guide.text)
        return types.ReadResourceResult(contents=[page])


def _described(tool: Tool) -> types.Tool:
    return types.Tool(
        name=tool.name,
        title=tool.title,
        description=tool.description,
        input_schema=tool.input_schema,
        annotations=types.ToolAnnotations(
            title=tool.title,
            read_only_hint=tool.is_read_only,
            destructive_hint=False,
            open_world_hint=False,
        ),
    )


def _done(document: Document) -> types.CallToolResult:
    clean = _finite(document)
    text = json.dumps(clean, ensure_ascii=False, default=str)
    content = types.TextContent(type="text", text=text)
    return types.CallToolResult(content=[content], structured_content=json.loads(text))


def _failed(error: FairleadError) -> types.CallToolResult:
    text = f"error: {error.message}\n\nhint: {error.hint}"
    document = {"error": error.code, "message": error.message, "hint": error.hint}
    return types.CallToolResult(
        content=[types.TextContent(type="text", text=text)],
        structured_content=document,
        is_error=True,
    )


def _finite(value: Any) -> Any:  # noqa: ANN401 (JSON)
    """Return a document without NaN and infinity, which JSON does not know."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value
