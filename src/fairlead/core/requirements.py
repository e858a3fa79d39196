"""The libraries a bundle says it needs: `requirements.txt`, and the same lines in `conda.yaml`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

__all__ = ["RUNTIME_LIBRARIES", "state_runtime"]

RUNTIME_LIBRARIES: Mapping[str, str] = {"OpenVINO": "openvino"}
"""Execution provider → the library that brings it, where that is not ONNX Runtime."""

_NAME = re.compile(r"^[A-Za-z0-9._-]+")
_ITEM = re.compile(r"^(\s*)- (.*)$")


def state_runtime(folder: Path, provider: str) -> None:
    """List the library that runs the model, and no other that ran an ancestor of it.

    Args:
        folder: A bundle that is being written.
        provider: Its execution provider.
    """
    file = folder / "requirements.txt"
    if not file.is_file():
        return
    old = file.read_text().splitlines()
    needed = RUNTIME_LIBRARIES.get(provider)
    others = {name for name in RUNTIME_LIBRARIES.values() if name != needed}
    kept = [line for line in old if _name(line) not in others]
    added = needed is not None and all(_name(line) != needed for line in kept)
    new = [*kept, *([_line(needed)] if needed is not None and added else [])]
    if new == old:
        return
    file.write_text("\n".join(new) + "\n")
    conda = folder / "conda.yaml"
    if conda.is_file():
        conda.write_text("\n".join(_in_list(conda.read_text().splitlines(), old, new)) + "\n")


def _in_list(lines: list[str], old: list[str], new: list[str]) -> list[str]:
    """Put the new requirements where the old ones stand one below the other in a YAML list."""
    places = [
        (place, match[1])
        for place, line in enumerate(lines)
        if (match := _ITEM.match(line)) and match[2].strip("'\"") in old
    ]
    if not places:
        return lines
    first, indent = places[0]
    taken = {place for place, _ in places}
    rest = [line for place, line in enumerate(lines) if place not in taken]
    return [*rest[:first], *(f"{indent}- {line}" for line in new), *rest[first:]]


def _line(name: str) -> str:
    try:
        return f"{name}=={version(name)}"
    except PackageNotFoundError:
        return name


def _name(line: str) -> str:
    match = _NAME.match(line.strip())
    return match[0].lower().replace("_", "-") if match else ""
