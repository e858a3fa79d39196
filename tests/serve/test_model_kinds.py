"""Python code and ensembles behind a real server."""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request

import numpy as np
import pytest

from fairlead.core.errors import EndpointError
from tests.backends.pack_models import packed
from tests.backends.python_material import texts, write_code
from tests.serve.conftest import serving

SLOW = """
import time
import numpy as np

class Slow:
    def predict(self, inputs):
        time.sleep(1.5 if "slow" in inputs["text"] else 0)
        return np.array([len(text) for text in inputs["text"]])
"""
STEPS = """
[[steps]]
name = "tokenise"
code = "models.py:Tokeniser"

[[steps]]
name = "count"
code = "more.py:count"
"""
COUNT = """
import numpy as np

def count(columns):
    return {"words": (columns["ids"] > 0).sum(axis=1)}
"""


def get(url, path):
    with urllib.request.urlopen(url + path, timeout=30) as answer:
        return answer.read().decode()


def infer(url, model, rows):
    tensor = {"name": "text", "shape": [len(rows)], "datatype": "BYTES", "data": rows}
    body = json.dumps({"inputs": [tensor]}).encode()
    request = urllib.request.Request(f"{url}/v2/models/{model}/infer", body)
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.loads(answer.read())


@pytest.fixture(scope="module")
def counter(tmp_path_factory):
    folder = tmp_path_factory.mktemp("counter")
    write_code(folder)
    (folder / "more.py").write_text(COUNT)
    (folder / "e.toml").write_text(STEPS)
    bundle = packed(folder, folder / "e.toml", texts()).noun
    with serving(folder, bundle, "counter", trust=True) as handle:
        yield handle


def test_an_ensemble_is_served_and_tells_how_long_each_step_took(counter):
    url = counter.endpoint.url
    answer = infer(url, "counter", ["one", "two words here"])
    assert answer["outputs"][0]["data"] == [1, 3]
    times = answer["parameters"]
    assert list(times) == ["step_ms.tokenise", "step_ms.count"]
    assert all(0 <= run_ms < 10_000 for run_ms in times.values())
    metrics = get(url, "/metrics")
    for step in ("tokenise", "count"):
        line = f'fairlead_step_duration_seconds_count{{arm="baseline",model="counter",step="{step}"'
        assert line in metrics


def test_a_request_of_many_rows_tells_of_all_its_batches(counter):
    rows = ["some words here"] * 100
    answer = infer(counter.endpoint.url, "counter", rows)
    assert answer["outputs"][0]["data"] == [3] * 100
    assert list(answer["parameters"]) == ["step_ms.tokenise", "step_ms.count"]


def test_the_metadata_of_an_ensemble_is_that_of_the_whole(counter):
    about = json.loads(get(counter.endpoint.url, "/v2/models/counter"))
    assert about["platform"] == "ensemble"
    assert [item["name"] for item in about["inputs"]] == ["text"]
    assert [item["name"] for item in about["outputs"]] == ["words"]


def test_rows_of_people_go_through_an_ensemble(counter):
    body = json.dumps({"rows": [{"text": "a b c d"}]}).encode()
    request = urllib.request.Request(counter.endpoint.url + "/predict", body)
    with urllib.request.urlopen(request, timeout=30) as answer:
        assert json.loads(answer.read())["predictions"] == [{"prediction": 4}]


def test_nothing_is_served_that_nobody_trusts(tmp_path):
    code = write_code(tmp_path)
    bundle = packed(tmp_path, f"{code}:Later", texts()).noun
    with pytest.raises(EndpointError, match="runs its own code"), serving(tmp_path, bundle, "x"):
        pass


def test_slow_code_holds_up_nobody_else(tmp_path):
    (tmp_path / "slow.py").write_text(SLOW)
    bundle = packed(tmp_path, f"{tmp_path}/slow.py:Slow", texts()).noun
    with serving(tmp_path, bundle, "slow", trust=True) as handle:
        url = handle.endpoint.url
        infer(url, "slow", ["quick"])
        asked = threading.Thread(target=infer, args=(url, "slow", ["slow"]))
        asked.start()
        answered = 0
        while asked.is_alive():
            assert json.loads(get(url, "/v2/health/live"))["live"] is True
            answered += 1
            time.sleep(0.01)
        asked.join()
        # The event loop answered many times while the code slept for 1.5 s.
        assert answered > 5


def test_a_stateless_class_is_batched_like_any_model(tmp_path):
    code = write_code(tmp_path)
    bundle = packed(tmp_path, f"{code}:Later", texts()).noun
    with serving(tmp_path, bundle, "later", trust=True) as handle, handle.client() as client:
        for size in (1, 3):
            feeds = {"text": np.array(["x" * n for n in range(size)], object)}
            assert client.infer(feeds).outputs["prediction"].tolist() == list(range(size))
