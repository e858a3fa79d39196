"""Objects named by the user as `package.module:attribute` or `file.py:attribute`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fairlead.backends.code_files import split_reference
from fairlead.backends.code_import import importing_from
from fairlead.core.errors import NotFoundError

__all__ = ["load_attribute"]


def load_attribute(reference: str) -> Any:  # noqa: ANN401 (whatever the user named)
    """Import what `package.module:attribute` or `file.py:attribute` names.

    Modules are looked for in the working directory too.

    Naming it is the consent to run its code.

    Raises:
        NotFoundError: There is no such module or attribute, or importing it failed.
    """
    file, module_name, attribute = split_reference(reference)
    # Modules of another folder may have the same names as those beside a file.
    with _working_directory_importable() if file is None else importing_from(file.parent):
        try:
            found: Any = importlib.import_module(module_name)
        except (Exception, SystemExit) as exc:
            raise NotFoundError(
                f"importing `{module_name}` failed: {type(exc).__name__}: {exc}".splitlines()[0],
                hint="run the command in the folder that holds the module, or install it",
            ) from exc
    for part in attribute.split("."):
        if not hasattr(found, part):
            names = ", ".join(name for name in dir(found) if not name.startswith("_"))
            raise NotFoundError(
                f"{reference}: `{part}` does not exist in {module_name}",
                hint=f"it has {names[:300] or 'no public names'}",
            )
        found = getattr(found, part)
    return found


@contextmanager
def _working_directory_importable() -> Iterator[None]:
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        if folder in sys.path:
            sys.path.remove(folder)
