"""Profiled columns and the reference profile."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fairlead.core.bundle import BundleManifest
from fairlead.core.profile import ReferenceProfile
from fairlead.core.signature import Signature, TensorSpec
from fairlead.measure.profile import (
    build_profile,
    category_keys,
    count_bins,
    count_categories,
    flatten_inputs,
    flatten_outputs,
)


def manifest(shape=(-1, 3), *, features=(), task="classification", inputs=None, **more):
    spec = TensorSpec(name="x", dtype="float32", shape=shape)
    return BundleManifest.model_validate(
        {
            "name": "m",
            "kind": "onnx",
            "model_file": "model.onnx",
            "task": task,
            "signature": Signature(inputs=inputs or (spec,), outputs=()),
            "feature_columns": features,
            "prediction_output": "label",
            "score_output": "scores",
            "classes": ("a", "b"),
            **more,
        }
    )


def test_a_stacked_input_has_the_names_of_its_features():
    found = flatten_inputs(manifest(features=("p", "q", "r")), {"x": np.eye(3)})
    assert list(found) == ["p", "q", "r"]
    assert found["q"].tolist() == [0, 1, 0]


def test_unknown_names_are_numbered():
    assert list(flatten_inputs(manifest(), {"x": np.eye(3)})) == ["x[0]", "x[1]", "x[2]"]
    found = flatten_inputs(manifest((-1, 2, 2)), {"x": np.zeros((1, 2, 2))})
    assert list(found) == ["x[0,0]", "x[0,1]", "x[1,0]", "x[1,1]"]


def test_column_inputs_keep_their_names():
    inputs = (
        TensorSpec(name="age", dtype="float32", shape=(-1, 1)),
        TensorSpec(name="city", dtype="string", shape=(-1,)),
    )
    feeds = {"age": np.ones((2, 1)), "city": np.array(["a", "b"], dtype=object)}
    found = flatten_inputs(manifest(inputs=inputs), feeds)
    assert {name: array.shape for name, array in found.items()} == {"age": (2,), "city": (2,)}


def test_large_tensors_are_summarised():
    found = flatten_inputs(manifest((-1, 30, 30)), {"x": np.ones((2, 30, 30))})
    assert list(found) == ["x.mean", "x.std", "x.min", "x.max"]


def test_outputs_of_a_classifier_are_prediction_and_scores():
    outputs = {"label": np.array(["a", "b"], dtype=object), "scores": np.eye(2)}
    found = flatten_outputs(manifest(), outputs)
    assert list(found) == ["prediction", "score[a]", "score[b]"]


def test_one_score_belongs_to_the_second_class():
    outputs = {"scores": np.array([[0.2], [0.9]])}
    found = flatten_outputs(manifest(prediction_output="scores"), outputs)
    assert list(found) == ["prediction", "score[b]"]
    assert found["prediction"].tolist() == ["a", "b"]


def test_other_tasks_give_their_outputs_like_inputs():
    about = manifest(task="other", score_output=None)
    found = flatten_outputs(about, {"label": np.ones((2, 1)), "aux": np.ones((2, 2))})
    assert list(found) == ["prediction", "aux[0]", "aux[1]"]


def test_labels_are_categories_and_numbers_are_not():
    profile = build_profile(
        {"n": np.arange(5)}, {"prediction": np.array([1, 1, 0, 1, 0]), "s": np.ones(5)}, "d"
    )
    kinds = {column.name: column.kind for column in profile.columns}
    assert kinds == {"n": "numeric", "prediction": "categorical", "s": "numeric"}
    assert profile.column("prediction").categories == {"1": 3, "0": 2}


def test_missing_values_are_counted_and_left_out():
    values = np.array([1.0, np.nan, 3.0, np.inf])
    text = np.array(["a", None, "", "a"], dtype=object)
    profile = build_profile({"n": values, "t": text}, {}, "d")
    number, words = profile.columns
    assert (number.missing_ratio, number.mean, sum(number.counts)) == (0.5, 2.0, 2)
    assert (words.missing_ratio, words.categories) == (0.5, {"a": 2})


def test_a_column_without_any_value_is_described():
    column = build_profile({"n": np.full(3, np.nan)}, {}, "d").columns[0]
    assert (column.missing_ratio, column.edges, column.mean) == (1.0, (), None)


def test_rare_categories_are_added_up():
    values = np.array([f"v{i}" for i in range(150)] + ["v0"], dtype=object)
    column = build_profile({"t": values}, {}, "d").columns[0]
    assert (len(column.categories), column.other_count) == (100, 50)
    assert count_categories(column, values)[-1] == 50


def test_a_value_that_was_never_seen_falls_into_an_empty_bin():
    column = build_profile({"n": np.zeros(10)}, {}, "d").columns[0]
    counts = count_bins(column, np.array([0.0, 1e-6, -1.0]))
    assert np.array(column.counts)[np.array(counts) > 0].tolist() == [0, 10, 0]


def test_correlated_columns_are_found():
    rng = np.random.default_rng(0)
    one = rng.normal(size=500)
    profile = build_profile({"a": one, "b": -one, "c": rng.normal(size=500)}, {}, "d")
    matrix = np.array(profile.correlation)
    assert matrix[0, 1] == pytest.approx(-1)
    assert abs(matrix[0, 2]) < 0.15
    assert profile.correlated == ("a", "b", "c")


@given(
    hnp.arrays(
        np.float64,
        st.integers(1, 300),
        elements=st.floats(-1e6, 1e6) | st.just(0.0) | st.just(float("nan")),
    )
)
def test_the_histogram_counts_every_value_once(values):
    column = build_profile({"n": values}, {}, "d").columns[0]
    present = values[np.isfinite(values)]
    assert sum(column.counts) == len(present)
    assert list(column.edges) == sorted(set(column.edges))
    if len(present):
        assert count_bins(column, values).tolist() == list(column.counts)
        assert column.quantiles[0] == present.min()
        assert column.quantiles[-1] == present.max()
        expected = np.quantile(present, 0.37)
        assert column.quantiles[37] == pytest.approx(expected, rel=1e-9, abs=1e-6)


def test_a_profile_survives_json():
    rng = np.random.default_rng(0)
    inputs = {"n": rng.normal(size=50), "t": np.array(["a", None] * 25, dtype=object)}
    profile = build_profile(inputs, {"prediction": np.arange(50) % 3}, "d")
    assert ReferenceProfile.model_validate_json(profile.model_dump_json()) == profile


def test_categories_have_one_name_in_every_dtype():
    assert category_keys(np.array([7, 8])).tolist() == ["7", "8"]
    assert category_keys(np.array([7.0, np.nan, 1.5])).tolist() == ["7", None, "1.5"]
    assert category_keys(np.array(["7", b"x", None, ""], dtype=object)).tolist() == [
        "7",
        "x",
        None,
        None,
    ]
