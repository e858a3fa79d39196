"""What several workers are for: more requests in the same time, on CPUs divided among them."""

from __future__ import annotations

import http.client
import json
import os
import threading
import time
from pathlib import Path

import pytest

from fairlead.core.bundle import RuntimeSettings

from . import inference_models as models
from .conftest import serving
from .test_workers import workers_of

pytestmark = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs")

ROW = dict.fromkeys(models.FEATURES, 1.5)
BODY = json.dumps({"rows": [ROW] * 3000}).encode()
CLIENTS = 4


def rate(handle, seconds: float) -> float:
    """Requests per second of clients that do nothing but send and receive."""
    host = handle.endpoint.url.removeprefix("http://")
    counts = [0] * CLIENTS
    begun = time.perf_counter()

    def run(number):
        connection = http.client.HTTPConnection(host, timeout=60)
        while time.perf_counter() - begun < seconds:
            connection.request("POST", "/predict", BODY, {"content-type": "application/json"})
            answer = connection.getresponse()
            assert answer.status == 200
            answer.read()
            counts[number] += 1
        connection.close()

    threads = [threading.Thread(target=run, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - begun)


@pytest.mark.alone
def test_two_workers_on_two_cpus_beat_one(wines, tmp_path):
    """Rows as objects keep the interpreter busy, which has one thread; best of rounds in turn."""
    with (
        serving(tmp_path / "one", wines, settings={"log_predictions": False}) as one,
        serving(tmp_path / "two", wines, settings={"log_predictions": False, "workers": 2}) as two,
    ):
        rate(one, 0.5), rate(two, 0.5)
        found = [(rate(one, 1.5), rate(two, 1.5)) for _ in range(4)]
    alone, together = (max(rates) for rates in zip(*found, strict=True))
    assert together > 1.3 * alone, found


def test_connections_are_spread_evenly(wines, tmp_path):
    with serving(tmp_path, wines, settings={"workers": 2}) as handle:
        host = handle.endpoint.url.removeprefix("http://")
        held = [http.client.HTTPConnection(host, timeout=30) for _ in range(16)]
        for connection in held:
            connection.request("GET", "/v2/health/live")
            connection.getresponse().read()
        counts = [sockets_of(pid, int(host.partition(":")[2])) for pid in workers_of_one(handle)]
        for connection in held:
            connection.close()
    assert sorted(counts) == [8, 8]


def workers_of_one(handle) -> list[int]:
    return workers_of(handle.process.pid)


def sockets_of(pid: int, port: int) -> int:
    """Established connections to a port that a process holds."""
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    fields = [line.split() for line in lines]
    mine = {f[9] for f in fields if f[1].endswith(f":{port:04X}") and f[3] == "01"}
    links = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            links.append(str(entry.readlink()))
        except FileNotFoundError:
            continue
    return sum(link == f"socket:[{inode}]" for inode in mine for link in links)


def test_threads_are_divided_among_the_workers(tmp_path):
    """A model tuned for every CPU gets its worker's part: no more threads than CPUs in all."""
    tuned = RuntimeSettings(intra_op_threads=8, is_tuned=True)
    bundle = models.classifier_bundle(tmp_path / "bundle", runtime=tuned)
    n_threads = {}
    for workers in (1, 2):
        folder = tmp_path / str(workers)
        with serving(folder, bundle, settings={"workers": workers}) as handle:
            pids = workers_of(handle.process.pid) or [handle.process.pid]
            n_threads[workers] = [len(list(Path(f"/proc/{pid}/task").iterdir())) for pid in pids]
    # One thread of the pool is the caller itself: 8 tuned ones are 7 more.
    assert max(n_threads[2]) <= n_threads[1][0] - 7 + max(0, len(os.sched_getaffinity(0)) // 2 - 1)
