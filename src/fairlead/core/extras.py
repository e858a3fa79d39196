"""Optional libraries: one place that turns a missing one into its install line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from fairlead.core.errors import MissingExtraError

__all__ = ["requires"]


@contextmanager
def requires(extra: str, *, needed_by: str) -> Iterator[None]:
    """Turn a missing library into the install line that fixes it.

    Args:
        extra: Name of the extra in `pyproject.toml` that brings the library.
        needed_by: What the user wanted to do, as the subject of the message.

    Raises:
        MissingExtraError: A module imported inside the block is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as exc:
        if exc.name is not None and exc.name.split(".")[0] == "fairlead":
            raise
        raise MissingExtraError(
            f"{needed_by} needs `{exc.name}`, which is not installed",
            hint=f"pip install 'fairlead[{extra}]'",
        ) from exc
