"""What differs between two runs."""

from __future__ import annotations

from collections.abc import Mapping

from fairlead.core.report import Finding, Measure, Report, Table
from fairlead.core.run import Run
from fairlead.mlops.tracking.card import CARD

__all__ = ["compare_runs"]

_NO_VALUE = "—"


def compare_runs(first: Run, second: Run) -> Report:
    """Describe the differences of two runs: metrics, parameters, code, data, packages.

    Args:
        first: The one that numbers are compared with.
        second: The other one.
    """
    parts = {
        "Parameters": (first.params, second.params),
        "Code and command": (_code(first), _code(second)),
        "Files": (_files(first), _files(second)),
        "Packages": (_packages(first), _packages(second)),
        "Environment": (first.environment, second.environment),
    }
    tables = [
        table
        for title, (one, two) in parts.items()
        if (table := _differences(title, one, two, first, second))
    ]
    shared = sorted(set(first.metrics) & set(second.metrics))
    names = [table.title.lower() for table in tables]
    return Report(
        skill=CARD.id,
        title=f"{first.name} and {second.name}",
        summary=f"They differ in {', '.join(names)}." if names else "Nothing recorded differs.",
        measures=tuple(
            Measure(name=name, value=second.metrics[name], baseline=first.metrics[name])
            for name in shared
        ),
        findings=_findings(first, second),
        tables=tuple(tables),
        details={
            "runs": [first.id, second.id],
            "metrics": {
                name: [first.metrics.get(name), second.metrics.get(name)]
                for name in sorted({*first.metrics, *second.metrics})
            },
            "differences": {table.title: [list(row) for row in table.rows] for table in tables},
        },
    )


def _differences(
    title: str, one: Mapping[str, str], two: Mapping[str, str], first: Run, second: Run
) -> Table | None:
    rows = tuple(
        (key, one.get(key, _NO_VALUE), two.get(key, _NO_VALUE))
        for key in sorted({*one, *two})
        if one.get(key) != two.get(key)
    )
    columns = ("what", first.id, second.id)
    return Table(title=title, columns=columns, rows=rows) if rows else None


def _packages(run: Run) -> dict[str, str]:
    return {"python": run.python, **run.packages}


def _code(run: Run) -> dict[str, str]:
    return {
        "command": " ".join(run.command),
        "commit": (run.code.commit or "none")[:12],
        "uncommitted changes": run.code.diff.digest[:19] if run.code.diff else "none",
        "status": run.status,
    }


def _files(run: Run) -> dict[str, str]:
    every = [*run.files, *run.code.untracked]
    return {f"{file.role} {file.path}": file.digest[:19] or "not read" for file in every}


def _findings(first: Run, second: Run) -> tuple[Finding, ...]:
    found = []
    for name in sorted(set(first.metrics) ^ set(second.metrics)):
        where = first.id if name in first.metrics else second.id
        found.append(Finding(level="info", text=f"only {where} logged the metric {name}"))
    for run in (first, second):
        if run.code.is_dirty:
            text = f"{run.id} ran with uncommitted changes; they are stored with the run"
            found.append(Finding(level="info", text=text))
    return tuple(found)
