"""Which interpreter, packages and settings a run was made with; never a secret."""

from __future__ import annotations

import json
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

from fairlead.core.evidence import current_environment

__all__ = ["ALLOWED_NAMES", "describe_environment", "describe_packages", "without_secrets"]

ALLOWED_NAMES = (
    "CUDA_VISIBLE_DEVICES",
    "LANG",
    "LC_ALL",
    "MKL_NUM_THREADS",
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "PYTHONHASHSEED",
    "TZ",
)
"""Environment variables that change results and hold no secret."""

_SECRET = re.compile(
    r"pass(word|wd|phrase)?$|secret|token|api[-_]?key|access[-_]?key|credential", re.IGNORECASE
)
_URL_PASSWORD = re.compile(r"(\w+://[^/\s:@]+):[^@\s/]+@")
_PROBE = """
import json, platform, importlib.metadata as m
found = {d.metadata["Name"]: d.version for d in m.distributions() if d.metadata["Name"]}
print(json.dumps([platform.python_version(), found]))
"""


def describe_environment(environ: Mapping[str, str], names: Sequence[str] = ()) -> dict[str, str]:
    """Return the machine, and the environment variables that are allowed by name.

    Args:
        environ: The environment of the process.
        names: Further variables to record.
    """
    found = {key: value for key, value in current_environment().items() if key != "python"}
    wanted = sorted({*ALLOWED_NAMES, *names})
    return found | {name: environ[name] for name in wanted if name in environ}


def describe_packages(command: Sequence[str]) -> tuple[str, dict[str, str]]:
    """Return the Python version and the installed distributions of the command's interpreter.

    A command that does not begin with a Python interpreter gets those of this process.
    """
    program = shutil.which(command[0]) if command else None
    is_python = program is not None and re.fullmatch(r"python[\d.]*", Path(program).name)
    if program is not None and is_python and program != sys.executable:
        try:
            answer = subprocess.run(  # noqa: S603 (the interpreter the user is about to run)
                [program, "-c", _PROBE], capture_output=True, timeout=30, check=True
            )
            version, packages = json.loads(answer.stdout)
            return str(version), dict(sorted(packages.items()))
        except (subprocess.SubprocessError, OSError, ValueError):
            return "unknown", {}
    found = {item.metadata["Name"]: item.version for item in metadata.distributions()}
    return platform.python_version(), dict(sorted(found.items()))


def without_secrets(command: Sequence[str]) -> tuple[str, ...]:
    """Replace by `***` what follows a word such as `--password`, and passwords in URLs.

    Examples:
        >>> without_secrets(["train", "--api-key", "x1", "--lr=1", "db://me:pw@host"])
        ('train', '--api-key', '***', '--lr=1', 'db://me:***@host')
    """
    shown: list[str] = []
    is_secret_next = False
    for word in command:
        name, sign, _ = word.partition("=")
        if is_secret_next and not word.startswith("-"):
            shown.append("***")
            is_secret_next = False
            continue
        is_secret_next = not sign and word.startswith("-") and bool(_SECRET.search(word))
        if sign and _SECRET.search(name):
            shown.append(f"{name}=***")
        else:
            shown.append(_URL_PASSWORD.sub(r"\1:***@", word))
    return tuple(shown)
