"""What several workers are for: more requests in the same time, on CPUs divided among them."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
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


SPIN = (
    "import time\nend = time.perf_counter() + 0.4\nn = 0\n"
    "while time.perf_counter() < end: n += 1\nprint(n)"
)


def spins(n_processes: int) -> int:
    """How far so many busy processes get together: what the machine has to give right now."""
    command = [sys.executable, "-c", SPIN]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(n_processes)]
    return sum(int(process.communicate()[0]) for process in running)


def cpu_s(pid: int) -> float:
    """CPU seconds that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def is_free() -> bool:
    """Whether two busy processes get twice as far as one right now."""
    return spins(2) > 1.6 * spins(1)


@pytest.mark.alone
def test_two_workers_on_two_cpus_beat_one(wines, tmp_path):
    """Rows as objects keep the interpreter busy, which has one thread; rounds in turn."""
    quiet = {"log_predictions": False}
    gains, shares, costs = [], [], []
    with (
        serving(tmp_path / "one", wines, settings=quiet) as one,
        serving(tmp_path / "two", wines, settings={**quiet, "workers": 2}) as two,
    ):
        pids = workers_of(two.process.pid)
        rate(one, 0.5)
        rate(two, 0.5)
        for _ in range(6):
            was_free = is_free()
            begun = [cpu_s(pid) for pid in (one.process.pid, *pids)]
            alone, together = rate(one, 1.0), rate(two, 1.0)
            used = [
                cpu_s(pid) - start
                for pid, start in zip((one.process.pid, *pids), begun, strict=True)
            ]
            shares.append(used[1] / (used[1] + used[2]))
            costs.append((used[1] + used[2]) / together / (used[0] / alone))
            if was_free and is_free():
                gains.append(together / alone)
            if len(costs) >= 3 and gains and max(gains) > 1.3:
                break
    assert 0.35 < np.median(shares) < 0.65, shares
    assert np.median(costs) < 1.4, costs
    if not gains:
        pytest.skip("something else keeps the second CPU busy")
    assert max(gains) > 1.3, gains


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
    # On a busy machine a worker that sleeps past its turn loses it: nearly even, never one-sided.
    assert sum(counts) == 16
    assert min(counts) >= 5, counts


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
