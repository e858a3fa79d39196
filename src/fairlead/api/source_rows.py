"""What measurements are read from or taken on, and the rows among it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fairlead.core.errors import UsageError

if TYPE_CHECKING:
    from fairlead.core.bundle import Bundle
    from fairlead.core.dataset import Dataset

__all__ = ["Sources", "bundle_of", "labelled", "load_rows"]


@dataclass(frozen=True, slots=True)
class Sources:
    """What measurements may be read from, or taken on.

    Attributes:
        model: Reference of a model or bundle.
        data: Reference of rows.
        labels: Column of the labels.
        url: URL or name of a running service.
        slo_ms: Longest time that a request may take, in ms.
        trust: Whether code that came with the model may run.
    """

    model: str | None = None
    data: str | None = None
    labels: str | None = None
    url: str | None = None
    slo_ms: float | None = None
    trust: bool = False


def bundle_of(sources: Sources) -> Bundle | None:
    """Return the bundle that is named as the model, or None when it is something else.

    Raises:
        NotFoundError: There is no such model.
        BundleError: The bundle is not whole.
    """
    from fairlead.core.artifact import Artifact
    from fairlead.core.bundle import Bundle

    if sources.model is None:
        return None
    artifact = Artifact.from_reference(sources.model)
    return Bundle.open(artifact.path or "") if artifact.format == "bundle" else None


def load_rows(sources: Sources) -> Dataset:
    """Read the rows.

    Raises:
        UsageError: No rows were named.
        DataError: They cannot be read.
    """
    from fairlead.backends.datasets import load_dataset

    if sources.data is None:
        raise UsageError("there are no rows", hint="name a file of rows with --data")
    return load_dataset(sources.data, labels=sources.labels)


def labelled(rows: Dataset, bundle: Bundle) -> Dataset:
    """Take the labels from the bundle's own label column when nobody named one."""
    from fairlead.core.dataset import Dataset

    name = bundle.manifest.label_column
    if rows.labels is not None or name is None or name not in rows.columns:
        return rows
    columns = {key: array for key, array in rows.columns.items() if key != name}
    return Dataset(columns, rows.columns[name], name, rows.source)
