"""The base of every value: frozen, and strict about the keys it knows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from fairlead.core.errors import ConfigError

__all__ = ["Config", "Value", "describe_validation_error"]


class Value(BaseModel):
    """A frozen value that refuses unknown keys; two equal values are interchangeable."""

    # A command uses few of the values that its modules define: each is built on first use.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=True, defer_build=True)


class Config(Value):
    """The settings of one skill: every knob with unit, default and range."""

    @classmethod
    def parse(cls, settings: Mapping[str, Any]) -> Self:
        """Build the config from loose settings.

        Raises:
            ConfigError: A key is unknown, or a value has the wrong type or range.
        """
        try:
            return cls.model_validate(dict(settings))
        except ValidationError as exc:
            known = ", ".join(sorted(cls.model_fields))
            raise ConfigError(
                f"{cls.__name__}: {describe_validation_error(exc)}",
                hint=f"known settings are {known}",
            ) from exc


def describe_validation_error(error: ValidationError) -> str:
    """Put every field error of a validation into one line, with the value that was found."""
    parts = []
    for item in error.errors(include_url=False):
        where = ".".join(str(part) for part in item["loc"]) or "value"
        found = repr(item.get("input"))
        shown = found if len(found) <= 60 else found[:57] + "..."
        parts.append(f"`{where}`: {item['msg']} (found {shown})")
    return "; ".join(parts)
