"""What a tool is, whatever protocol carries it: a name, a schema, and a function."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pydantic import BaseModel, ValidationError

from fairlead.core.errors import UsageError
from fairlead.core.values import describe_validation_error
from fairlead.entrypoints.mcp.desk import Desk

__all__ = ["Document", "Tool"]

Document = dict[str, Any]


@dataclass(frozen=True)
class Tool:
    """One thing a client can call.

    Attributes:
        name: Name of the tool.
        title: Name for people.
        description: What it does and when to use it; what an agent chooses by.
        arguments: Checks the arguments and gives their schema.
        call: Does the work.
        is_read_only: Whether it leaves files and servers as they are.
        is_quick: Whether it answers at once; the others run one after another.
    """

    name: str
    title: str
    description: str
    arguments: type[BaseModel]
    call: Callable[[Any, Desk], Document]
    is_read_only: bool = False
    is_quick: bool = False

    @cached_property
    def input_schema(self) -> Document:
        """JSON schema of the arguments."""
        schema = self.arguments.model_json_schema()
        schema.pop("description", None)
        schema.pop("title", None)
        for described in schema.get("properties", {}).values():
            described.pop("title", None)
        return schema

    def run(self, arguments: Mapping[str, Any] | None, desk: Desk) -> Document:
        """Check the arguments and do the work.

        Raises:
            UsageError: An argument is missing, unknown, or of the wrong type or range.
            FairleadError: The work failed.
        """
        try:
            checked = self.arguments.model_validate(dict(arguments or {}))
        except ValidationError as exc:
            known = ", ".join(self.arguments.model_fields)
            raise UsageError(
                f"{self.name}: {describe_validation_error(exc)}",
                hint=f"the arguments are {known}",
            ) from exc
        return self.call(checked, desk)
