"""Watch a window: compare it with the reference, and say what a person should know."""

from __future__ import annotations

from fairlead.backends.runners import open_runner
from fairlead.core.bundle import Bundle
from fairlead.core.dataset import Dataset
from fairlead.core.ports import Progress, Runner, SilentProgress
from fairlead.core.prediction import PredictionBatch
from fairlead.core.report import Outcome
from fairlead.core.signal import Signal
from fairlead.observe.monitoring.config import MonitoringConfig
from fairlead.observe.monitoring.judgement import judge
from fairlead.observe.monitoring.methods import METHODS
from fairlead.observe.monitoring.quality import quality_drop
from fairlead.observe.monitoring.reporting import evidence_of, report_on
from fairlead.observe.monitoring.window import Window, window_of_data, window_of_predictions

__all__ = ["monitor"]


def monitor(
    bundle: Bundle,
    current: Dataset | PredictionBatch,
    config: MonitoringConfig,
    *,
    service: str | None = None,
    trust: bool = False,
    progress: Progress | None = None,
) -> Outcome[Signal]:
    """Compare current rows or predictions with the reference profile of a bundle.

    Args:
        bundle: The model that is watched.
        current: Rows, which the model is run over, or predictions that were logged. Rows with
            labels are also scored.
        config: What counts as drift and as a loss of quality.
        service: Name of the service; the model's name when None.
        trust: Whether code and pickles that came with the model may run.
        progress: Hears how far the work is.

    Returns:
        The signal; its `drifted` names the shifted columns, the largest effect first. Fewer rows
        than `config.min_rows` give the kind `no-data` and no alarm.

    Raises:
        DataError: A column is missing, or holds text where the reference has numbers.
        ModelError: The model cannot be loaded or failed on the rows.
        UntrustedError: Loading would run code, and `trust` is off.
        BundleError: The bundle has no reference profile.
    """
    says = progress or SilentProgress()
    says.begin("watch", 2)
    window = _window(bundle, current, trust=trust)
    says.advance()
    drift = METHODS[config.method](window, config)
    drop = quality_drop(bundle.scores, window.scores, config)
    signal = judge(bundle, window, drift, drop, config, service=service or bundle.name)
    says.advance()
    return Outcome(
        noun=signal,
        report=report_on(signal, window, drift, drop, config),
        evidence=evidence_of(bundle, signal, window, drift, drop),
    )


def _window(bundle: Bundle, current: Dataset | PredictionBatch, *, trust: bool) -> Window:
    if isinstance(current, PredictionBatch):
        return window_of_predictions(bundle, current)
    runner: Runner = open_runner(bundle, trust=trust)
    try:
        return window_of_data(bundle, current, runner)
    finally:
        runner.close()
