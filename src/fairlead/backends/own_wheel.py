"""A wheel of the installed Fairlead, so that an image runs the very code that wrote its files."""

from __future__ import annotations

import base64
import hashlib
import zipfile
from importlib import metadata
from pathlib import Path

from fairlead.core import version
from fairlead.core.version import __version__

__all__ = ["name_of", "own_requirements", "write_own_wheel"]

_TIME = (1980, 1, 1, 0, 0, 0)
_WHEEL = "Wheel-Version: 1.0\nGenerator: fairlead\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


def write_own_wheel(folder: Path, code: Path | None = None) -> Path:
    """Write `fairlead-<version>-py3-none-any.whl`; equal code gives equal bytes.

    Args:
        folder: Where to put it.
        code: Folder of the package; the one that runs when None.

    Returns:
        The file.
    """
    root = code or Path(version.__file__).parents[1]
    about = f"fairlead-{__version__}.dist-info"
    files = {
        f"fairlead/{path.relative_to(root).as_posix()}": path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }
    distribution = metadata.distribution("fairlead")
    for name in ("METADATA", "entry_points.txt"):
        files[f"{about}/{name}"] = (distribution.read_text(name) or "").encode()
    files[f"{about}/WHEEL"] = _WHEEL.encode()
    lines = [f"{name},sha256={_digest(data)},{len(data)}" for name, data in files.items()]
    files[f"{about}/RECORD"] = ("\n".join([*lines, f"{about}/RECORD,,"]) + "\n").encode()
    target = folder / f"fairlead-{__version__}-py3-none-any.whl"
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            info = zipfile.ZipInfo(name, _TIME)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = 0o644 << 16
            archive.writestr(info, data)
    return target


def _digest(data: bytes) -> str:
    digest = hashlib.sha256(data).digest()
    return base64.urlsafe_b64encode(digest).decode().rstrip("=")


def own_requirements(*extras: str, without: frozenset[str] = frozenset()) -> list[str]:
    """Return what Fairlead and some of its extras need, as lines of a requirements file.

    Args:
        extras: Names of extras; those that they include are followed.
        without: Distributions to leave out.
    """
    wanted, found = list(extras), []
    lines = metadata.requires("fairlead") or []
    for extra in (None, *wanted):
        found += [line for line in lines if _extra_of(line) == extra]
    included = [line for line in found if line.startswith("fairlead[")]
    for line in included:
        names = line.partition("[")[2].partition("]")[0].split(",")
        found += own_requirements(*names)
    # Markers other than extras exclude Windows, which is not what runs in a container.
    kept = dict.fromkeys(line.partition(";")[0].strip() for line in found)
    return [line for line in kept if name_of(line) not in {"fairlead", *without}]


def _extra_of(line: str) -> str | None:
    marker = line.partition(";")[2]
    _, mark, rest = marker.partition("extra ==")
    return rest.strip().strip("'\"").partition("'")[0].partition('"')[0] if mark else None


def name_of(line: str) -> str:
    """Return the distribution that a line of a requirements file is about, in lower case."""
    name = line.strip()
    for mark in "<>=!~[; @":
        name = name.partition(mark)[0]
    return name.lower().replace("_", "-")
