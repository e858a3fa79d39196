"""Debugging: the worst slices of labelled rows, and where a request's time goes."""

from __future__ import annotations

import numpy as np
import pytest

from fairlead.backends.datasets import load_dataset
from fairlead.core.bundle import Bundle
from fairlead.core.dataset import Dataset
from fairlead.core.errors import DataError, UsageError
from fairlead.core.prediction import PredictionBatch
from fairlead.measure.verdict import RequestTimes
from fairlead.observe.debugging import DebuggingConfig, diagnose
from fairlead.observe.debugging.coding import code_columns
from fairlead.observe.debugging.errors import calibration
from fairlead.observe.debugging.methods.latency import ServiceTimes, times_of_predictions

CONFIG = DebuggingConfig()


@pytest.fixture(scope="module")
def bundle(bundles):
    return Bundle.open(bundles / "baseline")


@pytest.fixture(scope="module")
def rows(bundles):
    return load_dataset(bundles / "holdout.parquet", labels="label")


def spoiled(rows, *, region="north"):
    """Rows with a column of their own in which the labels of one region are wrong."""
    regions = np.array(["north", "south", "east", "west"], dtype=object)
    column = regions[np.arange(rows.n_rows) % 4]
    labels = rows.labels.copy()
    labels[column == region] = (labels[column == region] + 1) % 10
    return Dataset({**rows.columns, "region": column}, labels, "label", "spoiled")


def test_the_planted_slice_is_the_worst_and_made_of_a_column_the_model_never_saw(bundle, rows):
    outcome = diagnose(spoiled(rows), CONFIG, bundle=bundle)
    worst = outcome.noun.slices[0]
    assert worst.conditions == ("region: north",)
    assert worst.error > 0.9
    assert outcome.report.details["worst_slice"] == ["region: north"]
    assert {e.metric for e in outcome.evidence} >= {"confirmed_slices", "worst_slice_lift"}


def test_shuffled_regions_are_no_slice(bundle, rows):
    rng = np.random.default_rng(0)
    plain = Dataset(
        {**rows.columns, "region": rng.permutation(spoiled(rows).columns["region"])},
        rows.labels, "label", "plain",
    )  # fmt: skip
    found = diagnose(plain, CONFIG, bundle=bundle).noun
    assert not any("region" in condition for one in found.slices for condition in one.conditions)


def test_confusions_and_calibration_are_reported(bundle, rows):
    report = diagnose(spoiled(rows), CONFIG, bundle=bundle).report
    titles = [table.title for table in report.tables]
    assert "Most frequent confusions" in titles
    assert report.details["calibration_error"] > 0.1
    assert any("scores are off" in finding.text for finding in report.findings)


def test_rows_without_labels_are_refused(bundle, rows):
    with pytest.raises(DataError, match="no labels"):
        diagnose(Dataset(rows.columns), CONFIG, bundle=bundle)


def test_rows_without_a_bundle_are_refused(rows):
    with pytest.raises(UsageError, match="without the bundle"):
        diagnose(rows, CONFIG)


def test_calibrated_scores_have_no_error():
    rng = np.random.default_rng(1)
    said = rng.uniform(0.5, 1.0, 20_000)
    error, points = calibration(said, (rng.random(20_000) < said).astype(float))
    assert error < 0.015
    assert len(points) == 10


def test_columns_of_every_kind_become_readable_parts():
    columns = {
        "age": np.array([20.0, 30, 40, 50, 60, np.nan] * 10),
        "plan": np.array(["free", "paid", None] * 20, dtype=object),
        "since": np.array(["2024-01-01", "2025-01-01", "NaT"] * 20, dtype="datetime64[us]"),
        "same": np.ones(60),
    }
    coded = {f.name: f for f in code_columns(columns, None, bins=3)}
    assert set(coded) == {"age", "plan", "since"}
    assert coded["age"].values == ("below 30", "30 to 50", "50 or more", "missing")
    assert set(coded["plan"].values) == {"free", "paid", "missing"}
    for feature in coded.values():
        assert feature.codes.min() >= 0
        assert feature.codes.max() < len(feature.values)


def times(run, queue, server, client=None, n=200):
    shape = np.ones(n)
    return RequestTimes.from_arrays(
        run_ms=run * shape,
        server_ms=server * shape,
        queue_ms=queue * shape,
        client_ms=None if client is None else client * shape,
    )


@pytest.mark.parametrize(
    ("measured", "largest", "cause"),
    [
        (times(5, 0.1, 5.5), "run", "model"),
        (times(1, 8, 9.5), "queue", "capacity"),
        (times(1, 0, 1.2, client=9), "client-and-network", "network"),
        (times(1, 0, 6), "read-and-write", "data-path"),
    ],
)
def test_the_largest_part_and_the_cause_are_named(measured, largest, cause):
    outcome = diagnose(ServiceTimes("s", measured, "made"), CONFIG)
    assert max(outcome.noun.parts, key=lambda part: part.share).part == largest
    assert outcome.noun.cause == cause
    assert sum(part.share for part in outcome.noun.parts) == pytest.approx(1.0)


def test_a_missed_goal_is_a_warning():
    config = DebuggingConfig(latency_goal_ms=2.0)
    report = diagnose(ServiceTimes("s", times(5, 0, 6), "made"), config).report
    assert any(f.level == "warning" and "goal 2 ms" in f.text for f in report.findings)


def logged(n_requests, rows_each=1, status=200):
    n = n_requests * rows_each
    names = [f"r{i // rows_each}#{i % rows_each}" for i in range(n)]
    number = np.ones(n)
    return PredictionBatch(
        ids=np.array(names, dtype=object),
        at=np.zeros(n, "datetime64[us]"),
        inputs=Dataset({"a": number}),
        outputs={},
        fields={
            "status": np.full(n, status), "run_ms": number, "queue_ms": 0 * number,
            "total_ms": 2 * number, "batch_rows": rows_each * number,
        },
    )  # fmt: skip


def test_the_rows_of_one_request_count_once():
    measured = times_of_predictions("s", logged(12, rows_each=5))
    assert measured.times.n_requests == 12
    assert measured.batch_rows == 5


def test_failed_requests_have_no_times():
    with pytest.raises(DataError, match="0 answered requests"):
        times_of_predictions("s", logged(50, status=500))
