"""Rules of the prediction log: what share of the requests it keeps, and what no disk may see."""

from __future__ import annotations

import json
import tomllib
import zlib
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

from pydantic import Field

from fairlead.core.errors import ConfigError
from fairlead.core.values import Config, Value

__all__ = ["ColumnRule", "LogRules", "SampleRule", "is_kept"]

_ERROR_STATUS = 400


class SampleRule(Value):
    """The share of some requests that is kept; the first rule that fits decides."""

    model: str = "*"
    """Pattern of the service's name; `*` and `?` as in file names."""
    version: str = "*"
    """Pattern of the bundle's version."""
    arm: str = "*"
    """Pattern of the arm: `baseline` or `candidate`."""
    status: str = "*"
    """Pattern of the HTTP status: `200`, `4??`, `*`."""
    rate: float = Field(ge=0, le=1)
    """Share of the requests to keep; the same id is kept or left out everywhere."""


class ColumnRule(Value):
    """What happens to some columns before they are written anywhere."""

    match: str = Field(min_length=1)
    """Pattern of the column: `age`, `input.age`, `output.*`, `pixel_?`; also `error`."""
    action: Literal["redact", "hash", "drop", "keep"]
    """`redact` writes a placeholder (numbers become missing), `hash` a keyed hash that is equal
    for equal values, `drop` leaves the column out, `keep` spares it from the rules that follow."""

    def fits(self, side: str, column: str) -> bool:
        """Return whether the rule is for a column of a side, `input` or `output`."""
        return fnmatchcase(f"{side}.{column}", self.match) or fnmatchcase(column, self.match)


class LogRules(Config):
    """What the prediction log keeps of the requests it is shown."""

    sample: tuple[SampleRule, ...] = ()
    """Rules by model, version, arm and status; a request that no rule fits is kept."""
    keep_errors: bool = True
    """Whether requests that failed are kept whatever the rules say."""
    column: tuple[ColumnRule, ...] = ()
    """Rules by column; the first that fits decides. Where there are some, messages of errors,
    which may repeat values of inputs, are redacted too unless a rule for `error` says otherwise."""
    max_text_length: int | None = Field(None, ge=1)
    """Longest text of inputs and outputs, in characters; the rest is cut off."""

    @classmethod
    def load(cls, path: Path) -> LogRules:
        """Read rules from a TOML or JSON file.

        Raises:
            ConfigError: It cannot be read, or a rule has a wrong key or value.
        """
        try:
            text = path.read_text(encoding="utf-8")
            document = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
        except (OSError, ValueError) as exc:
            raise ConfigError(
                f"the log's rules at {path} cannot be read: {exc}",
                hint="give a TOML or JSON file with `sample` and `column` rules",
            ) from exc
        if not isinstance(document, dict):
            raise ConfigError(
                f"the log's rules at {path} are no table, found {type(document).__name__}",
                hint='write {"sample": [...], "column": [...]}',
            )
        return cls.parse(document)

    def rate(self, *, model: str, version: str, arm: str, status: int) -> float:
        """Return the share of such requests that is kept."""
        if self.keep_errors and status >= _ERROR_STATUS:
            return 1.0
        for rule in self.sample:
            pairs = (
                (model, rule.model),
                (version, rule.version),
                (arm, rule.arm),
                (str(status), rule.status),
            )
            if all(fnmatchcase(value, pattern) for value, pattern in pairs):
                return rule.rate
        return 1.0

    def action(self, side: str, column: str) -> str | None:
        """Return what to do with a column, or None.

        Args:
            side: `input` or `output`.
            column: Name of the profiled column.
        """
        for rule in self.column:
            if rule.fits(side, column):
                return None if rule.action == "keep" else rule.action
        return None

    @property
    def error_action(self) -> str | None:
        """What to do with messages of errors, or None."""
        for rule in self.column:
            if fnmatchcase("error", rule.match):
                return None if rule.action == "keep" else rule.action
        return "redact" if self.column else None


def is_kept(request_id: str, rate: float) -> bool:
    """Decide by the id alone, so that workers, arms and restarts agree."""
    return rate >= 1.0 or zlib.crc32(request_id.encode("utf-8", "replace")) < rate * 2**32
