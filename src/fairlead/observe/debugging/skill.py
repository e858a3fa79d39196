"""Find the cause: of wrong answers among labelled rows, or of slow answers among requests."""

from __future__ import annotations

from fairlead.backends.runners import open_runner
from fairlead.core.bundle import Bundle
from fairlead.core.dataset import Array, Dataset, bind
from fairlead.core.errors import DataError, UsageError
from fairlead.core.ports import Progress, SilentProgress
from fairlead.core.report import Outcome
from fairlead.measure.profile import flatten_inputs
from fairlead.measure.quality import row_scores, run_batches
from fairlead.observe.debugging.config import DebuggingConfig
from fairlead.observe.debugging.diagnosis import Diagnosis
from fairlead.observe.debugging.errors import analyse_errors
from fairlead.observe.debugging.methods import METHODS
from fairlead.observe.debugging.methods.latency import ServiceTimes
from fairlead.observe.debugging.methods.slices import LabelledRows

__all__ = ["diagnose", "diagnose_latency", "diagnose_slices"]


def diagnose(
    subject: Dataset | ServiceTimes,
    config: DebuggingConfig,
    *,
    bundle: Bundle | None = None,
    trust: bool = False,
    progress: Progress | None = None,
) -> Outcome[Diagnosis]:
    """Find the cause of wrong answers, given labelled rows, or of slow ones, given their times.

    Args:
        subject: Labelled rows, or times of requests.
        config: What counts as a slice, and the latency that is wanted.
        bundle: The model that answers labelled rows.
        trust: Whether code and pickles that came with the model may run.
        progress: Hears how far the work is.

    Raises:
        UsageError: There are rows but no bundle.
        DataError: The rows have no labels or do not fit the model.
        ModelError: The model cannot be loaded or failed on the rows.
        UntrustedError: Loading would run code, and `trust` is off.
    """
    if isinstance(subject, ServiceTimes):
        return diagnose_latency(subject, config)
    if bundle is None:
        raise UsageError(
            "labelled rows were given without the bundle that answers them",
            hint="give the bundle, or the times of requests instead of rows",
        )
    return diagnose_slices(bundle, subject, config, trust=trust, progress=progress)


def diagnose_slices(
    bundle: Bundle,
    data: Dataset,
    config: DebuggingConfig,
    *,
    trust: bool = False,
    progress: Progress | None = None,
) -> Outcome[Diagnosis]:
    """Find the slices of labelled rows on which a model errs most.

    Slices are made of the model's inputs, of further columns of the data, and, for classifiers,
    of the true class.

    Raises:
        DataError: The rows have no labels or do not fit the model.
        ModelError: The model cannot be loaded or failed on the rows.
        UntrustedError: Loading would run code, and `trust` is off.
    """
    labels = data.labels
    if labels is None:
        raise DataError(
            f"{data.source} has no labels, so nobody knows which answers are wrong",
            hint="name the label column with --labels",
        )
    says = progress or SilentProgress()
    says.begin("run the model and search slices", 2)
    manifest = bundle.manifest
    feeds = bind(data, manifest.signature, feature_columns=manifest.feature_columns)
    runner = open_runner(bundle, trust=trust)
    try:
        outputs = run_batches(runner, feeds)
    finally:
        runner.close()
    says.advance()
    rows = LabelledRows(
        bundle=bundle,
        columns=_columns(data, flatten_inputs(manifest, feeds)),
        truth=_truth(bundle, data, labels),
        errors=-row_scores(manifest, outputs, labels)
        if manifest.task == "regression"
        else 1 - row_scores(manifest, outputs, labels),
        analysis=analyse_errors(manifest, outputs, labels),
        source=data.source,
        digest=data.digest,
    )
    outcome = METHODS["slices"](rows, config)
    says.advance()
    return outcome


def diagnose_latency(measured: ServiceTimes, config: DebuggingConfig) -> Outcome[Diagnosis]:
    """Divide the time of requests over the parts of their way, and name the cause."""
    return METHODS["latency"](measured, config)


def _columns(data: Dataset, inputs: dict[str, Array]) -> dict[str, Array]:
    """Collect what slices may be made of: the inputs, and further columns of the data."""
    further = {name: array for name, array in data.columns.items() if array.ndim == 1}
    return {**further, **inputs}


def _truth(bundle: Bundle, data: Dataset, labels: Array) -> dict[str, Array]:
    if bundle.manifest.task != "classification":
        return {}
    name = data.label_name or bundle.manifest.label_column or "label"
    return {f"true {name}": labels.astype(str).astype(object)}
