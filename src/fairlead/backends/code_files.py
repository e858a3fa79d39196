"""The Python files that a class or function needs: found by reading imports, never by running.

What lies beside the file is copied into a bundle; what comes from an installed distribution is a
requirement; the standard library is neither.
"""

from __future__ import annotations

import ast
import importlib.util
import shutil
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path

from fairlead.core.errors import ModelError, NotFoundError
from fairlead.core.files import user_path

__all__ = ["CodeFiles", "collect_code", "split_reference"]

_HINT = "write it as module:name or path/to/file.py:name"


@dataclass(frozen=True)
class CodeFiles:
    """The code behind one import string.

    Attributes:
        root: Folder that the files are relative to.
        files: Relative paths of the files to copy, sorted; empty when the code is installed.
        entry: `module:name`, importable with the copied files.
        requirements: Distribution → version of what the files import.
    """

    root: Path
    files: tuple[str, ...]
    entry: str
    requirements: dict[str, str]

    def copy_to(self, folder: Path) -> None:
        """Put the files into a folder, with the folders of their packages."""
        for name in self.files:
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.root / name, target)


def split_reference(reference: str) -> tuple[Path | None, str, str]:
    """Cut `module:name` or `file.py:name` into the file, the module and the name.

    Raises:
        NotFoundError: The file does not exist, or nothing is named in it.
    """
    where, mark, name = reference.rpartition(":")
    if not mark or not name.replace(".", "_").isidentifier():
        raise NotFoundError(f"{reference!r} names no class or function", hint=_HINT)
    if not where.endswith(".py"):
        return None, where, name
    file = user_path(where).resolve()
    if not file.is_file():
        raise NotFoundError(f"there is no file {where}", hint=_HINT)
    return file, file.stem, name


def collect_code(reference: str) -> CodeFiles:
    """Find the files and distributions that a class or function needs.

    Args:
        reference: `module:name` or `path/to/file.py:name`; modules are looked for in the working
            directory first.

    Raises:
        NotFoundError: There is no such module or file.
        ModelError: A file is no Python, or hides a module that others in the process need.
    """
    file, module, name = split_reference(reference)
    if file is not None:
        root = file.parent
    else:
        root, file = _find_module(module)
    entry = f"{module}:{name}"
    if _is_installed(file):
        return CodeFiles(root, (), entry, _distributions({module.split(".")[0]}))
    local, foreign = _walk(root, file)
    _refuse_shadows({path.relative_to(root).parts[0].removesuffix(".py") for path in local})
    names = tuple(sorted(path.relative_to(root).as_posix() for path in local))
    return CodeFiles(root, names, entry, _distributions(foreign))


def _refuse_shadows(names: set[str]) -> None:
    """Refuse local modules with the name of one that is installed.

    While a bundle is loaded its modules come first, for every thread of the server.
    """
    for name in sorted(names):
        found = name in sys.stdlib_module_names
        if not found and name in _known_distributions():
            spec = importlib.util.find_spec(name)
            origin = None if spec is None else spec.origin
            found = origin is not None and _is_installed(Path(origin))
        if found:
            raise ModelError(
                f"{name}.py, or the folder {name}, has the name of an installed module",
                hint="give it another name, so that it cannot be taken for the other one",
            )


def _find_module(module: str) -> tuple[Path, Path]:
    """Return the folder that is searched for a module, and the module's file."""
    here = _resolve(Path.cwd(), module)
    if here is not None:
        return Path.cwd(), here
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        spec = None
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        raise NotFoundError(
            f"there is no module `{module}`",
            hint="run the command in the folder that holds it, or name the file: file.py:name",
        )
    file = Path(spec.origin)
    depth = len(module.split(".")) + (file.name == "__init__.py")
    return file.parents[depth - 1], file


def _is_installed(file: Path) -> bool:
    paths = {Path(sysconfig.get_path(kind)).resolve() for kind in ("purelib", "platlib", "stdlib")}
    return any(path in file.resolve().parents for path in paths)


def _resolve(root: Path, module: str) -> Path | None:
    """Return the file of a module below a folder."""
    path = root.joinpath(*module.split("."))
    for file in (path.with_suffix(".py"), path / "__init__.py"):
        if file.is_file():
            return file
    return None


def _walk(root: Path, start: Path) -> tuple[set[Path], set[str]]:
    """Follow imports from one file; return the local files and the foreign top-level modules."""
    local: set[Path] = set()
    foreign: set[str] = set()
    queue = [start]
    while queue:
        file = queue.pop()
        if file in local:
            continue
        local.add(file)
        queue += _packages_above(root, file)
        for module in _imports(root, file):
            found = _resolve(root, module)
            if found is not None:
                queue.append(found)
            elif not _is_local_name(root, module):
                foreign.add(module.split(".")[0])
    return local, foreign


def _packages_above(root: Path, file: Path) -> list[Path]:
    inits = [folder / "__init__.py" for folder in file.parents if root in folder.parents]
    return [init for init in inits if init.is_file()]


def _is_local_name(root: Path, module: str) -> bool:
    """Whether a dotted name is an attribute of a local module rather than a module."""
    parent = module.rpartition(".")[0]
    return bool(parent) and (_resolve(root, parent) is not None or (root / parent).is_dir())


def _imports(root: Path, file: Path) -> Iterator[str]:
    """Yield the absolute names of the modules that a file may import."""
    try:
        tree = ast.parse(file.read_bytes(), filename=str(file))
    except (SyntaxError, ValueError) as exc:
        raise ModelError(f"{file} is no Python: {exc}", hint="mend the file") from exc
    package = file.parent.relative_to(root).parts
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            parts = (*base, *(node.module.split(".") if node.module else ()))
            if parts:
                yield ".".join(parts)
            yield from (".".join((*parts, alias.name)) for alias in node.names)


def _distributions(modules: set[str]) -> dict[str, str]:
    """Return distribution → version of top-level modules; the standard library is left out."""
    found = {}
    for module in modules - set(sys.stdlib_module_names):
        for name in _known_distributions().get(module, ()):
            found[name] = metadata.version(name)
    return dict(sorted(found.items()))


@cache
def _known_distributions() -> dict[str, list[str]]:
    return dict(metadata.packages_distributions())
