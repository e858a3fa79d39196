"""Lets MLflow execute the bundles that only Fairlead can: Python code and ensembles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fairlead.backends.runners import open_runner
from fairlead.core.bundle import Bundle
from fairlead.core.dataset import Dataset, bind

__all__ = ["BundleModel"]


def _load_pyfunc(path: str) -> BundleModel:
    """Load a bundle; MLflow calls this by name with the path of `fairlead/bundle.json`.

    Whoever lets MLflow load a model lets its code run, so this asks for no further trust.
    """
    return BundleModel(Bundle.open(Path(path).parents[1]))


class BundleModel:
    """A bundle that takes a DataFrame or a dictionary of arrays."""

    def __init__(self, bundle: Bundle) -> None:
        """Load the bundle's model."""
        self._manifest = bundle.manifest
        self._runner = open_runner(bundle, trust=True)

    def predict(self, data: Any, params: dict[str, Any] | None = None) -> dict[str, Any]:  # noqa: ANN401, ARG002
        """Return the outputs by name, first dimension the rows."""
        names = list(data.columns) if hasattr(data, "columns") else list(data)
        rows = Dataset({str(name): np.asarray(data[name]) for name in names})
        feeds = bind(rows, self._runner.signature, feature_columns=self._manifest.feature_columns)
        return self._runner.run(feeds)
