"""Code from a bundle, imported so that two bundles with modules of the same name stay apart."""

from __future__ import annotations

import importlib
import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from fairlead.core.errors import ModelCodeError, ModelError

__all__ = ["import_entry", "importing_from", "reason_of"]

_log = logging.getLogger(__name__)
_lock = threading.RLock()


def import_entry(folder: Path, entry: str) -> Any:  # noqa: ANN401 (a class or a function)
    """Import what `module:name` names, from the modules in a folder first.

    Raises:
        ModelError: There is no such module or name, or a library that it needs is missing.
        ModelCodeError: The code broke while it was imported.
    """
    module_name, _, attribute = entry.partition(":")
    with importing_from(folder):
        found: Any = _import(module_name, entry)
    for part in attribute.split("."):
        found = getattr(found, part, None)
    if found is None:
        raise ModelError(
            f"`{attribute}` does not exist in {module_name}", hint="pack the model again"
        )
    return found


def _import(module_name: str, entry: str) -> ModuleType:
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as exc:
        raise ModelError(
            f"the code of `{entry}` needs `{exc.name}`, which is not installed",
            hint="install the packages of the bundle's requirements.txt",
        ) from exc
    except (Exception, SystemExit) as exc:
        _log.error("importing %s failed", entry, exc_info=exc)
        raise ModelCodeError(
            f"importing the code of `{entry}` failed: {reason_of(exc)}",
            hint="mend the code and pack it again",
        ) from exc


@contextmanager
def importing_from(folder: Path) -> Iterator[None]:
    """Let imports within the block find a folder's modules first, and hide them afterwards.

    The modules live on in the objects that use them, but not in `sys.modules`: the next bundle
    may have modules of the same names. Nothing is compiled into the folder, for its files are
    covered by digests.
    """
    with _lock:
        names = _top_level(folder)
        before = {name: sys.modules.pop(name) for name in _of(names)}
        had_bytecode, sys.dont_write_bytecode = sys.dont_write_bytecode, True
        sys.path.insert(0, str(folder))
        importlib.invalidate_caches()
        try:
            yield
        finally:
            sys.path.remove(str(folder))
            sys.dont_write_bytecode = had_bytecode
            for name in _of(names):
                del sys.modules[name]
            sys.modules.update(before)


def _top_level(folder: Path) -> set[str]:
    if not folder.is_dir():
        return set()
    return {path.stem for path in folder.iterdir() if path.is_dir() or path.suffix == ".py"}


def _of(names: set[str]) -> list[str]:
    return [name for name in sys.modules if name.split(".")[0] in names]


def reason_of(error: BaseException) -> str:
    """Return the kind of an error and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
