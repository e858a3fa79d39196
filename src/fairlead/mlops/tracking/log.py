"""The log of a run: a file of JSON lines that any process can append to, in any language.

    {"param": "lr", "value": 0.1}
    {"metric": "loss", "value": 0.31, "step": 7}
    {"artifact": "plots/loss.png"}

Each line is one write to the operating system, so a process that is killed loses nothing that it
logged; the database is written once, when the run ends.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from fairlead.core.errors import DataError
from fairlead.core.files import translated_os_errors
from fairlead.core.run import MetricPoint

__all__ = ["LoggedValues", "RunLog", "read_log"]

_MAX_NOTES = 20


@dataclass
class LoggedValues:
    """What a run logged.

    Attributes:
        params: Name → value, the last one when a name was logged twice.
        points: Values of metrics in the order they were logged.
        artifacts: Paths as they were logged.
        notes: Lines that could not be read, and why.
    """

    params: dict[str, str] = field(default_factory=dict)
    points: list[MetricPoint] = field(default_factory=list)
    artifacts: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def metrics(self) -> dict[str, float]:
        """Last value of each metric."""
        return {point.name: point.value for point in self.points}


class RunLog:
    """Appends to the log of a run; several processes and threads may do so at once."""

    def __init__(self, path: Path) -> None:
        """Open the log, creating it when it does not exist.

        Raises:
            WorkspaceError: The file cannot be written.
        """
        self._path = path
        with translated_os_errors(path, "the log of the run"):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC)

    def log_param(self, name: str, value: object) -> None:
        """Record a parameter; the last value of a name counts."""
        self._append({"param": _name(name), "value": str(value)})

    def log_params(self, params: Mapping[str, object]) -> None:
        """Record several parameters."""
        for name, value in params.items():
            self.log_param(name, value)

    def log_metric(self, name: str, value: float, step: int | None = None) -> None:
        """Record one value of a metric.

        Raises:
            DataError: The value is not a number.
        """
        try:
            number = float(value)
        except (TypeError, ValueError) as exc:
            raise DataError(
                f"the metric {name!r} has the value {value!r}, expected a number",
                hint="log text with log_param",
            ) from exc
        at = datetime.now(UTC).isoformat()
        self._append({"metric": _name(name), "value": number, "step": step, "at": at})

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Record one value of several metrics."""
        for name, value in metrics.items():
            self.log_metric(name, value, step)

    def log_artifact(self, path: str | Path) -> None:
        """Name a file whose content is stored when the run ends."""
        self._append({"artifact": str(Path(path).absolute())})

    def close(self) -> None:
        """Close the file."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _append(self, line: dict[str, Any]) -> None:
        with translated_os_errors(self._path, "the log of the run"):
            os.write(self._handle, f"{json.dumps(line)}\n".encode())


def _name(name: str) -> str:
    if not name or len(name) > 250 or not name.isprintable():
        raise DataError(
            f"{name!r} cannot name a parameter or a metric", hint="use up to 250 printable letters"
        )
    return name


def read_log(path: Path) -> LoggedValues:
    """Read a log; a line that cannot be read becomes a note instead of an error."""
    found = LoggedValues()
    if not path.is_file():
        return found
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        try:
            _take(json.loads(line), found)
        except (ValueError, TypeError, KeyError, DataError) as exc:
            if len(found.notes) < _MAX_NOTES:
                found.notes.append(f"line {number} of the run's log was left out: {exc!r}")
    return found


def _take(line: Any, found: LoggedValues) -> None:  # noqa: ANN401 (JSON enters here)
    if "metric" in line:
        step = line.get("step")
        at = datetime.fromisoformat(line["at"]) if line.get("at") else datetime.now(UTC)
        found.points.append(
            MetricPoint(
                name=_name(str(line["metric"])),
                value=float(line["value"]),
                step=None if step is None else int(step),
                at=at if at.tzinfo else at.astimezone(),
            )
        )
    elif "param" in line:
        found.params[_name(str(line["param"]))] = str(line["value"])
    else:
        found.artifacts.append(str(line["artifact"]))
