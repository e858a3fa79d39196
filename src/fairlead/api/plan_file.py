"""Plans as TOML files that people read and edit."""

from __future__ import annotations

import tomllib
from pathlib import Path

import tomlkit
from pydantic import ValidationError
from tomlkit.items import Table

from fairlead.core.errors import NotFoundError, PlanError
from fairlead.core.files import digest_bytes, write_text
from fairlead.core.plan import Plan, PlanStep
from fairlead.core.values import describe_validation_error

__all__ = ["plan_digest", "plan_from_toml", "plan_to_toml", "read_plan", "write_plan"]

_HEAD = """\
A plan: the steps that `fairlead run` takes, in order. Edit it freely.
`gate = "stop"` ends the plan with exit 1 when the step's answer is no;
`gate = "keep"` goes on with what the step was given.
"""


def plan_to_toml(plan: Plan) -> str:
    """Write a plan as TOML with comments; `plan_from_toml` reads it back unchanged.

    Args:
        plan: The plan.

    Returns:
        UTF-8 text.
    """
    document = tomlkit.document()
    for line in _HEAD.splitlines():
        document.add(tomlkit.comment(line))
    head = plan.model_dump(mode="json", exclude={"steps"}, exclude_none=True)
    for key, value in head.items():
        document.add(key, value)
    steps = tomlkit.aot()
    for step in plan.steps:
        steps.append(_step_table(step))
    document.add("steps", steps)
    return tomlkit.dumps(document)


def _step_table(step: PlanStep) -> Table:
    table = tomlkit.table()
    for key, value in step.model_dump(mode="json", exclude={"settings"}).items():
        table.add(key, value)
    settings = tomlkit.table()
    for key, value in step.settings.items():
        if value is not None:
            settings.add(key, value)
    table.add("settings", settings)
    return table


def plan_from_toml(text: str, *, source: str = "the plan") -> Plan:
    """Read a plan from TOML.

    Raises:
        PlanError: It is not TOML, a key is unknown or missing, or a value does not fit.
    """
    try:
        return Plan.model_validate(tomllib.loads(text))
    except (tomllib.TOMLDecodeError, RecursionError) as exc:
        raise PlanError(
            f"{source} is not valid TOML: {exc}", hint="mend the line, or make the plan again"
        ) from exc
    except ValidationError as exc:
        raise PlanError(
            f"{source} does not fit: {describe_validation_error(exc)}",
            hint="make a fresh plan with `fairlead plan` and compare",
        ) from exc


def read_plan(path: Path) -> Plan:
    """Read a plan file.

    Raises:
        NotFoundError: There is no such file.
        PlanError: It cannot be read as a plan.
    """
    if not path.is_file():
        raise NotFoundError(
            f"there is no plan at {path}", hint='make one with `fairlead plan "…" -o plan.toml`'
        )
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise PlanError(
            f"{path} cannot be read as text: {exc}", hint="make the plan again"
        ) from exc
    return plan_from_toml(text, source=str(path))


def write_plan(plan: Plan, path: Path) -> None:
    """Write a plan file atomically.

    Raises:
        WorkspaceError: The folder cannot be written.
    """
    write_text(path, plan_to_toml(plan))


def plan_digest(plan: Plan) -> str:
    """Return `sha256:…` of what a plan does; comments and layout do not count."""
    return digest_bytes(plan.model_dump_json().encode())
