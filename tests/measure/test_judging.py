import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.core.errors import DataError
from fairlead.measure.calibration import (
    calibration_findings,
    choose_calibration_rows,
    row_distance,
    shared_rows,
)
from fairlead.measure.judging import judge_metric, judge_neighbours, nearest_neighbours

RNG = np.random.default_rng(0)


def right(outputs, labels):
    return (outputs["y"] == labels).astype(float)


def share(outputs, labels):
    return float(right(outputs, labels).mean())


@pytest.mark.parametrize("metric", [right, share])
def test_a_users_metric_is_paired_and_bounded(metric) -> None:
    labels = np.arange(400) % 7
    after = labels.copy()
    after[:8] += 1
    drop = judge_metric(metric, {"y": labels}, {"y": after}, labels, budget=0.05)
    assert drop.value == pytest.approx(0.02)
    assert 0.02 < drop.upper < 0.04
    assert drop.verdict == "proven"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_metric_without_a_number_for_the_original_is_an_error(value) -> None:
    with pytest.raises(DataError, match="for the original model"):
        judge_metric(lambda *_: value, {"y": np.ones(3)}, {"y": np.ones(3)}, None, budget=0.1)


def test_a_metric_without_a_number_for_the_change_breaks_any_budget() -> None:
    drop = judge_metric(
        lambda outputs, _: float("nan") if outputs["y"][0] else 1.0,
        {"y": np.zeros(3)}, {"y": np.ones(3)}, None, budget=1.0,
    )  # fmt: skip
    assert drop.verdict == "broken"


def test_a_metric_of_a_wrong_shape_is_an_error() -> None:
    with pytest.raises(DataError, match="shape"):
        judge_metric(lambda *_: np.ones(5), {"y": np.ones(3)}, {"y": np.ones(3)}, None, budget=1)


def test_vectors_can_be_close_and_have_other_neighbours() -> None:
    centres = RNG.normal(0, 1, (10, 32))
    old = np.repeat(centres, 20, axis=0) + RNG.normal(0, 0.01, (200, 32))
    new = old + RNG.normal(0, 0.01, old.shape)
    cosine = np.sum(old * new, axis=1) / np.linalg.norm(old, axis=1) / np.linalg.norm(new, axis=1)
    drop = judge_neighbours(old, new, budget=0.1)
    assert cosine.mean() > 0.999
    assert drop.value > 0.5
    assert judge_neighbours(old, 3 * old, budget=0.0).value == 0


def test_a_neighbour_is_another_row() -> None:
    found = nearest_neighbours(np.array([[1.0, 0], [0.9, 0.1], [0, 1]]))
    assert found.tolist() == [1, 0, 1]


@given(st.integers(1, 60), st.integers(1, 80))
def test_calibration_rows_are_distinct_and_as_many_as_asked(n_rows, wanted) -> None:
    feeds = {"x": np.random.default_rng(n_rows).normal(0, 1, (n_rows, 3))}
    chosen = choose_calibration_rows(feeds, wanted)
    assert len(set(chosen.tolist())) == len(chosen) == min(n_rows, wanted)


def test_rare_rows_are_covered() -> None:
    table = RNG.normal(0, 1, (1000, 4))
    table[:5] += 100
    assert np.isin(np.arange(5), choose_calibration_rows({"x": table}, 20)).any()


def test_shared_rows_are_counted_by_value() -> None:
    rows = {"x": RNG.normal(0, 1, (50, 4)), "t": np.array([f"a{i}" for i in range(50)], object)}
    part = {name: array[10:20] for name, array in rows.items()}
    assert shared_rows(rows, part) == 10
    assert shared_rows(part, {**part, "t": part["t"][::-1]}) == 0


def test_bad_calibration_sets_are_named() -> None:
    judged = {"x": RNG.normal(0, 1, (500, 6))}
    fair = {"x": RNG.normal(0, 1, (128, 6))}
    assert calibration_findings(fair, judged, is_own=True) == ()
    assert row_distance(judged, fair) < 0.5
    far = calibration_findings({"x": fair["x"] * 0.02}, judged, is_own=True)
    assert "unlike" in far[0].text
    few = calibration_findings({"x": fair["x"][:5]}, judged)
    assert "only 5 rows" in few[0].text
    leaking = calibration_findings({"x": judged["x"][:100]}, judged)
    assert "100 of 500 judged rows" in leaking[0].text
