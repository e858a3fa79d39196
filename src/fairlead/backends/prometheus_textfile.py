"""Drift as gauges in the text format that node_exporter's textfile collector reads."""

from __future__ import annotations

import math
from pathlib import Path

from fairlead.core.errors import UsageError
from fairlead.core.files import write_text
from fairlead.core.signal import Signal

__all__ = ["render_drift", "write_drift"]


def write_drift(path: Path, signal: Signal, effects: dict[str, float], *, at_s: float) -> None:
    """Write the gauges of one comparison, whole or not at all.

    Args:
        path: File in the collector's directory; its name ends in `.prom`.
        signal: The verdict.
        effects: Column → effect, drifted or not.
        at_s: When the comparison was made, in seconds since 1970.

    Raises:
        UsageError: The collector would not read a file of that name.
        WorkspaceError: It cannot be written.
    """
    if path.suffix != ".prom":
        raise UsageError(
            f"{path} does not end in .prom, so node_exporter would not read it",
            hint=f"write to {path.with_suffix('.prom')}",
        )
    write_text(path, render_drift(signal, effects, at_s=at_s))
    # The collector runs as a user of its own.
    path.chmod(0o644)


def render_drift(signal: Signal, effects: dict[str, float], *, at_s: float) -> str:
    """Return the gauges of one comparison as text."""
    service = _escaped(signal.service)
    is_alert = int(signal.is_alerting)
    lines = [
        "# HELP fairlead_drift_effect Size of a column's shift against the reference profile.",
        "# TYPE fairlead_drift_effect gauge",
        *(
            f'fairlead_drift_effect{{service="{service}",column="{_escaped(column)}"}} {value:.6g}'
            for column, value in effects.items()
            if math.isfinite(value)
        ),
        "# HELP fairlead_drift_alert Whether the last window alerted.",
        "# TYPE fairlead_drift_alert gauge",
        f'fairlead_drift_alert{{service="{service}",kind="{signal.kind}"}} {is_alert}',
        "# HELP fairlead_drift_rows Rows of the last window.",
        "# TYPE fairlead_drift_rows gauge",
        f'fairlead_drift_rows{{service="{service}"}} {signal.n_rows}',
        "# HELP fairlead_drift_timestamp_seconds When the last window was compared.",
        "# TYPE fairlead_drift_timestamp_seconds gauge",
        f'fairlead_drift_timestamp_seconds{{service="{service}"}} {at_s:.3f}',
    ]
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
