"""The prediction log of a real server: durable answers, rules, weight, and what is seen of it."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from fairlead import AsyncClient
from fairlead.backends.prediction_log import ParquetPredictionLog
from fairlead.core.errors import EndpointError

from .conftest import serving

X = np.zeros((1, 4), np.float32)


def test_a_durable_log_answers_only_what_the_disk_holds(wines, tmp_path):
    settings = {"log_mode": "durable", "log_flush_s": 600}
    with serving(tmp_path, wines, settings=settings) as handle:
        with handle.client() as client:
            for i in range(5):
                client.infer({"x": X}, id=f"held{i}")
        with ThreadPoolExecutor(8) as pool, handle.client() as client:
            list(pool.map(lambda i: client.infer({"x": X}, id=f"many{i}"), range(40)))
        handle.process.kill()
        handle.process.wait()
    batch = ParquetPredictionLog(tmp_path / ".fairlead" / "predictions").read("wines")
    assert sorted(batch.ids) == sorted(
        [*(f"held{i}" for i in range(5)), *(f"many{i}" for i in range(40))]
    )


def test_a_durable_log_that_cannot_be_written_refuses(wines, tmp_path):
    with serving(tmp_path, wines, settings={"log_mode": "durable"}) as handle:
        folder = tmp_path / ".fairlead" / "predictions" / "wines"
        folder.rmdir()
        folder.write_text("in the way")
        with handle.client() as client, pytest.raises(EndpointError, match="507"):
            client.infer({"x": X})
        with handle.client() as client:
            assert client.infer({"x": X}, is_probe=True).arm == "baseline"
            assert "predictions_dropped_total 1.0" in client.metrics()
        folder.unlink()
        with handle.client() as client:
            assert client.infer({"x": X}).arm == "baseline"


def test_the_log_obeys_its_rules_and_stays_light(wines, tmp_path):
    rules = tmp_path / "rules.toml"
    rules.write_text('[[column]]\nmatch = "a"\naction = "redact"\n')
    with serving(tmp_path, wines, settings={"log_rules": str(rules)}) as handle:
        with handle.client() as client:
            client.infer({"x": X}, id="one")
        loaded = Path(f"/proc/{handle.process.pid}/maps").read_text()
        assert "libarrow" not in loaded
    batch = ParquetPredictionLog(tmp_path / ".fairlead" / "predictions").read("wines")
    assert np.isnan(batch.inputs.columns["a"]).all()
    assert not np.isnan(batch.inputs.columns["b"]).any()
    with (
        pytest.raises(EndpointError, match="rules"),
        serving(tmp_path, wines, settings={"log_rules": str(tmp_path / "none.toml")}),
    ):
        pass


def test_what_the_log_loses_and_leaves_out_is_seen(wines, tmp_path, cli):
    settings = {"log_buffer_bytes": 1 << 16, "log_rules": {"sample": [{"rate": 0}]}}
    home = {"FAIRLEAD_HOME": str(tmp_path / ".fairlead")}
    with serving(tmp_path, wines, settings=settings) as handle, handle.client() as client:
        client.infer({"x": X})
        client.infer({"x": np.zeros((5000, 4), np.float32)})
        while "predictions_left_out_total 1.0" not in client.metrics():
            pass
        done = cli("serve", "status", "wines", "--json", env=home, check=0)
        assert done.json["details"]["services"][0]["prediction_log"] == {
            "logged": 0, "dropped": 5000, "left_out": 1, "expired": 0,
        }  # fmt: skip
        [table] = [t for t in done.json["tables"] if t["title"].startswith("Predictions")]
        counts = ("service", "logged", "dropped", "left out", "expired")
        assert dict(zip(counts, table["rows"][0], strict=True)) == dict(
            zip(table["columns"], ("wines", 0, 5000, 1, 0), strict=True)
        )
        shown = cli("serve", "status", env=home, check=0)
    assert "dropped 5,000 predictions" in shown.stderr + shown.stdout


def test_requests_that_ran_together_are_logged_one_by_one(wines, tmp_path):
    x = np.random.default_rng(0).normal(size=(200, 4)).astype(np.float32)

    async def ask(url):
        async with AsyncClient(url, "wines") as client:
            rows = [x[i : i + 1 + i % 3] for i in range(150)]
            return await asyncio.gather(
                *(client.infer({"x": row}, id=f"q{i}") for i, row in enumerate(rows))
            )

    with serving(tmp_path, wines) as handle:
        answers = asyncio.run(ask(handle.endpoint.url))
    batch = ParquetPredictionLog(tmp_path / ".fairlead" / "predictions").read("wines")
    assert batch.n_rows == sum(1 + i % 3 for i in range(150))
    place = {name: at for at, name in enumerate(batch.ids)}
    for i, answer in enumerate(answers):
        for row in range(1 + i % 3):
            at = place[f"q{i}" if i % 3 == 0 else f"q{i}#{row}"]
            assert batch.outputs["prediction"][at] == answer.outputs["label"][row]
            assert batch.inputs.columns["a"][at] == x[i + row, 0]
            assert batch.outputs["score[1]"][at] == answer.outputs["scores"][row, 1]
