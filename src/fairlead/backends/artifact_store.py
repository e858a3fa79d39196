"""Content-addressed files: what is stored under a digest can neither change nor be stored twice.

artifacts/
  files/ab/abcdef…    one file, named by its sha256
  bundles/abcdef…/    one bundle, named by the digest of the bundle
"""

from __future__ import annotations

import shutil
from pathlib import Path

from fairlead.core.bundle import Bundle
from fairlead.core.errors import ConflictError, IntegrityError, NotFoundError
from fairlead.core.files import (
    digest_bytes,
    digest_file,
    new_folder,
    translated_os_errors,
    write_bytes,
)

__all__ = ["ArtifactStore"]


class ArtifactStore:
    """The folder `artifacts/` of a workspace."""

    def __init__(self, root: Path) -> None:
        """Name the folder; it is made by the first write."""
        self._root = root

    def put_bytes(self, data: bytes) -> str:
        """Store content and return its digest.

        Raises:
            WorkspaceError: The folder cannot be written or the disk is full.
        """
        digest = digest_bytes(data)
        path = self._file(digest)
        if not path.exists():
            write_bytes(path, data)
        return digest

    def put_file(self, source: Path) -> str:
        """Store a copy of a file and return its digest.

        Raises:
            WorkspaceError: The folder cannot be written or the disk is full.
        """
        with translated_os_errors(source, "a copy of the file"):
            return self.put_bytes(source.read_bytes())

    def read(self, digest: str) -> bytes:
        """Return stored content, checked against its digest.

        Raises:
            NotFoundError: Nothing is stored under the digest.
            IntegrityError: The stored file was changed.
        """
        path = self._file(digest)
        if not path.is_file():
            raise NotFoundError(
                f"there is no artifact {digest}", hint="it was too large to store, or removed"
            )
        if digest_file(path) != digest:
            raise IntegrityError(
                f"the stored artifact {path} was changed", hint="restore it from a copy"
            )
        return path.read_bytes()

    def put_bundle(self, bundle: Bundle) -> Path:
        """Store a copy of a bundle and return its folder.

        Raises:
            IntegrityError: The bundle, or a copy stored before, was changed.
            WorkspaceError: The folder cannot be written or the disk is full.
        """
        target = self.bundle_path(bundle.digest)
        if not target.exists():
            try:
                with new_folder(target, what="the stored bundle") as folder:
                    shutil.copytree(bundle.path, folder, dirs_exist_ok=True)
            except ConflictError:
                pass  # Another process stored the same bundle meanwhile; checked below.
        stored = Bundle.open(target)
        if stored.digest != bundle.digest:
            raise IntegrityError(
                f"the stored bundle {target} has digest {stored.digest}, expected {bundle.digest}",
                hint="remove it and register the bundle again",
            )
        return target

    def bundle_path(self, digest: str) -> Path:
        """Return where a bundle of that digest is stored, or would be."""
        return self._root / "bundles" / digest.removeprefix("sha256:")

    def _file(self, digest: str) -> Path:
        name = digest.removeprefix("sha256:")
        return self._root / "files" / name[:2] / name
