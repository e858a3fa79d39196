"""Batches against signatures."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.core.errors import SignatureError
from fairlead.core.signature import STRING, Signature, TensorSpec, conform


def signature(*specs):
    return Signature(inputs=tuple(TensorSpec(name=n, dtype=d, shape=s) for n, d, s in specs),
                     outputs=(TensorSpec(name="out", dtype="float32", shape=(-1,)),))  # fmt: skip


X = signature(("x", "float32", (-1, 2)))


@pytest.mark.parametrize(
    ("dtype", "values"),
    [
        ("float32", np.ones((3, 2), np.int64)),
        ("float32", np.ones((3, 2), np.float64)),
        ("float32", np.ones((3, 2), bool)),
        ("int64", np.ones((3, 2), np.float32)),
        ("bool", np.ones((3, 2), np.int8)),
        ("bfloat16", np.ones((3, 2), np.uint16)),
    ],
)
def test_numbers_are_cast_to_what_the_model_takes(dtype, values):
    about = signature(("x", dtype, (-1, 2)))
    assert conform({"x": values}, about)["x"].dtype == about.input("x").numpy_dtype


@pytest.mark.parametrize(
    ("dtype", "values"),
    [
        ("int64", np.full((1, 2), 0.5)),
        ("bool", np.full((1, 2), 1.0)),
        ("float32", np.array([["a", "b"]], dtype=object)),
        (STRING, np.ones((1, 2))),
    ],
)
def test_values_that_would_change_their_meaning_are_refused(dtype, values):
    with pytest.raises(SignatureError, match="has dtype"):
        conform({"x": values}, signature(("x", dtype, (-1, 2))))


def test_text_of_any_numpy_kind_is_text():
    found = conform({"x": np.array([["a", "b"]])}, signature(("x", STRING, (-1, 2))))
    assert found["x"].dtype == object


@pytest.mark.parametrize("shape", [(2,), (3, 3), (1, 2, 1), ()])
def test_a_wrong_shape_is_refused(shape):
    with pytest.raises(SignatureError, match="has shape"):
        conform({"x": np.ones(shape)}, X)


def test_missing_and_unknown_inputs_are_named():
    with pytest.raises(SignatureError, match="input `x` is missing"):
        conform({}, X)
    with pytest.raises(SignatureError, match="no input named `y`") as found:
        conform({"x": np.ones((1, 2)), "y": np.ones(1)}, X)
    assert "`x`" in found.value.hint


def test_inputs_need_the_same_number_of_rows():
    both = signature(("a", "float32", (-1,)), ("b", "float32", (-1,)))
    with pytest.raises(SignatureError, match="different numbers of rows"):
        conform({"a": np.ones(2), "b": np.ones(3)}, both)


def test_a_fixed_first_dimension_is_no_batch():
    both = signature(("a", "float32", (-1,)), ("b", "float32", (4,)), ("c", "float32", ()))
    feeds = {"a": np.ones(2), "b": np.ones(4), "c": np.float32(1).reshape(())}
    assert list(conform(feeds, both)) == ["a", "b", "c"]
    assert [spec.has_free_batch for spec in both.inputs] == [True, False, False]


def test_specs_are_found_by_name_and_readable():
    assert str(X.input("x")) == "x: float32[?, 2]"
    assert X.output("out").dtype == "float32"
    with pytest.raises(SignatureError, match="no output named `x`"):
        X.output("x")
    with pytest.raises(SignatureError) as found:
        Signature(inputs=(), outputs=()).input("x")
    assert "none" in found.value.hint


@given(st.lists(st.lists(st.integers(-(2**24), 2**24), min_size=2, max_size=2), min_size=1))
def test_whole_numbers_survive_the_cast(rows):
    values = np.array(rows, dtype=np.int64)
    found = conform({"x": values}, X)["x"]
    assert np.array_equal(found.astype(np.int64), values)
