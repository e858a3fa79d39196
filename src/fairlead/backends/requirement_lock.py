"""Exact versions and digests of the packages that an image installs, resolved by pip."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any, Literal

from fairlead.backends.own_wheel import name_of
from fairlead.core.errors import WorkspaceError
from fairlead.core.extras import requires
from fairlead.core.files import scratch_folder

__all__ = ["Architecture", "installed_versions", "lock_requirements"]

Architecture = Literal["amd64", "arm64"]

_MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}
_GLIBC_MINORS = range(5, 37)
"""Debian 12 has glibc 2.36, which runs wheels that were built for any older one."""
_NOT_PINNED = frozenset({"fairlead", "pip", "setuptools"})
_TIMEOUT_S = 300


def installed_versions() -> dict[str, str]:
    """Return distribution → version of this environment, names in lower case."""
    found = {}
    for item in metadata.distributions():
        name = item.metadata["Name"]
        if name:
            found[name.lower().replace("_", "-")] = item.version
    return found


def lock_requirements(
    needs: Sequence[str], *, python: str, architecture: Architecture
) -> tuple[str, ...]:
    """Resolve requirements for an image and return lines with versions and digests.

    Every distribution that is installed here gets the version that is installed here, so that the
    image runs what was measured.

    Args:
        needs: Lines of a requirements file.
        python: Version of Python in the image, for example `3.12`.
        architecture: CPU of the image.

    Raises:
        WorkspaceError: pip is missing, cannot reach its index, or finds no wheels that fit.
    """
    with scratch_folder("lock") as folder:
        (folder / "needs.txt").write_text("\n".join(needs) + "\n")
        pins = [
            f"{name}=={version}"
            for name, version in sorted(installed_versions().items())
            if name not in _NOT_PINNED and "+" not in version
        ]
        (folder / "installed.txt").write_text("\n".join(pins) + "\n")
        report = _ask_pip(
            "--requirement", str(folder / "needs.txt"),
            "--constraint", str(folder / "installed.txt"),
            "--target", str(folder / "nowhere"),
            "--python-version", python,
            *_platforms(architecture),
        )  # fmt: skip
    return tuple(sorted(_locked(item) for item in report["install"]))


def _platforms(architecture: Architecture) -> list[str]:
    machine = _MACHINES[architecture]
    names = [f"manylinux_2_{minor}_{machine}" for minor in reversed(_GLIBC_MINORS)]
    names += [f"manylinux2014_{machine}", f"manylinux2010_{machine}", f"manylinux1_{machine}"]
    return [word for name in names for word in ("--platform", name)]


def _ask_pip(*words: str) -> Mapping[str, Any]:
    hint = "check the index that pip uses, or give --no-lock for exact versions without digests"
    command = [
        sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet",
        "--disable-pip-version-check", "--only-binary", ":all:", "--report", "-", *words,
    ]  # fmt: skip
    try:
        done = subprocess.run(  # noqa: S603 (our own interpreter)
            command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as exc:
        raise WorkspaceError(
            f"pip did not resolve the packages within {_TIMEOUT_S} s", hint=hint
        ) from exc
    if done.returncode != 0:
        errors = [line for line in done.stderr.splitlines() if "ERROR" in line] or [done.stderr]
        raise WorkspaceError(
            f"pip cannot resolve the packages of the image: {errors[-1].strip()[:300]}", hint=hint
        )
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def _locked(item: Mapping[str, Any]) -> str:
    about = item["metadata"]
    digest = item["download_info"]["archive_info"]["hashes"]["sha256"]
    return f"{name_of(about['name'])}=={about['version']} --hash=sha256:{digest}"


def installed_closure(needs: Sequence[str]) -> tuple[str, ...]:
    """Return requirements and everything they need, in the versions that are installed here.

    Args:
        needs: Lines of a requirements file.

    Raises:
        WorkspaceError: A package that is needed is not installed here, so nobody knows its version.
    """
    versions = installed_versions()
    found: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    queue = list(needs)
    while queue:
        line = queue.pop().partition(";")[0]
        name, extras = name_of(line), line.partition("[")[2].partition("]")[0]
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        if name not in versions:
            raise WorkspaceError(
                f"`{name}` is needed in the image but is not installed here",
                hint=f"pip install {name}, or leave --no-lock out",
            )
        found[name] = f"{name}=={versions[name]}"
        queue += [need for need in metadata.requires(name) or [] if _is_needed(need, extras)]
    return tuple(sorted(found.values()))


def _is_needed(line: str, extras: str) -> bool:
    """Whether a requirement's marker holds on this machine, which stands for the image."""
    marker = line.partition(";")[2].strip()
    if not marker:
        return True
    with requires("serve", needed_by="pinning packages without an index"):
        from packaging.markers import Marker

    parsed = Marker(marker)
    return any(parsed.evaluate({"extra": extra.strip()}) for extra in ("", *extras.split(",")))
