"""Clients of all kinds against a real server: ours, and the examples for others."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fairlead import AsyncClient, Client, HedgePolicy
from fairlead.api import Context
from fairlead.api.access import add_key
from fairlead.core.errors import DataError, DeadlineError, NotFoundError
from fairlead.measure.quality import run_batches

from .conftest import serving

EXAMPLES = Path(__file__).parents[2] / "examples" / "clients"
X = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)


@pytest.fixture(scope="module")
def expected(wines):
    from fairlead.backends.runners import open_runner

    runner = open_runner(wines)
    outputs = run_batches(runner, {"x": X})
    runner.close()
    return outputs


@pytest.mark.parametrize("is_binary", [True, False])
def test_our_client_gets_the_models_own_answers(wines_server, expected, is_binary):
    with Client(wines_server.endpoint.url, "wines", hedge=HedgePolicy()) as client:
        assert client.ready()
        assert client.metadata()["name"] == "wines"
        assert "binary_tensor_data" in client.server_metadata()["extensions"]
        result = client.infer({"x": X}, id="mine", is_binary=is_binary)
        assert (result.id, result.arm) == ("mine", "baseline")
        for name, array in expected.items():
            np.testing.assert_allclose(result.outputs[name], array, atol=1e-6)
            assert result.outputs[name].dtype == array.dtype
        rows = [dict(zip("abcd", map(float, row), strict=True)) for row in X]
        assert len(client.predict(rows)["predictions"]) == len(X)


def test_the_async_client_asks_many_at_a_time(wines_server, expected):
    async def ask():
        async with AsyncClient(wines_server.endpoint.url, "wines") as client:
            assert await client.ready()
            return await asyncio.gather(
                *(client.infer({"x": X[i % 6 : i % 6 + 1]}) for i in range(60))
            )

    for i, result in enumerate(asyncio.run(ask())):
        np.testing.assert_array_equal(result.outputs["label"], expected["label"][i % 6 : i % 6 + 1])


def test_errors_have_types(wines_server):
    with Client(wines_server.endpoint.url, "wines") as client:
        with pytest.raises(DataError, match="400"):
            client.infer({"y": X})
        with pytest.raises(NotFoundError, match="no version"):
            client.infer({"x": X}, version="nope")


def test_a_deadline_reaches_the_server(slow, tmp_path):
    with (
        serving(tmp_path, slow, "slow", settings={"max_batch_size": 1}) as handle,
        Client(handle.endpoint.url, "slow") as client,
    ):
        feeds = {"x": np.ones((10, 4), np.float32)}
        with pytest.raises(DeadlineError):
            client.infer(feeds, timeout_s=0.05)
        assert client.infer({"x": np.ones((1, 4), np.float32)}).outputs["y"].shape == (1, 1)


@pytest.fixture(scope="module", params=["open", "closed"])
def asked(request, wines_server, wines, tmp_path_factory):
    """URL of a server, and the key that it asks for where it asks for one."""
    if request.param == "open":
        yield wines_server.endpoint.url, None
        return
    folder = tmp_path_factory.mktemp("closed")
    key = add_key("examples", context=Context.open(home=folder / ".fairlead")).noun
    with serving(folder, wines) as handle:
        yield handle.endpoint.url, key


def run(words, program, key=None):
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not on this machine")
    done = subprocess.run(
        [str(word) for word in words], capture_output=True, text=True, timeout=60, check=False,
        env=os.environ if key is None else {**os.environ, "FAIRLEAD_API_KEY": key},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_example_for_curl_runs(asked):
    url, key = asked
    said = run(["bash", EXAMPLES / "curl.sh", url, "wines"], "curl", key)
    lines = said.splitlines()
    assert lines[0] == "ready: 200"
    assert sum('"outputs"' in line for line in lines if line.startswith(("JSON", "binary"))) == 2


def test_the_example_for_tritonclient_runs(asked):
    pytest.importorskip("tritonclient.http")
    url, key = asked
    words = [sys.executable, EXAMPLES / "triton_client.py", url, "wines"]
    said = run(words, sys.executable, key)
    assert said.splitlines() == [
        "binary one {'label': [1], 'scores': [1, 3]}",
        "JSON one {'label': [1], 'scores': [1, 3]}",
    ]


def test_the_example_for_javascript_runs(asked):
    url, key = asked
    said = run(["node", EXAMPLES / "client.mjs", url, "wines"], "node", key)
    json_line, binary_line = said.splitlines()
    assert json_line.startswith("inferJson: label [1] = ")
    assert binary_line.startswith("inferBinary: label [1] = ")
    assert json_line.split(";")[0].split(":")[1] == binary_line.split(";")[0].split(":")[1]
