"""Large compressed bodies are unpacked beside the event loop, and their memory is counted."""

from __future__ import annotations

import gzip
import http.client
import json
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
