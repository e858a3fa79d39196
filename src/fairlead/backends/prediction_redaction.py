"""Hiding values before they are written: placeholders, keyed hashes, columns left out."""

from __future__ import annotations

import hashlib
import hmac
import logging
import secrets
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fairlead.backends.prediction_rules import LogRules
from fairlead.core.dataset import Array
from fairlead.core.files import write_bytes

__all__ = ["Redaction"]

_log = logging.getLogger(__name__)
_REDACTED = "[redacted]"
_KEY_BYTES = 32
_HASH_LETTERS = 32


class Redaction:
    """Applies the column rules of a log."""

    def __init__(self, folder: Path, rules: LogRules) -> None:
        """Prepare.

        Args:
            folder: Where the key of the hashes is kept, made at its first use.
            rules: The rules.
        """
        self._folder = folder
        self._rules = rules
        self._unused = [rule for rule in rules.column if not fnmatchcase("error", rule.match)]
        self._has_warned = False

    @cached_property
    def _key(self) -> bytes:
        """The key of the hashes: without it, few possible values are soon guessed."""
        path = self._folder / ".hash-key"
        if not path.exists():
            write_bytes(path, secrets.token_bytes(_KEY_BYTES), mode=0o600)
        return path.read_bytes()

    def columns(self, side: str, columns: Mapping[str, Array]) -> dict[str, Array]:
        """Return what may be seen of the columns of one side.

        Args:
            side: `input` or `output`.
            columns: Name → array of shape (n_rows,).

        Raises:
            WorkspaceError: The key of the hashes cannot be written.
        """
        found: dict[str, Array] = {}
        for name, array in columns.items():
            action = self._rules.action(side, name)
            if action is None:
                found[name] = self.shortened(array)
            elif action != "drop":
                found[name] = self._hidden(array, action)
        if self._unused:
            self._look_for_slips(side, columns)
        return found

    def _look_for_slips(self, side: str, columns: Mapping[str, Array]) -> None:
        """Say which rules fit nothing: a slip in a name leaves in the open what it should hide."""
        self._unused = [
            rule for rule in self._unused if not any(rule.fits(side, name) for name in columns)
        ]
        if self._unused and side == "output" and columns and not self._has_warned:
            self._has_warned = True
            _log.warning(
                "the log's rules for %s fit no column that was logged so far, so they hide nothing",
                ", ".join(f"`{rule.match}`" for rule in self._unused),
            )

    def errors(self, texts: Sequence[str]) -> list[str]:
        """Return what may be seen of messages of errors."""
        action = self._rules.error_action
        if action is None or not any(texts):
            return list(texts)
        if action == "drop":
            return [""] * len(texts)
        array: Array = np.empty(len(texts), dtype=object)
        array[:] = [text or None for text in texts]
        return [str(text or "") for text in self._hidden(array, action).tolist()]

    def shortened(self, array: Array) -> Array:
        """Cut long texts; numbers stay as they are."""
        length = self._rules.max_text_length
        if length is None or array.dtype.kind not in "OUS":
            return array
        found: Array = np.empty(array.size, dtype=object)
        found[:] = [None if v is None else str(v)[:length] for v in array.ravel().tolist()]
        return found.reshape(array.shape)

    def _hidden(self, array: Array, action: str) -> Array:
        if action == "redact" and array.dtype.kind not in "OUS":
            return np.full(len(array), np.nan)
        found: Array = np.empty(len(array), dtype=object)
        values = array.tolist()
        if action == "redact":
            found[:] = [None if value is None else _REDACTED for value in values]
        else:
            known: dict[Any, str | None] = {None: None}
            found[:] = [self._hash(value, known) for value in values]
        return found

    def _hash(self, value: object, known: dict[Any, str | None]) -> str | None:
        if value not in known:
            # 7 and 7.0 are one value, as they are one category.
            is_whole = isinstance(value, float) and value.is_integer()
            text = str(int(value)) if isinstance(value, float) and is_whole else str(value)
            digest = hmac.new(self._key, text.encode("utf-8", "replace"), hashlib.sha256)
            known[value] = digest.hexdigest()[:_HASH_LETTERS]
        return known[value]
