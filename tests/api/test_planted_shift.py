"""What a drill plants: values that the model can answer, in columns that vary."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from fairlead.api.planted_shift import plant_shift
from fairlead.core.signature import Signature, TensorSpec

RNG = np.random.default_rng(0)


def planted(array, dtype, size=1.0):
    spec = TensorSpec(name="x", dtype=dtype, shape=(-1, *array.shape[1:]))
    manifest = SimpleNamespace(signature=Signature(inputs=(spec,), outputs=()), feature_columns=())
    return plant_shift(SimpleNamespace(manifest=manifest), {"x": array}, size=size)


def test_text_only_becomes_values_that_were_seen():
    array = RNG.choice(np.array(["low", "mid", "high"], dtype=object), 200, p=[0.7, 0.2, 0.1])
    made = planted(array, "string")
    assert set(made.feeds["x"].tolist()) <= set(array.tolist())
    assert np.mean(made.feeds["x"] == "high") > 0.5
    assert made.columns == ("x",)


@pytest.mark.parametrize("dtype", ["int64", "int32", "uint8"])
def test_whole_numbers_stay_within_what_was_seen(dtype):
    array = RNG.integers(0, 5, (200, 3)).astype(dtype)
    made = planted(array, dtype)
    assert made.feeds["x"].max() == 4
    assert made.feeds["x"].mean() > array.mean() + 0.5
    assert len(made.columns) == 3


def test_booleans_become_the_rarer_value():
    array = RNG.random(200) < 0.8
    assert not planted(array, "bool").feeds["x"].any()


def test_the_mean_of_an_image_moves_although_its_pixels_have_no_names():
    array = RNG.random((60, 3, 20, 20)).astype(np.float32)
    made = planted(array, "float32")
    assert "x.mean" in made.columns
    moved = made.feeds["x"].reshape(60, -1).mean(axis=1) - array.reshape(60, -1).mean(axis=1)
    assert moved.mean() > 0.2


def test_missing_numbers_stay_missing_and_empty_columns_are_left_alone():
    array = RNG.random((50, 2))
    array[::3, 0], array[:, 1] = np.nan, np.nan
    made = planted(array, "float64")
    assert np.array_equal(np.isnan(made.feeds["x"]), np.isnan(array))
    assert made.columns == ("x[0]",)


def test_nothing_is_planted_where_nothing_varies():
    assert planted(np.ones((40, 4)), "float64").columns == ()
