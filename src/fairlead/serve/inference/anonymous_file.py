"""Memory that a supervisor's workers share: a file without a name, inherited by descriptor."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

__all__ = ["anonymous_file"]


def anonymous_file(name: str, content: bytes = b"", *, size: int = 0) -> int:
    """Return the descriptor of a nameless file.

    Args:
        name: Shown by tools of the operating system.
        content: What it holds; its size stays.
        size: Its size where that is larger; what was never written takes no memory.
    """
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create(name, os.MFD_CLOEXEC)
    else:
        descriptor, path = tempfile.mkstemp(prefix=f"{name}-")
        Path(path).unlink()
    os.write(descriptor, content)
    if size > len(content):
        os.ftruncate(descriptor, size)
    return descriptor
