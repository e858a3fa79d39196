"""Models of several workers: loaded, unloaded and replaced in all of them, or in none."""

from __future__ import annotations

import http.client
import os
import shutil
import signal
import threading

import numpy as np
import pytest

from fairlead.backends.endpoint import EndpointClient
from fairlead.core.errors import EndpointError

from . import inference_models as models
from .conftest import serving
from .test_workers import until, workers_of

X = np.array([[1.0, 2.0, -1.0, 0.5]], np.float32)
N = 24
"""Fresh connections: with two workers in turn, each gets half of them."""


def post(handle, path):
    """Status of an administrator's call, over a connection of its own."""
    connection = http.client.HTTPConnection(handle.endpoint.url.removeprefix("http://"), timeout=60)
    token = {"authorization": f"Bearer {handle.admin_token}"}
    connection.request("POST", f"/v2/repository/models/{path}", b"{}", token)
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer.status


def versions(handle, model):
    """Versions that answered, or None for a refusal, each over a connection of its own."""
    place = handle.endpoint.url, model, handle.admin_token
    held = [EndpointClient(*place) for _ in range(N)]
    found = []
    for client in held:
        try:
            found.append(client.infer({"x": X}).version)
        except EndpointError:
            found.append(None)
    for client in held:
        client.close()
    return set(found)


@pytest.fixture(scope="module")
def second(tmp_path_factory):
    return models.classifier_bundle(tmp_path_factory.mktemp("second") / "bundle", name="second")


def test_a_model_is_loaded_and_unloaded_in_every_worker(wines, second, tmp_path):
    more = [f"second={second.path}"]
    with serving(tmp_path, wines, more=more, settings={"workers": 2}) as handle:
        assert versions(handle, "second") == {second.version}
        assert post(handle, "second/unload") == 200
        assert versions(handle, "second") == {None}
        assert versions(handle, "wines") == {wines.version}
        victim = workers_of(handle.process.pid)[0]
        os.kill(victim, signal.SIGKILL)
        until(lambda: len(set(workers_of(handle.process.pid)) - {victim}) == 2, "a new worker")
        with handle.client() as client:
            until(lambda: "fairlead_workers 2" in client.metrics(), "it joins")
        assert versions(handle, "second") == {None}  # The replacement knows what it missed.
        assert post(handle, "second/load") == 200
        assert versions(handle, "second") == {second.version}
        assert post(handle, "nothing/load") == 404


def test_a_bundle_that_changes_on_disk_is_taken_up_by_all_without_a_failed_request(tmp_path):
    place = tmp_path / "bundle"
    old = models.classifier_bundle(place)
    new = models.classifier_bundle(tmp_path / "new", shift=3.0)
    settings = {"workers": 2, "reload_every_s": 0.2}
    with serving(tmp_path, old, settings=settings) as handle:
        stop, failures = threading.Event(), []

        def press():
            client = handle.client()
            while not stop.is_set():
                try:
                    client.infer({"x": X})
                except EndpointError as exc:
                    failures.append(exc)
            client.close()

        threads = [threading.Thread(target=press) for _ in range(4)]
        for thread in threads:
            thread.start()
        shutil.move(place, tmp_path / "old")
        shutil.move(new.path, place)
        until(lambda: versions(handle, "wines") == {new.version}, "all switch")
        stop.set()
        for thread in threads:
            thread.join()
        assert failures == []
