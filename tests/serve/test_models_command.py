"""`fairlead serve models` and `serve status`: a running service, looked after from the shell."""

from __future__ import annotations

import json
import os
import signal
import time

import numpy as np
import pytest

from fairlead.backends.endpoint import EndpointClient

from .conftest import serving
from .test_workers import until, workers_of

ROW = np.array([[1.0, 2.0, -1.0, 0.5]], np.float32)


class Shop:
    """A service with two workers, and what the shell says of it."""

    def __init__(self, handle, cli, home):
        self.handle, self._cli, self._home = handle, cli, home

    def __call__(self, *words, check=0):
        env = {"FAIRLEAD_HOME": str(self._home)}
        return self._cli("serve", *words, "--json", check=check, env=env)

    def models(self, *words):
        """(model, version) → entry, after a command."""
        entries = self("models", *words).json["details"]["models"]
        return {(entry["name"], entry["version"]): entry for entry in entries}

    def version(self, model="wines", version=None):
        with EndpointClient(self.handle.endpoint.url, model) as client:
            return client.infer({"x": ROW}, version=version).version


@pytest.fixture(scope="module")
def shop(wines, module_cli, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shop")
    settings = {"workers": 2, "grpc_port": 0}
    with serving(folder, wines, settings=settings) as handle:
        yield Shop(handle, module_cli, folder / ".fairlead")


def test_a_version_is_loaded_switched_to_and_unloaded(shop, wines, wines_candidate):
    old, new = wines.version, wines_candidate.version
    loaded = shop.models("load", "wines", wines_candidate.path)
    assert {key: entry["state"] for key, entry in loaded.items()} == {
        ("wines", old): "READY",
        ("wines", new): "READY",
    }
    assert all(entry["workers"] == 2 for entry in loaded.values())
    for version in (old, new, old):
        switched = shop.models("switch", "wines", version)
        assert [key[1] for key, entry in switched.items() if entry["is_default"]] == [version]
        assert {shop.version() for _ in range(8)} == {version}
    gone = shop("models", "unload", "wines", "--version", new)
    assert gone.json["findings"] == []
    assert shop.models("list", "wines")["wines", new]["reason"] == "unloaded"
    back = shop.models("load", "wines", "--version", new)
    assert back["wines", new]["state"] == "READY"
    assert shop.version(version=new) == new


def test_another_model_is_added_under_its_name(shop, people):
    added = shop.models("load", "wines", f"folk={people.path}")
    assert {name for name, _ in added} == {"wines", "folk"}
    which = shop("models", "unload", "wines", check=2)
    assert "--model wines | folk" in which.stderr
    warned = shop("models", "unload", "wines", "--model", "folk")
    assert "no version are refused" in warned.json["findings"][0]["text"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("load", "wines", "/nowhere/at/all"), "there is no bundle"),
        (("load", "wines", "--model", "nobody"), "there is no model 'nobody'"),
        (("switch", "wines", "v9", "--model", "wines"), "no version 'v9'"),
        (("unload", "wines", "--model", "wines", "--version", "v9"), "no version 'v9'"),
        (("list", "nobody"), "does not run"),
        (("load", "wines", "a=/x", "--model", "b"), "is named"),
        (("list", "ftp://x"), "no URL of a server"),
    ],
)
def test_what_cannot_be_is_refused_with_a_hint(shop, words, said):
    done = shop("models", *words, check=2)
    assert said in done.stderr
    assert "hint:" in done.stderr


def test_a_damaged_bundle_changes_nothing(shop, wines_candidate, tmp_path):
    before = shop.models("list", "wines")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "MLmodel").write_text("nothing")
    assert "hint:" in shop("models", "load", "wines", broken, "--model", "wines", check=2).stderr
    assert shop.models("list", "wines").keys() == before.keys()


def test_the_status_lists_workers_and_models(shop, wines):
    with shop.handle.client() as client:
        for _ in range(10):
            client.infer({"x": ROW}, version=wines.version)
        found = shop("status", "wines").json["details"]["services"][0]
    workers = found["workers"]
    assert [item["pid"] for item in workers] == sorted(
        workers_of(shop.handle.process.pid), key=[item["pid"] for item in workers].index
    )
    assert all(item["is_ready"] and item["cpu_s"] > 0 for item in workers)
    assert all(item["resident_bytes"] > 10_000_000 for item in workers)
    assert sum(item["connections"] for item in workers) >= 1
    assert sum(item["requests"] for item in workers) >= 10
    mine = {m["version"]: m for m in found["models"] if m["name"] == "wines"}[wines.version]
    assert mine["requests"] >= 10
    assert mine["size_bytes"] == wines.size_bytes
    assert mine["memory_bytes"] >= mine["size_bytes"]
    assert mine["last_used"] == pytest.approx(time.time(), abs=120)
    assert found["is_ready"] is True


def test_the_status_counts_restarts_and_is_readable(shop, cli):
    victim = workers_of(shop.handle.process.pid)[0]
    os.kill(victim, signal.SIGKILL)

    def replaced():
        workers = shop("status", "wines").json["details"]["services"][0]["workers"]
        return len(workers) == 2 and all(item["is_ready"] for item in workers) and workers

    until(replaced, "the worker was not replaced")
    workers = replaced()
    assert sum(item["restarts"] for item in workers) == 1
    assert victim not in {item["pid"] for item in workers}
    text = cli("serve", "status", env={"FAIRLEAD_HOME": str(shop._home)}, check=0).stdout
    assert "Workers of wines" in text
    assert "Models of wines" in text
    assert "1 workers of wines died" in text


def test_one_worker_tells_of_itself(wines, tmp_path, cli):
    with serving(tmp_path, wines) as handle, handle.client() as client:
        client.infer({"x": ROW})
        status = client.status()
        assert [item["pid"] for item in status["workers"]] == [handle.process.pid]
        assert status["models"][0]["requests"] == 1
        document = json.dumps(status)
        assert handle.admin_token not in document


def test_a_service_starts_again_although_its_model_was_unloaded(wines, tmp_path):
    with serving(tmp_path, wines) as handle, handle.client() as client:
        client.unload_model("wines", {})
    with serving(tmp_path, wines) as handle, handle.client() as client:
        assert client.infer({"x": ROW}).version == wines.version
