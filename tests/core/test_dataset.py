"""Rows, and how they become the tensors of a model."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.core.dataset import Dataset, bind
from fairlead.core.errors import DataError
from fairlead.core.signature import STRING, Signature, TensorSpec


def spec(name="x", dtype="float32", shape=(-1, 2)):
    return TensorSpec(name=name, dtype=dtype, shape=shape)


def signature(*specs):
    return Signature(inputs=specs, outputs=())


def text(*values):
    return np.array(values, dtype=object)


ROWS = Dataset(
    {
        "a": np.array([1, 2, 3]),
        "b": np.array([0.5, np.nan, 2.5]),
        "t": text("x", None, "z"),
        "d": np.array(["1970-01-02", "NaT", "1970-01-01"], "datetime64[us]"),
    },
    np.array([0, 1, 0]),
    "y",
    "rows",
)


def test_columns_named_like_inputs_are_taken():
    found = bind(ROWS, signature(spec("a", shape=(-1,)), spec("t", STRING, (-1, 1))))
    assert found["a"].tolist() == [1, 2, 3]
    assert found["t"].tolist() == [["x"], [""], ["z"]]


def test_one_input_stacks_the_numeric_columns_in_order():
    found = bind(ROWS, signature(spec()))["x"]
    assert found.dtype == np.float32
    assert found[0].tolist() == [1, 0.5]
    assert np.isnan(found[1, 1])


def test_named_features_are_stacked_in_their_order():
    found = bind(ROWS, signature(spec()), feature_columns=("b", "a"))["x"]
    assert found[2].tolist() == [2.5, 3]


def test_one_text_input_stacks_the_text_columns():
    assert bind(ROWS, signature(spec(dtype=STRING, shape=(-1, 1))))["x"][0, 0] == "x"


def test_a_lone_column_is_the_input_whatever_its_name():
    data = Dataset({"image": np.ones((2, 4))})
    assert bind(data, signature(spec(shape=(-1, 1, 2, 2))))["x"].shape == (2, 1, 2, 2)


def test_dates_become_seconds():
    found = bind(ROWS, signature(spec("d", "float64", (-1,))))["d"]
    assert found[0] == 86400
    assert np.isnan(found[1])


def test_numbers_kept_as_objects_are_read():
    data = Dataset({"a": text(1, None, 2.5)})
    assert np.isnan(bind(data, signature(spec("a", shape=(-1,))))["a"][1])


@pytest.mark.parametrize(
    ("inputs", "options", "message"),
    [
        ((spec("t", shape=(-1,)),), {}, "holds 'x', but the model takes float32"),
        ((spec(shape=(-1, 3)),), {}, "2 values per row"),
        ((spec(),), {"feature_columns": ("a", "zz")}, "lacks the columns \\['zz'\\]"),
        ((spec("a"), spec("zz")), {}, "lacks the columns \\['zz'\\]"),
        ((spec("b", "int64", (-1,)),), {}, "has missing values, but the model takes int64"),
        ((spec(shape=(-1, -1, -1)),), {}, "2 values per row"),
        ((spec(shape=(-1, -1, 3)),), {}, "2 values per row"),
    ],
)
def test_rows_that_do_not_fit_are_refused(inputs, options, message):
    with pytest.raises(DataError, match=message):
        bind(ROWS, signature(*inputs), **options)


def test_text_arrays_of_numpy_are_no_numbers():
    data = Dataset({"a": np.array(["x", "y"])})
    with pytest.raises(DataError, match="but the model takes float32"):
        bind(data, signature(spec("a", shape=(-1,))))


def test_rows_without_a_numeric_column_are_refused():
    data = Dataset({"t": text("x"), "u": text("y")})
    with pytest.raises(DataError, match="no numeric column"):
        bind(data, signature(spec()))


def test_a_free_last_dimension_takes_any_number_of_columns():
    assert bind(ROWS, signature(spec(shape=(-1, -1))))["x"].shape == (3, 2)
    data = Dataset({"v": np.ones((2, 6))})
    assert bind(data, signature(spec(shape=(-1, -1, 3))))["x"].shape == (2, 2, 3)


def test_many_columns_are_shown_shortly():
    data = Dataset({f"c{i}": np.ones(1) for i in range(30)})
    with pytest.raises(DataError, match="and 18 more"):
        bind(data, signature(spec("p", shape=(-1,)), spec("q", shape=(-1,))))


def test_columns_need_one_length_and_a_row():
    with pytest.raises(DataError, match="different lengths"):
        Dataset({"a": np.ones(2)}, np.ones(3))
    for empty in ({}, {"a": np.ones(0)}):
        with pytest.raises(DataError, match="no rows"):
            Dataset(empty)


def test_rows_are_taken_and_replaced():
    part = ROWS.take(np.array([True, False, True]))
    assert (part.n_rows, part.labels.tolist(), part.label_name) == (2, [0, 0], "y")
    more = ROWS.with_columns({"c": np.zeros(3)})
    assert list(more.columns) == ["a", "b", "t", "d", "c"]
    assert Dataset({"a": np.ones(2)}).take(slice(0, 1)).labels is None


@given(st.integers(2, 200), st.floats(0.05, 0.95), st.integers(0, 5))
def test_a_split_loses_no_row_and_is_always_the_same(n_rows, fraction, seed):
    data = Dataset({"a": np.arange(n_rows)})
    if not 0 < round(n_rows * fraction) < n_rows:
        with pytest.raises(DataError, match="cannot be cut"):
            data.split(fraction, seed=seed)
        return
    one, two = data.split(fraction, seed=seed)
    again, _ = data.split(fraction, seed=seed)
    assert sorted([*one.columns["a"], *two.columns["a"]]) == list(range(n_rows))
    assert np.array_equal(one.columns["a"], again.columns["a"])


def test_equal_rows_have_an_equal_digest_and_others_do_not():
    same = Dataset(dict(reversed(ROWS.columns.items())), ROWS.labels, "other name", "elsewhere")
    assert same.digest == ROWS.digest
    changed = ROWS.with_columns({"t": text("x", "", "z")})
    assert changed.digest != ROWS.digest
    assert Dataset(ROWS.columns).digest != ROWS.digest


def test_a_dataset_of_labels_only_has_rows():
    assert Dataset({}, np.ones(3)).n_rows == 3
