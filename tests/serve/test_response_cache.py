"""The response cache: what it keeps, what it never keeps, and how a server uses it."""

from __future__ import annotations

import json
import urllib.error
import urllib.request

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.backends.prediction_log import ParquetPredictionLog
from fairlead.serve.inference.cache import ResponseCache, content_key
from tests.backends.pack_models import packed
from tests.backends.python_material import texts, write_code
from tests.serve.conftest import serving


def key_of(**feeds):
    return content_key("sha256:1", {name: np.asarray(value) for name, value in feeds.items()})


def test_equal_content_has_an_equal_key_whatever_its_order_in_memory():
    table = np.arange(6.0).reshape(2, 3)
    assert key_of(a=table, b=[1]) == key_of(b=[1], a=np.asfortranarray(table))


def test_content_shape_dtype_name_and_bundle_all_tell_keys_apart():
    base = np.arange(4, dtype=np.float32)
    keys = [
        key_of(x=base), key_of(x=base + 1), key_of(x=base.reshape(2, 2)), key_of(y=base),
        key_of(x=base.astype(np.float64)), content_key("sha256:2", {"x": base}),
    ]  # fmt: skip
    assert len(set(keys)) == len(keys)


@given(st.lists(st.text(), min_size=1), st.lists(st.text(), min_size=1))
def test_texts_are_told_apart_however_they_are_cut(one, other):
    keys = [content_key("b", {"x": np.array(texts, object)}) for texts in (one, other)]
    assert (keys[0] == keys[1]) == (one == other)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 40)), max_size=60))
def test_it_never_holds_more_than_it_may(puts):
    cache = ResponseCache(16_384)
    for name, size in puts:
        cache.put(bytes([name]), {"y": np.zeros(size * 8)})
        assert 0 <= cache.size_bytes <= 16_384
    held = [cache.get(bytes([name])) for name in range(10)]
    assert sum(found is not None for found in held) == len(cache)


def test_the_least_recently_used_leaves_first():
    one = {"y": np.zeros(50)}
    cache = ResponseCache(8 * (512 + 400))
    for name in b"abcdefgh":
        cache.put(bytes([name]), one)
    assert cache.get(b"a") is not None
    cache.put(b"z", one)
    assert cache.get(b"b") is None
    assert cache.get(b"a") is not None


def test_an_answer_is_a_copy_that_nobody_can_change():
    cache = ResponseCache(1 << 20)
    batch = np.arange(1000.0)
    cache.put(b"k", {"y": batch[:2]})
    batch[:] = -1
    found = cache.get(b"k")["y"]
    assert found.tolist() == [0.0, 1.0]
    assert found.base is None
    with pytest.raises(ValueError, match="read-only"):
        found[0] = 5


def test_an_answer_that_is_too_large_is_not_kept():
    cache = ResponseCache(10_000)
    cache.put(b"k", {"y": np.zeros(1000)})
    assert (len(cache), cache.size_bytes) == (0, 0)


