"""Models of several workers: loaded, unloaded and replaced in all of them, or in none."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import threading
from contextlib import closing

import numpy as np
import pytest

from fairlead.backends.endpoint import EndpointClient
from fairlead.core.endpoint import TrafficSplit
from fairlead.core.errors import EndpointError

from . import inference_models as models
from .conftest import serving
from .test_workers import metric, until, workers_of

X = np.array([[1.0, 2.0, -1.0, 0.5]], np.float32)
N = 24
"""Fresh connections: with two workers in turn, each gets half of them."""


def connect(handle):
    place = handle.endpoint.url.removeprefix("http://")
    return http.client.HTTPConnection(place, timeout=60)


def call(connection, handle, path, document):
    """Status and JSON of an administrator's call."""
    token = {"authorization": f"Bearer {handle.admin_token}"}
    connection.request("POST", f"/v2/repository/{path}", json.dumps(document), token)
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


def post(handle, path, **parameters):
    """Status of a load or an unload, over a connection of its own."""
    with closing(connect(handle)) as connection:
        return call(connection, handle, f"models/{path}", {"parameters": parameters})[0]


def indices(handle):
    """What the workers say of their models, each over a connection of its own."""
    held = [connect(handle) for _ in range(N)]
    found = [call(connection, handle, "index", {})[1] for connection in held]
    for connection in held:
        connection.close()
    return {tuple(sorted((m["version"], m["state"]) for m in index)) for index in found}


def replace_a_worker(handle):
    """Kill a worker and wait for another one in its place."""
    victim = workers_of(handle.process.pid)[0]
    with handle.client() as client:
        count = metric(client, "fairlead_worker_restarts_total")
        os.kill(victim, signal.SIGKILL)
        until(lambda: len(set(workers_of(handle.process.pid)) - {victim}) == 2, "a new worker")

        def has_joined():
            is_counted = metric(client, "fairlead_worker_restarts_total") == count + 1
            return is_counted and metric(client, "fairlead_workers ") == 2

        until(has_joined, "it joins")


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
        replace_a_worker(handle)
        assert versions(handle, "second") == {None}  # The replacement knows what it missed.
        assert post(handle, "second/load") == 200
        assert versions(handle, "second") == {second.version}
        assert post(handle, "nothing/load") == 404


def test_a_replacement_holds_what_its_siblings_hold_also_of_the_first_model(
    wines, wines_candidate, tmp_path
):
    options = {"more": [f"wines={wines_candidate.path}"], "settings": {"workers": 2}}
    with serving(tmp_path, wines, **options) as handle:
        with handle.client() as client:
            client.set_traffic(TrafficSplit(weights={"baseline": 1.0}))
        gone = ((wines.version, "UNAVAILABLE"), (wines_candidate.version, "UNAVAILABLE"))
        for version, _ in gone:
            assert post(handle, "wines/unload", version=version) == 200
        until(lambda: indices(handle) == {tuple(sorted(gone))}, "both are unloaded")
        replace_a_worker(handle)
        assert indices(handle) == {tuple(sorted(gone))}
    # Whoever starts the service anew wants answers; so says whatever replaces its workers.
    with serving(tmp_path, wines, **options) as handle:
        (states,) = indices(handle)
        assert [state for _, state in states].count("READY") == 1
        replace_a_worker(handle)
        assert indices(handle) == {states}


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
