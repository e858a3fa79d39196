import numpy as np
import pytest

from fairlead.core.bundle import BundleManifest
from fairlead.core.errors import DataError, ModelError
from fairlead.core.signature import Signature, TensorSpec
from fairlead.measure.answers import check_edges, count_lost_rows, edge_rows, judge_answers

SIGNATURE = Signature(
    inputs=(TensorSpec(name="x", dtype="float32", shape=(-1, 2)),),
    outputs=(TensorSpec(name="y", dtype="float32", shape=(-1,)),),
)


def manifest(task: str, **changes) -> BundleManifest:
    return BundleManifest(
        name="m", kind="onnx", model_file="model.onnx", task=task, signature=SIGNATURE,
        prediction_output="y", **changes,
    )  # fmt: skip


class FakeRunner:
    """A model that is a function of its rows."""

    signature = SIGNATURE

    def __init__(self, function) -> None:
        self.function = function

    def run(self, feeds):
        return {"y": self.function(feeds["x"])}

    def close(self) -> None:
        pass


ROWS = {"x": np.array([[1.0, -2.0], [3.0, 4.0]], np.float32)}


def sums(rows):
    return rows.sum(axis=1)


def test_classes_with_labels_are_judged_by_correctness() -> None:
    labels = np.array([0, 1, 1, 0])
    drop = judge_answers(
        manifest("classification", classes=(0, 1)), {"y": np.array([0, 1, 1, 1])},
        {"y": np.array([0, 0, 1, 1])}, labels, budget=0.1,
    )  # fmt: skip
    assert drop.metric == "accuracy_drop"
    assert drop.value == 0.25


def test_classes_without_labels_are_judged_by_agreement() -> None:
    drop = judge_answers(
        manifest("classification", classes=("a", "b")), {"y": np.array(["a", "b"], object)},
        {"y": np.array(["a", "a"], object)}, None, budget=0.1,
    )  # fmt: skip
    assert drop.metric == "disagreement"
    assert drop.value == 0.5


def test_numbers_with_labels_are_judged_by_their_error() -> None:
    labels = np.array([0.0, 1.0, 2.0, 3.0])
    drop = judge_answers(
        manifest("regression"), {"y": labels + 1}, {"y": labels + 1.5}, labels, budget=0.1
    )
    assert drop.metric == "error_increase"
    assert drop.value == pytest.approx(0.5)


def test_a_model_of_unknown_task_is_judged_by_its_worst_output() -> None:
    before = {"y": np.ones((5, 3), np.float32), "z": np.ones((5, 2), np.float32)}
    after = {"y": np.ones((5, 3), np.float32), "z": 3 * np.ones((5, 2), np.float32)}
    drop = judge_answers(manifest("other"), before, after, np.arange(5), budget=0.01)
    assert drop.value == pytest.approx(0.4)


def test_missing_labels_are_counted() -> None:
    labels = np.array(["a", None, "b"], object)
    with pytest.raises(DataError, match="1 of 3 labels are missing"):
        judge_answers(manifest("classification"), {"y": labels}, {"y": labels}, labels, budget=0)


def test_rows_whose_numbers_are_gone_are_counted() -> None:
    before = {"y": np.array([1.0, np.nan, 3.0]), "label": np.array([1, 2, 3])}
    after = {"y": np.array([np.inf, np.nan, 3.0]), "label": np.array([1, 2, 3])}
    assert count_lost_rows(before, after) == 1


def test_edges_stay_in_the_dtype_and_reach_beyond_the_rows() -> None:
    rows = edge_rows({"x": ROWS["x"], "ids": np.array([[3], [9]]), "t": np.array(["a", "b"], "O")})
    assert rows["maxima"]["x"].tolist() == [[3.0, 4.0]]
    assert rows["far-above"]["x"].tolist() == [[33.0, 64.0]]
    assert rows["far-below"]["ids"].tolist() == [[3]]
    assert rows["far-above"]["ids"].tolist() == [[9]]
    assert rows["missing"]["t"].tolist() == ["a"]
    assert np.isnan(rows["missing"]["x"]).all()
    assert all(row["x"].dtype == np.float32 for row in rows.values())


def test_half_precision_edges_do_not_warn() -> None:
    assert np.isinf(edge_rows({"x": np.full((2, 1), 6e4, np.float16)})["far-above"]["x"]).all()


def test_a_model_that_breaks_at_the_edge_is_found() -> None:
    def fragile(rows):
        return np.where(np.abs(rows).max(axis=1) > 10, np.nan, rows.sum(axis=1))

    check = check_edges(FakeRunner(sums), FakeRunner(fragile), ROWS)
    assert check.lost == ("far-below", "far-above")
    assert "missing" not in check.kinds
    assert check_edges(FakeRunner(fragile), FakeRunner(sums), ROWS).lost == ()


def test_a_model_that_fails_at_the_edge_is_found() -> None:
    def failing(rows):
        if np.abs(rows).max() > 10:
            raise ModelError("too large", hint="none")
        return rows.sum(axis=1)

    check = check_edges(FakeRunner(sums), FakeRunner(failing), ROWS)
    assert check.lost == ("far-below", "far-above")


def test_the_largest_deviation_is_named() -> None:
    check = check_edges(FakeRunner(sums), FakeRunner(lambda rows: sums(rows) + 1), ROWS)
    assert check.deviating == "zeros"
    assert check.largest_deviation == 1.0
