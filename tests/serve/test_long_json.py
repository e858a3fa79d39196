"""Long JSON read in pieces says what it says when it is read at once, or is refused as well."""

from __future__ import annotations

import json
import math

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.core.errors import SignatureError
from fairlead.serve.inference import long_json
from fairlead.serve.inference.long_json import let_go, parsed
from fairlead.serve.inference.openinference import decode

TEXTS = st.text(st.sampled_from('ab"\\,:[]{} é\n'), max_size=8)
LEAVES = st.none() | st.booleans() | st.integers(-9, 9) | st.floats(-1, 1) | TEXTS
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3)
)
LISTS = st.one_of(
    *(
        st.lists(kind, min_size=1, max_size=6).map(lambda some: some * 9)
        for kind in (
            st.floats(-1, 1), TEXTS, st.lists(LEAVES, max_size=2),
            st.dictionaries(TEXTS, LEAVES, max_size=2), VALUES,
        )
    )
)  # fmt: skip
DOCUMENTS = st.dictionaries(TEXTS, LISTS | VALUES, min_size=1, max_size=4)
SPACES = st.sampled_from([None, (" , ", "\t:\n"), (",", ":")])


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(long_json, "LONG_BYTES", 40)
    monkeypatch.setattr(long_json, "_PIECE_BYTES", 24)
    monkeypatch.setattr(long_json, "_LONGEST_PIECE_BYTES", 96)
    monkeypatch.setattr(long_json, "_FREED_AT_ONCE", 5)


@given(DOCUMENTS, SPACES, st.booleans(), st.sampled_from([None, 2]))
def test_pieces_say_the_same(document, spaces, is_ascii, indent):
    text = json.dumps(document, separators=spaces, ensure_ascii=is_ascii, indent=indent)
    assert parsed(text.encode()) == document
    let_go(document)


@given(DOCUMENTS, SPACES, st.data())
def test_what_is_no_json_is_none_in_pieces_either(document, spaces, data):
    text = json.dumps({"inputs": [document], "x": [1, 2, 3] * 9}, separators=spaces).encode()
    at = data.draw(st.integers(0, len(text) - 1))
    change = data.draw(st.sampled_from([b"", b",", b"]", b"[", b'"', b"}", b" ", b"1", b"\\"]))
    spoiled = text[:at] + change + text[at + data.draw(st.integers(0, 2)) :]
    try:
        expected = orjson.loads(spoiled)
    except orjson.JSONDecodeError:
        with pytest.raises(orjson.JSONDecodeError):
            parsed(spoiled)
    else:
        assert parsed(spoiled) == expected


def test_lists_are_found_and_read_in_pieces(monkeypatch):
    sizes = []
    whole = long_json._whole
    monkeypatch.setattr(long_json, "_whole", lambda raw: sizes.append(len(raw)) or whole(raw))
    document = {
        "inputs": [
            {"name": "x", "shape": [2, 600], "data": [[0.5] * 5] * 240},
            {"name": "y", "shape": [500], "data": [f'a, "{i}" ]' for i in range(500)]},
            {"name": "z", "shape": [500], "data": [{"a": i} for i in range(500)]},
        ],
        "more": [[[i, i], [i, i]] for i in range(500)],
    }
    assert parsed(json.dumps(document, separators=(",", ":")).encode()) == document
    assert max(sizes) < 500


@pytest.mark.parametrize("spoiled", [b"[1,2,,3%b]", b"[,1%b]", b"[1 2%b]", b"[1%b,]", b"[1%b"])
def test_lists_with_holes_are_refused(spoiled):
    with pytest.raises(orjson.JSONDecodeError):
        parsed(b'{"data":' + spoiled % (b",7" * 60) + b"}")


def test_numbers_that_python_writes_are_read_in_pieces_too():
    found = parsed(json.dumps({"data": [1.0, math.nan, math.inf] * 40, "id": "r"}).encode())
    assert found["id"] == "r"
    assert np.array_equal(found["data"], [1.0, math.nan, math.inf] * 40, equal_nan=True)


@pytest.mark.parametrize("datatype", ["FP32", "FP16", "INT64", "BOOL"])
@pytest.mark.parametrize("is_nested", [False, True])
def test_many_values_are_read_like_few(datatype, is_nested):
    rows = [[i % 2, 1, 0] for i in range(20_000)]
    if datatype == "BOOL":
        rows = [[bool(value) for value in row] for row in rows]
    elif datatype == "FP16":
        rows[7][1] = None
    data = rows if is_nested else [value for row in rows for value in row]
    tensor = {"name": "x", "datatype": datatype, "shape": [20_000, 3], "data": data}
    found = decode(json.dumps({"inputs": [tensor]}).encode(), None).feeds["x"]
    expected = np.array(rows, object)
    expected[expected == None] = math.nan  # noqa: E711 (elementwise)
    assert np.array_equal(found, expected.astype(found.dtype), equal_nan=datatype == "FP16")


@pytest.mark.parametrize("last", [[1.0], [1.0, None, 2.0, 3.0], ["a", 1.0, 2.0]])
def test_a_row_that_does_not_fit_is_found_behind_many(last):
    rows = [[1.0, 2.0, 3.0]] * 20_000 + [last]
    tensor = {"name": "x", "datatype": "FP32", "shape": [20_001, 3], "data": rows}
    with pytest.raises(SignatureError):
        decode(json.dumps({"inputs": [tensor]}).encode(), None)
