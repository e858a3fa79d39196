"""Monitoring: what a window of rows or predictions becomes."""

from __future__ import annotations

import numpy as np
import pytest

from fairlead.backends.datasets import load_dataset
from fairlead.core.bundle import Bundle, Score, Scores
from fairlead.core.dataset import Dataset
from fairlead.core.errors import ConfigError, DataError
from fairlead.core.prediction import PredictionBatch
from fairlead.observe.monitoring import MonitoringConfig, monitor
from fairlead.observe.monitoring.quality import quality_drop

CONFIG = MonitoringConfig()


@pytest.fixture(scope="module")
def bundle(bundles):
    return Bundle.open(bundles / "baseline")


@pytest.fixture(scope="module")
def rows(bundles):
    return load_dataset(bundles / "holdout.parquet", labels="label")


@pytest.fixture(scope="module")
def shifted(bundles):
    return load_dataset(bundles / "shifted.parquet", labels="label")


def test_rows_like_the_reference_are_quiet(bundle, rows):
    for seed in range(5):
        half, _ = rows.split(0.4, seed=seed)
        outcome = monitor(bundle, half, CONFIG)
        assert outcome.noun.kind == "quiet"
        assert not outcome.noun.is_alerting


def test_shifted_rows_alert_and_name_the_dimmed_pixels(bundle, shifted):
    outcome = monitor(bundle, shifted, CONFIG)
    dimmed = {f"pixel_{i}" for i in range(4 * 8, 7 * 8)}
    named = [drift.column for drift in outcome.noun.drifted if drift.role == "input"]
    assert outcome.noun.kind == "data-drift"
    assert set(named) <= dimmed
    assert len(named) >= 10
    inputs = [drift for drift in outcome.noun.drifted if drift.role == "input"]
    effects = [drift.effect for drift in inputs if drift.method != "correlation"]
    assert effects == sorted(effects, reverse=True)


def test_labels_show_what_the_shift_costs(bundle, shifted):
    outcome = monitor(bundle, shifted, CONFIG)
    assert "quality-drop" in {alert.name for alert in outcome.noun.alerts}
    [drop] = [e for e in outcome.evidence if e.metric == "accuracy_drop_ratio"]
    assert drop.value > 0.05
    assert drop.ci_low < drop.value < drop.ci_high


def test_the_report_holds_numbers_tables_and_distributions(bundle, shifted):
    report = monitor(bundle, shifted, CONFIG).report
    assert {"drift_share", "drifted_columns"} <= {m.name for m in report.measures}
    assert report.tables[0].columns[0] == "column"
    assert len(report.plots) == 1 + CONFIG.shown_columns
    for series in report.plots[1].series:
        assert sum(series.y) == pytest.approx(1.0)
    assert report.details["kind"] == "data-drift"


def test_the_evidence_is_about_the_bundle(bundle, rows):
    outcome = monitor(bundle, rows, CONFIG)
    assert {e.metric for e in outcome.evidence} >= {"drift_share", "drifted_columns"}
    assert all(e.subject == bundle.digest and e.sample_size for e in outcome.evidence)


def test_a_unit_that_changed_is_skew_not_drift(bundle, rows):
    scaled = rows.with_columns({"pixel_20": rows.columns["pixel_20"] * 1000 + 1000})
    outcome = monitor(bundle, scaled, CONFIG)
    assert outcome.noun.kind == "skew"
    assert outcome.noun.alerts[0].severity == "page"
    assert outcome.noun.drifted[0].column == "pixel_20"


def test_a_handful_of_rows_is_no_verdict(bundle, rows):
    outcome = monitor(bundle, rows.take(slice(0, 12)), CONFIG)
    assert outcome.noun.kind == "no-data"
    assert outcome.noun.drifted == ()
    assert not outcome.noun.is_alerting
    assert "Too few rows" in outcome.report.summary


def batch_of(bundle, columns, outputs, status=None):
    n = len(next(iter(columns.values())))
    return PredictionBatch(
        ids=np.arange(n).astype(str).astype(object),
        at=np.zeros(n, "datetime64[us]"),
        inputs=Dataset(columns, source="log"),
        outputs=outputs,
        fields={"status": np.full(n, 200) if status is None else status},
    )


def test_logged_predictions_are_watched_without_running_the_model(bundle, rows):
    n = rows.n_rows
    outputs = {"prediction": np.full(n, 3)}
    outcome = monitor(bundle, batch_of(bundle, dict(rows.columns), outputs), CONFIG)
    assert outcome.noun.kind == "prediction-drift"
    assert [drift.column for drift in outcome.noun.drifted] == ["prediction"]


def test_failed_requests_count_for_the_inputs_only(bundle, rows):
    n = rows.n_rows
    outputs = {"prediction": np.array([None] * n, dtype=object)}
    failed = batch_of(bundle, dict(rows.columns), outputs, np.full(n, 500))
    assert monitor(bundle, failed, CONFIG).noun.kind == "quiet"


def test_predictions_of_another_model_are_refused(bundle):
    with pytest.raises(DataError, match="none of the 64 profiled columns"):
        monitor(bundle, batch_of(bundle, {"age": np.arange(50.0)}, {}), CONFIG)


def test_a_missing_column_is_named(bundle, rows):
    columns = {name: array for name, array in rows.columns.items() if name != "pixel_7"}
    with pytest.raises(DataError, match="pixel_7"):
        monitor(bundle, Dataset(columns), CONFIG)


def test_text_where_numbers_belong_is_refused(bundle, rows):
    text = np.array(["dark"] * rows.n_rows, dtype=object)
    with pytest.raises(DataError, match="'dark'"):
        monitor(bundle, rows.with_columns({"pixel_7": text}), CONFIG)


def test_missing_values_that_appear_are_found(bundle, rows):
    gaps = rows.columns["pixel_20"].astype(np.float64).copy()
    gaps[::3] = np.nan
    outcome = monitor(bundle, rows.with_columns({"pixel_20": gaps}), CONFIG)
    first = next(drift for drift in outcome.noun.drifted if drift.column == "pixel_20")
    assert first.method == "missing-values"
    assert "missing 0.0% → 33.4%" in " ".join(alert.text for alert in outcome.noun.alerts)


def test_an_unknown_setting_is_refused():
    with pytest.raises(ConfigError, match="alpah"):
        MonitoringConfig.parse({"alpah": 0.1})


def score(value, n=500, half=0.03, *, higher=True):
    return Scores(
        scores=(
            Score(
                metric="m", value=value, sample_size=n, ci_low=value - half, ci_high=value + half,
                is_higher_better=higher,
            ),
        )
    )  # fmt: skip


def test_a_loss_within_chance_or_tolerance_is_no_drop():
    assert not quality_drop(score(0.95), score(0.92), CONFIG).is_drop
    precise = quality_drop(score(0.95, half=0.001), score(0.935, half=0.001), CONFIG)
    assert precise.drop == pytest.approx(0.015)
    assert not precise.is_drop


def test_a_clear_loss_is_a_drop_whichever_way_the_score_points():
    assert quality_drop(score(0.95), score(0.80), CONFIG).is_drop
    assert quality_drop(score(0.2, higher=False), score(0.5, higher=False), CONFIG).is_drop
    assert not quality_drop(score(0.5, higher=False), score(0.2, higher=False), CONFIG).is_drop


def test_a_bundle_without_scores_has_no_drop():
    assert quality_drop(Scores(), score(0.9), CONFIG) is None
