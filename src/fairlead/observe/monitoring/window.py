"""What is watched: rows of data or logged predictions, as columns of the profile."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from fairlead.core.bundle import Bundle, Scores
from fairlead.core.dataset import Array, Dataset, bind
from fairlead.core.errors import DataError
from fairlead.core.ports import Runner
from fairlead.core.prediction import PredictionBatch
from fairlead.core.profile import ReferenceProfile
from fairlead.measure.profile import flatten_inputs, flatten_outputs
from fairlead.measure.quality import evaluate, run_batches

__all__ = ["Window", "window_of_data", "window_of_predictions"]

_OK = 200
_SHOWN = 8


@dataclass(frozen=True)
class Window:
    """Rows to compare with a reference.

    Attributes:
        profile: The reference.
        inputs: Profiled column → array of shape (n_rows,).
        outputs: The same for what the model gave; empty when it was not run.
        n_rows: Number of rows, at least 1.
        source: Where they come from, for people.
        digest: Digest of the rows, "" for logged predictions.
        scores: The model's scores on them where the labels are known.
    """

    profile: ReferenceProfile
    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]
    n_rows: int
    source: str
    digest: str = ""
    scores: Scores = field(default_factory=Scores)


def window_of_data(bundle: Bundle, data: Dataset, runner: Runner) -> Window:
    """Run the model over rows of data.

    Raises:
        DataError: A column is missing or cannot be read as what the model takes.
        ModelError: The model failed.
    """
    manifest = bundle.manifest
    feeds = bind(data, manifest.signature, feature_columns=manifest.feature_columns)
    outputs = run_batches(runner, feeds)
    scores = Scores()
    if data.labels is not None and manifest.task != "other":
        scores = evaluate(manifest, outputs, data.labels, data.digest)
    return Window(
        profile=bundle.profile(),
        inputs=flatten_inputs(manifest, feeds),
        outputs=flatten_outputs(manifest, outputs),
        n_rows=data.n_rows,
        source=data.source,
        digest=data.digest,
        scores=scores,
    )


def window_of_predictions(bundle: Bundle, batch: PredictionBatch) -> Window:
    """Take logged predictions; requests that failed count for the inputs only.

    Raises:
        DataError: The log has none of the profiled columns.
    """
    profile = bundle.profile()
    inputs = _profiled(profile, "input", batch.inputs.columns)
    known = [column.name for column in profile.columns if column.role == "input"]
    if known and not inputs:
        found = ", ".join(list(batch.inputs.columns)[:_SHOWN])
        raise DataError(
            f"the predictions have none of the {len(known)} profiled columns; found {found}",
            hint="watch them against the bundle that made them",
        )
    outputs = _profiled(profile, "output", batch.outputs)
    status = batch.fields.get("status")
    if status is not None and outputs:
        is_served = np.asarray(status).astype(np.int64) == _OK
        outputs = {name: array[is_served] for name, array in outputs.items()}
        if not is_served.any():
            outputs = {}
    return Window(profile, inputs, outputs, batch.n_rows, batch.inputs.source)


def _profiled(
    profile: ReferenceProfile, role: str, columns: Mapping[str, Array]
) -> dict[str, Array]:
    names = {column.name for column in profile.columns if column.role == role}
    return {name: array for name, array in columns.items() if name in names}
