"""Tensors survive JSON and bytes, whatever is in them."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fairlead.backends.openinference import DATATYPES, bytes_from_tensor, tensor_from_bytes
from fairlead.core.errors import FairleadError
from fairlead.core.signature import Signature, TensorSpec
from fairlead.entrypoints.problem import PROBLEMS
from fairlead.serve.inference import openinference as oip
from fairlead.serve.inference.answer_frames import AnswerFrames
from fairlead.serve.inference.json_tensors import tensor_from_json
from fairlead.serve.inference.problems import STATUSES, status_of

NUMERIC = {name: dtype for name, dtype in DATATYPES.items() if name not in {"BYTES", "BF16"}}
SHAPES = hnp.array_shapes(min_dims=1, max_dims=3, max_side=5)


@st.composite
def tensors(draw):
    datatype = draw(st.sampled_from(sorted(NUMERIC)))
    array = draw(hnp.arrays(NUMERIC[datatype], SHAPES))
    return datatype, array


@st.composite
def texts(draw):
    shape = draw(SHAPES)
    alphabet = st.characters(codec="utf-8")
    return draw(hnp.arrays(object, shape, elements=st.text(alphabet, max_size=8)))


@given(tensors())
def test_numbers_survive_as_bytes(drawn):
    datatype, array = drawn
    kind, raw = bytes_from_tensor(array)
    assert kind == datatype
    for offset in (0, 1):  # a tensor may start at any byte of a body
        view = memoryview(b"\0" * offset + raw)[offset:]
        found = tensor_from_bytes(view, name="x", datatype=kind, shape=array.shape)
        assert found.flags.aligned
        np.testing.assert_array_equal(found, array)


@given(texts())
def test_text_survives_as_bytes_and_as_json(array):
    kind, raw = bytes_from_tensor(array)
    assert kind == "BYTES"
    found = tensor_from_bytes(memoryview(raw), name="x", datatype=kind, shape=array.shape)
    assert found.tolist() == array.tolist()
    nested = tensor_from_json(array.tolist(), name="x", datatype="BYTES", shape=array.shape)
    assert nested.tolist() == array.tolist()


@given(tensors(), st.booleans())
def test_numbers_survive_as_json_nested_or_flat(drawn, is_flat):
    datatype, array = drawn
    if array.dtype.kind == "f":
        array = np.where(np.isfinite(array), array, 0).astype(array.dtype)
    data = json.loads(json.dumps((array.ravel() if is_flat else array).tolist()))
    found = tensor_from_json(data, name="x", datatype=datatype, shape=array.shape)
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)


@given(tensors())
@settings(max_examples=50)
def test_answers_survive_in_both_forms(drawn):
    _, array = drawn
    signature = Signature(
        inputs=(), outputs=(TensorSpec(name="y", dtype=array.dtype.name, shape=(-1,)),)
    )
    for is_binary in (True, False):
        message = oip.InferMessage("", {}, {"y": is_binary}, is_binary)
        body, length = AnswerFrames("m", "1", signature).write(message, "r", {"y": array})
        document = json.loads(body[: length or len(body)])["outputs"][0]
        assert tuple(document["shape"]) == array.shape
        if is_binary:
            raw = memoryview(body)[length:]
            found = tensor_from_bytes(
                raw, name="y", datatype=document["datatype"], shape=array.shape
            )
            np.testing.assert_array_equal(found, array)
        else:
            values = [math.nan if value is None else value for value in document["data"]]
            finite = np.isfinite(array.ravel().astype(float))
            found = np.array(values)[finite]
            np.testing.assert_allclose(
                found.astype(float), array.ravel()[finite].astype(float), rtol=1e-6
            )


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=12,
)


@given(JSON, st.sampled_from(sorted(DATATYPES)), st.lists(st.integers(0, 4), max_size=3))
@settings(max_examples=300)
def test_no_json_can_break_the_reader(data, datatype, shape):
    try:
        found = tensor_from_json(data, name="x", datatype=datatype, shape=tuple(shape))
    except FairleadError:
        return
    assert found.shape == tuple(shape)


@given(st.binary(max_size=200), st.none() | st.integers(-2, 300).map(str))
@settings(max_examples=300)
def test_no_bytes_can_break_the_decoder(body, length):
    with pytest.raises(FairleadError) as caught:
        oip.decode(body, length)
    assert caught.value.hint


def test_statuses_agree_with_the_table_of_the_doors():
    assert {kind: problem.http_status for kind, problem in PROBLEMS.items()} == STATUSES
    assert status_of(TimeoutError()) == 504
    assert status_of(KeyError()) == 500


def test_missing_numbers_as_python_writes_them_are_read():
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [3], "data": [1, 2, 3]}]}
    body["inputs"][0]["data"] = [math.nan, math.inf, 1.5]
    found = oip.decode(json.dumps(body).encode(), None).feeds["x"]
    np.testing.assert_array_equal(found, np.array([np.nan, np.inf, 1.5], np.float32))
    body["inputs"][0]["datatype"] = "INT32"
    with pytest.raises(FairleadError):
        oip.decode(json.dumps(body).encode(), None)


@pytest.mark.parametrize("body", [b"NaN", b"[NaN", b'{"a": NaN', b"[" * 100_000 + b"NaN"])
def test_a_broken_body_with_a_missing_number_is_still_refused(body):
    with pytest.raises(FairleadError, match="body is"):
        oip.decode(body, None)
