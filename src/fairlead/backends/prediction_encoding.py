"""From requests to frames of the spool: whole tensors at once, and columns where rules hide some.

Runs in the server, so it knows numpy and no Parquet; `prediction_segments` reads what it writes.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fairlead.backends.logged_request import RequestColumns
from fairlead.backends.prediction_frames import Block, encode_frame
from fairlead.backends.prediction_redaction import Redaction
from fairlead.backends.prediction_rules import LogRules
from fairlead.core.bundle import BundleManifest
from fairlead.core.dataset import Array
from fairlead.core.errors import FairleadError
from fairlead.core.prediction import Prediction
from fairlead.measure.profile import flatten_inputs, flatten_outputs

__all__ = ["FEED", "HEAD", "LOOSE", "OUTPUT", "REQUESTS", "FrameEncoder", "encode_head"]

_log = logging.getLogger(__name__)

HEAD, REQUESTS, LOOSE = "head", "requests", "loose"
FEED, OUTPUT = "feed:", "answer:"
"""What the names of blocks begin with that hold tensors of a model's inputs and outputs."""


def encode_head(service: str, digest: str, manifest: BundleManifest | None) -> bytes:
    """Return the first frame of a spool, which says what the others need to be understood."""
    text = "" if manifest is None else manifest.model_dump_json()
    return encode_frame(HEAD, {"service": service, "bundle_digest": digest, "manifest": text})


class FrameEncoder:
    """Turns requests into frames, obeying the rules of the log."""

    def __init__(self, folder: Path, rules: LogRules) -> None:
        """Prepare.

        Args:
            folder: The folder of all services.
            rules: What is hidden.
        """
        self._redaction = Redaction(folder, rules)
        self._has_columns = bool(rules.column)

    def encode_requests(self, group: RequestColumns) -> bytes:
        """Return one frame per kind of request: those whose tensors fit below one another.

        Raises:
            WorkspaceError: The key of the hashes cannot be written.
        """
        if _is_regular(group.manifest) and len(set(map(type, group.outputs))) == 1:
            return self._frame(group)
        places: dict[object, list[int]] = {}
        for place, key in enumerate(_shape_keys(group)):
            places.setdefault(key, []).append(place)
        return b"".join(self._frame(group.chosen(chosen)) for chosen in places.values())

    def encode_prediction(self, prediction: Prediction) -> bytes:
        """Return the frame of one prediction that is in columns already."""
        fields = {
            field.name: getattr(prediction, field.name) for field in dataclasses.fields(prediction)
        }
        fields["at"] = prediction.at.isoformat()
        for side in ("input", "output"):
            values = fields[f"{side}s"]
            columns = {name: _of_one(value) for name, value in values.items()}
            seen = self._redaction.columns(side, columns)
            fields[f"{side}s"] = {name: array[0] for name, array in seen.items()}
        fields["error"] = self._redaction.errors([prediction.error])[0]
        return encode_frame(LOOSE, {"fields": json.dumps(fields, default=_plain)})

    def _frame(self, group: RequestColumns) -> bytes:
        blocks: dict[str, Block] = {
            "id": group.id,
            "n_rows": _numbers(group.n_rows, np.int32),
            "at": (np.array(group.at) * 1e6).astype(np.int64),
            "version": group.version,
            "arm": _texts(group.arm),
            "status": _numbers(group.status, np.int32),
            "queue_ms": np.array(group.queue_ms, np.float32),
            "run_ms": np.array(group.run_ms, np.float32),
            "total_ms": np.array(group.total_ms, np.float32),
            "batch_rows": _numbers(group.batch_rows, np.int32),
            "trace_id": _texts(group.trace_id),
            "error": _texts(self._redaction.errors(group.error)),
        }
        try:
            blocks |= self._tensors(group)
        except (FairleadError, ValueError, TypeError, KeyError, IndexError) as exc:
            # Its times and statuses are still worth remembering.
            _log.warning("tensors of %s have no columns: %s", group.service, exc)
        return encode_frame(REQUESTS, blocks)

    def _tensors(self, group: RequestColumns) -> dict[str, Array]:
        n_rows = sum(group.n_rows)
        sides = {FEED: _stacked(group.feeds, n_rows)}
        answers = [outputs for outputs in group.outputs if outputs is not None]
        if answers:
            sides[OUTPUT] = _stacked(answers, n_rows)
        if self._has_columns:
            return self._columns(group.manifest, sides)
        return {
            side + name: self._redaction.shortened(array)
            for side, tensors in sides.items()
            for name, array in tensors.items()
        }

    def _columns(
        self, manifest: BundleManifest, sides: dict[str, dict[str, Array]]
    ) -> dict[str, Array]:
        """Flatten before anything is written: a rule may hide one column of a tensor."""
        inputs = self._redaction.columns("input", flatten_inputs(manifest, sides[FEED]))
        columns = {f"input.{name}": array for name, array in inputs.items()}
        if OUTPUT in sides:
            outputs = self._redaction.columns("output", flatten_outputs(manifest, sides[OUTPUT]))
            columns |= {f"output.{name}": array for name, array in outputs.items()}
        return columns


def _shape_keys(group: RequestColumns) -> list[object]:
    """Requests of equal key can be put below one another."""
    return [
        (
            tuple(array.shape[1:] for array in feeds.values()),
            None if outputs is None else tuple(array.shape[1:] for array in outputs.values()),
        )
        for feeds, outputs in zip(group.feeds, group.outputs, strict=True)
    ]


def _is_regular(manifest: BundleManifest) -> bool:
    """Say whether rows of all requests have one shape."""
    specs = (*manifest.signature.inputs, *manifest.signature.outputs)
    return all(-1 not in spec.shape[1:] for spec in specs)


def _stacked(parts: Sequence[Any], n_rows: int) -> dict[str, Array]:
    stacked = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    for name, array in stacked.items():
        if len(array) != n_rows:
            raise ValueError(f"`{name}` has {len(array)} rows for {n_rows} predictions")
    return stacked


def _numbers(values: Sequence[int], dtype: type[np.number[Any]]) -> Block:
    """Write a value that all requests share only once."""
    array = np.array(values, dtype)
    return int(array[0]) if (array == array[0]).all() else array


def _texts(values: Sequence[str]) -> Block:
    return values[0] if len(set(values)) == 1 else values


def _of_one(value: Any) -> Array:  # noqa: ANN401 (a number or a text)
    if isinstance(value, (bool, int, float, np.number, np.bool_)):
        return np.array([value])
    found: Array = np.empty(1, dtype=object)
    found[0] = value
    return found


def _plain(value: Any) -> Any:  # noqa: ANN401 (JSON)
    return value.item() if isinstance(value, np.generic) else str(value)
