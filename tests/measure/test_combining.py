"""Answers of several models made one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.core.errors import SignatureError
from fairlead.core.signature import TensorSpec
from fairlead.measure.combining import combine, combined_spec


def test_the_mean_is_weighted():
    arrays = [np.array([[0.0, 1.0]], np.float32), np.array([[1.0, 0.0]], np.float32)]
    assert combine("mean", arrays, (3, 1)).tolist() == [[0.25, 0.75]]
    assert combine("mean", arrays).dtype == np.float32


@given(st.lists(st.lists(st.sampled_from("abc"), min_size=5, max_size=5), min_size=1, max_size=7))
def test_a_vote_gives_the_most_frequent_label_and_the_first_of_equals(votes):
    found = combine("vote", [np.array(labels, object) for labels in votes])
    for row in range(5):
        column = [labels[row] for labels in votes]
        best = max(column.count(label) for label in column)
        expected = min(label for label in column if column.count(label) == best)
        assert found[row] == expected


def test_a_vote_may_be_weighted():
    arrays = [np.array([1]), np.array([2]), np.array([2])]
    assert combine("vote", arrays, (5, 1, 1)).tolist() == [1]


def test_argmax_names_the_best_class():
    scores = np.array([[0.1, 0.9], [0.8, 0.2]])
    assert combine("argmax", [scores], labels=("no", "yes")).tolist() == ["yes", "no"]
    assert combine("argmax", [scores], labels=(7, 9)).tolist() == [9, 7]
    assert combine("argmax", [scores]).tolist() == [1, 0]


def spec(dtype, *shape):
    return TensorSpec(name="x", dtype=dtype, shape=(-1, *shape))


@pytest.mark.parametrize(
    ("how", "specs", "options", "words"),
    [
        ("mean", [spec("float32", 3), spec("float32", 2)], {}, "differ"),
        ("mean", [spec("float32"), spec("float64")], {}, "differ"),
        ("mean", [spec("int64"), spec("int64")], {}, "mean of int64"),
        ("mean", [spec("float32")] * 2, {"weights": (1,)}, "weights"),
        ("mean", [spec("float32")] * 2, {"weights": (0, 0)}, "weights"),
        ("vote", [spec("float32")] * 2, {}, "no label"),
        ("vote", [spec("int64", 4)] * 2, {}, "no label"),
        ("argmax", [spec("float32", 3)] * 2, {}, "not one table"),
        ("argmax", [spec("float32", 3)], {"labels": (1, 2)}, "2 labels for 3"),
    ],
)
def test_what_cannot_be_combined_is_refused(how, specs, options, words):
    with pytest.raises(SignatureError, match=words):
        combined_spec("s", how, specs, **options)


def test_the_combination_says_what_it_gives():
    assert str(combined_spec("s", "mean", [spec("float32", 3)] * 2)) == "mean: float32[?, 3]"
    assert str(combined_spec("s", "vote", [spec("string")] * 3)) == "vote: string[?]"
    assert str(combined_spec("s", "argmax", [spec("float32", 2)], labels=("a", "b"))) == (
        "argmax: string[?]"
    )