def ask(url, path, document, **headers):
    request = urllib.request.Request(url + path, json.dumps(document).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, dict(answer.headers), json.loads(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, dict(error.headers), json.loads(error.read())


def numbers(url):
    with urllib.request.urlopen(url + "/metrics", timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    pairs = (line.rpartition(" ") for line in lines if line.startswith("fairlead_"))
    return {name: float(value) for name, _, value in pairs}


def infer(rows, **options):
    tensor = {"name": "x", "shape": [len(rows), 4], "datatype": "FP32", "data": rows}
    return {"inputs": [tensor], **options}


ROWS = [[1.0, 2.0, 3.0, 4.0]]
PATH = "/v2/models/wines/infer"


@pytest.fixture(scope="module")
def cached(wines, tmp_path_factory):
    settings = {"response_cache_mb": 4, "log_flush_s": 0.05}
    with serving(tmp_path_factory.mktemp("cached"), wines, settings=settings) as handle:
        yield handle


def test_the_second_answer_is_the_first_one_and_says_so(cached):
    url = cached.endpoint.url
    before = numbers(url)
    first = ask(url, PATH, infer(ROWS, id="one"))
    second = ask(url, PATH, infer(ROWS, id="two"))
    assert "x-fairlead-cache" not in first[1]
    assert second[1]["x-fairlead-cache"] == "hit"
    assert second[2]["outputs"] == first[2]["outputs"]
    assert second[2]["id"] == "two"
    after = numbers(url)
    hit, miss = (f'fairlead_cache_requests_total{{found="{how}"}}' for how in ("hit", "miss"))
    assert after[hit] - before[hit] == 1
    assert after[miss] - before[miss] == 1
    assert after["fairlead_cache_bytes"] > before["fairlead_cache_bytes"]


def test_the_plain_endpoint_meets_the_same_answers(cached):
    url = cached.endpoint.url
    ask(url, PATH, infer([[0.5, 0.25, 1.0, 2.0]]))
    row = {"a": 0.5, "b": 0.25, "c": 1.0, "d": 2.0}
    status, headers, _ = ask(url, "/predict", {"rows": [row]})
    assert (status, headers["x-fairlead-cache"]) == (200, "hit")


def test_an_answer_of_which_a_part_is_wanted_comes_from_the_same_entry(cached):
    url = cached.endpoint.url
    ask(url, PATH, infer([[9.0, 9.0, 9.0, 9.0]]))
    part = infer([[9.0, 9.0, 9.0, 9.0]], outputs=[{"name": "label"}])
    _, headers, answer = ask(url, PATH, part)
    assert headers["x-fairlead-cache"] == "hit"
    assert [output["name"] for output in answer["outputs"]] == ["label"]


def test_probes_neither_fill_the_cache_nor_ask_it(cached):
    url = cached.endpoint.url
    probe = {"fairlead-probe": "1"}
    for _ in range(2):
        _, headers, _ = ask(url, PATH, infer([[7.0, 7.0, 7.0, 7.0]]), **probe)
        assert "x-fairlead-cache" not in headers
    _, headers, _ = ask(url, PATH, infer([[7.0, 7.0, 7.0, 7.0]]))
    assert "x-fairlead-cache" not in headers


def test_the_outcomes_hold_hits_too(cached):
    url = cached.endpoint.url
    for number in range(2):
        ask(url, PATH, infer([[3.0, 1.0, 3.0, 1.0]], id=f"logged-{number}"))
    client = cached.client()
    outcomes = {item.id: item for item in client.outcomes().outcomes}
    client.close()
    assert outcomes["logged-1"].prediction == outcomes["logged-0"].prediction
    assert outcomes["logged-1"].run_ms == 0


def test_errors_are_never_kept(tmp_path):
    code = write_code(tmp_path)
    bundle = packed(tmp_path, f"{code}:Picky", texts()).noun
    body = {"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["bad"]}]}
    settings = {"response_cache_mb": 4}
    with serving(tmp_path, bundle, "picky", trust=True, settings=settings) as handle:
        for _ in range(2):
            status, headers, answer = ask(handle.endpoint.url, "/v2/models/picky/infer", body)
            assert status == 422
            assert "`bad` is no word" in answer["error"]
            assert "x-fairlead-cache" not in headers
        body["inputs"][0]["data"] = ["broken"]
        status, _, answer = ask(handle.endpoint.url, "/v2/models/picky/infer", body)
        assert status == 500
        assert answer["error"].startswith("`Picky.predict` failed with KeyError")
        assert "secret" not in json.dumps(answer)
        assert numbers(handle.endpoint.url)["fairlead_cache_bytes"] == 0


def test_it_is_off_unless_asked_for(wines_server):
    url = wines_server.endpoint.url
    for _ in range(2):
        _, headers, _ = ask(url, PATH, infer(ROWS))
        assert "x-fairlead-cache" not in headers
    assert not any("cache" in name for name in numbers(url))


def test_the_log_marks_what_came_from_the_cache_over_grpc_too(wines, tmp_path):
    triton = pytest.importorskip("tritonclient.grpc")
    settings = {"response_cache_mb": 4, "grpc_port": 0}
    tensor = triton.InferInput("x", [1, 4], "FP32")
    tensor.set_data_from_numpy(np.array(ROWS, np.float32))
    with serving(tmp_path, wines, settings=settings) as handle:
        ask(handle.endpoint.url, PATH, infer(ROWS, id="logged-0"))
        with triton.InferenceServerClient(handle.endpoint.grpc) as client:
            answer = client.infer("wines", [tensor], request_id="logged-1").get_response()
    assert answer.parameters["fairlead-cache"].string_param == "hit"
    batch = ParquetPredictionLog(tmp_path / ".fairlead" / "predictions").read("wines")
    found = dict(zip(batch.ids, batch.fields["batch_rows"], strict=True))
    assert found == {"logged-0": 1, "logged-1": 0}
