"""Large bodies are unpacked and read beside the event loop, and their memory is counted."""

from __future__ import annotations

import gzip
import http.client
import json
import select
import threading
from urllib.parse import urlsplit

import numpy as np
import pytest

from .conftest import serving

ROWS = 60_000
X = np.random.default_rng(0).normal(size=(ROWS, 4)).round(3).astype(np.float32)


@pytest.fixture(scope="module")
def roomy(wines, tmp_path_factory):
    settings = {"max_body_bytes": 8 << 20, "log_predictions": False}
    with serving(tmp_path_factory.mktemp("roomy"), wines, settings=settings) as handle:
        yield handle


@pytest.fixture(scope="module")
def vast(wines, tmp_path_factory):
    settings = {"max_body_bytes": 128 << 20, "log_predictions": False}
    with serving(tmp_path_factory.mktemp("vast"), wines, settings=settings) as handle:
        yield handle


def ask(handle, path, body, **headers):
    connection = http.client.HTTPConnection(urlsplit(handle.endpoint.url).netloc, timeout=60)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request("POST", path, body, named)
    answer = connection.getresponse()
    raw = answer.read()
    connection.close()
    return answer.status, json.loads(raw)


def tensor(x):
    data = {"name": "x", "datatype": "FP32", "shape": list(x.shape), "data": x.ravel().tolist()}
    return json.dumps({"inputs": [data]}).encode()


def test_every_endpoint_takes_large_compressed_bodies(roomy):
    packed = gzip.compress(tensor(X), 1)
    status, answer = ask(roomy, "/v2/models/wines/infer", packed, content_encoding="gzip")
    assert status == 200
    plain = ask(roomy, "/v2/models/wines/infer", tensor(X[:50]))[1]["outputs"]
    for output, same in zip(answer["outputs"], plain, strict=True):
        assert output["shape"][0] == ROWS
        assert output["data"][: len(same["data"])] == pytest.approx(same["data"], rel=1e-6)
    rows = [dict(zip("abcd", row, strict=True)) for row in X[:20_000].tolist()]
    for path, document in (
        ("/predict", {"rows": rows}),
        ("/invocations", {"dataframe_records": rows}),
    ):
        packed = gzip.compress(json.dumps(document).encode(), 1)
        kind = {"content_type": "application/json"}
        status, answer = ask(roomy, path, packed, content_encoding="gzip", **kind)
        assert status == 200, answer
        assert len(answer["predictions"]) == 20_000


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (gzip.compress(b" " * (32 << 20)), 413),
        (gzip.compress(tensor(X))[:-100], 400),
        (b"\x1f\x8b" + b"nonsense" * 4000, 400),
    ],
    ids=["bomb", "cut off", "noise"],
)
def test_what_cannot_be_unpacked_is_refused_and_leaves_nothing(roomy, body, status):
    for _ in range(3):
        assert ask(roomy, "/v2/models/wines/infer", body, content_encoding="gzip")[0] == status
    assert ask(roomy, "/v2/models/nobody/infer", body, content_encoding="gzip")[0] == 404
    assert ask(roomy, "/v2/models/wines/infer", tensor(X[:2]))[0] == 200


def test_small_requests_are_answered_while_large_bodies_unpack(roomy):
    """Every body is refused only after 8 MiB were unpacked; meanwhile the others are served."""
    bomb = gzip.compress(b" " * (64 << 20))
    stop = threading.Event()
    refused = []

    def press():
        while not stop.is_set():
            refused.append(ask(roomy, "/predict", bomb, content_encoding="gzip")[0])

    threads = [threading.Thread(target=press) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        row = json.dumps({"rows": [dict.fromkeys("abcd", 1.0)]})
        answers = [ask(roomy, "/predict", row)[0] for _ in range(50)]
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert set(answers) == {200}
    assert set(refused) == {413}


WIDE = np.random.default_rng(1).normal(size=(1_100_000, 4)).round(3)


def sent(handle, path, body):
    """A connection whose request went out whole, and whose answer nobody read yet."""
    connection = http.client.HTTPConnection(urlsplit(handle.endpoint.url).netloc, timeout=120)
    connection.request("POST", path, body, {"content-type": "application/json"})
    return connection


def concluded(connection):
    answer = connection.getresponse()
    status, document = answer.status, json.loads(answer.read())
    connection.close()
    return status, document


@pytest.mark.parametrize("path", ["/v2/models/wines/infer", "/predict"])
def test_small_requests_are_answered_while_a_long_plain_body_is_read(vast, path):
    """The long body is refused once it was read: nothing but reading it takes time."""
    if path == "/predict":
        rows = [dict(zip("abcd", row, strict=True)) for row in WIDE[:700_000].tolist()]
        rows[-1]["a"] = "no number"
        body = json.dumps({"rows": rows}).encode()
    else:
        body = tensor(WIDE).replace(b'"shape": [', b'"shape": [1')
    assert len(body) > 30 << 20
    row = json.dumps({"rows": [dict.fromkeys("abcd", 1.0)]})
    most = 0
    for _ in range(3):
        long = sent(vast, path, body)
        n_answered = 0
        while not select.select([long.sock], [], [], 0)[0]:
            assert ask(vast, "/predict", row)[0] == 200
            n_answered += 1
        assert concluded(long)[0] == 400
        most = max(most, n_answered)
    assert most > 5


def test_a_long_plain_body_is_answered_right_by_every_endpoint(vast):
    some = WIDE[:20_000].astype(np.float32)
    rows = [dict(zip("abcd", row, strict=True)) for row in some.tolist()]
    labels = []
    for path, document in (
        ("/v2/models/wines/infer", json.loads(tensor(some))),
        ("/predict", {"rows": rows}),
        ("/invocations", {"dataframe_records": rows}),
    ):
        body = json.dumps(document).encode()
        assert len(body) > 256 << 10
        status, answer = concluded(sent(vast, path, body))
        assert status == 200, answer
        labels.append(labels_of(answer))
    assert labels[0] == labels[1] == labels[2]
    assert len(labels[0]) == len(some)


def labels_of(answer):
    if "outputs" in answer:
        return next(o["data"] for o in answer["outputs"] if o["name"] == "label")
    found = answer["predictions"]
    return [item["prediction"] if isinstance(item, dict) else item for item in found]
