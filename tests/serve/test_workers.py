"""Several workers behind one port: one state, no request lost but by a crash, all end together."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from fairlead.backends.endpoint import EndpointClient, spawn_server, stop_service
from fairlead.backends.prediction_log import ParquetPredictionLog
from fairlead.core.endpoint import TrafficSplit
from fairlead.core.errors import DataError, EndpointError, FairleadError
from fairlead.core.settings import Settings
from fairlead.core.workspace import Workspace

from . import inference_models as models
from .conftest import serving

X = np.array([[1.0, 2.0, -1.0, 0.5]], np.float32)
TWO = {"workers": 2}
PATIENCE_S = 120.0


def workers_of(pid: int) -> list[int]:
    """Process ids of the workers of a supervisor."""
    tasks = Path(f"/proc/{pid}/task")
    found = [int(child) for task in tasks.iterdir() for child in _children(task)]
    return sorted(child for child in found if b"inference.worker" in _command(child))


def _children(task: Path) -> list[str]:
    try:
        return (task / "children").read_text().split()
    except OSError:  # the thread ended meanwhile
        return []


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:  # it ended meanwhile
        return b""


def is_running(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False


def until(condition, what: str):
    """Wait for something that happens by itself; fails after two minutes."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def asked_anew(handle, n: int) -> Counter[str]:
    """Arms that answered `n` requests, each over a connection of its own."""
    found: Counter[str] = Counter()
    for _ in range(n):
        with handle.client() as client:
            found[client.infer({"x": X}).arm] += 1
    return found


def metric(client: EndpointClient, name: str) -> float:
    lines = [line for line in client.metrics().splitlines() if line.startswith(name)]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


@pytest.fixture(scope="module")
def pair(wines, wines_candidate, tmp_path_factory):
    """Two workers with two arms."""
    with serving(
        tmp_path_factory.mktemp("pair"),
        wines,
        candidate=wines_candidate.path,
        candidate_weight=0.5,
        settings=TWO,
    ) as handle:
        yield handle


def test_metrics_and_outcomes_are_those_of_the_whole_service(pair):
    with pair.client() as client:
        before, start = metric(client, "fairlead_requests_total"), client.outcomes().next
        asked_anew(pair, 60)
        assert metric(client, "fairlead_requests_total") == before + 60
        assert metric(client, "fairlead_request_duration_seconds_count") == before + 60
        assert metric(client, "fairlead_workers ") == 2
        assert metric(client, 'fairlead_traffic_weight{arm="baseline"') == 0.5
        page = client.outcomes(after=start)
        assert [item.seq for item in page.outcomes] == list(range(start + 1, start + 61))
        assert len({item.id for item in page.outcomes}) == 60
        assert page.missed == 0


def test_a_split_holds_in_every_worker(pair):
    with pair.client() as client:
        client.set_traffic(TrafficSplit(weights={"candidate": 1.0}))
        assert asked_anew(pair, 30) == {"candidate": 30}
        with pytest.raises(DataError, match="no arm"):
            client.set_traffic(TrafficSplit(weights={"stranger": 1.0}))
        client.set_traffic(TrafficSplit(weights={"baseline": 1.0}))
        assert asked_anew(pair, 30) == {"baseline": 30}
        client.set_traffic(TrafficSplit(weights={"baseline": 0.5, "candidate": 0.5}))


def test_one_worker_needs_no_other_process(wines, tmp_path):
    with serving(tmp_path, wines) as handle:
        assert workers_of(handle.process.pid) == []


def test_nothing_secret_stands_in_arguments_or_environment(pair):
    pids = [pair.process.pid, *workers_of(pair.process.pid)]
    assert len(pids) == 3
    for pid in pids:
        seen = Path(f"/proc/{pid}/cmdline").read_bytes() + Path(f"/proc/{pid}/environ").read_bytes()
        assert pair.admin_token.encode() not in seen
    assert pair.admin_token not in pair.log.read_text()


def test_what_killed_workers_answered_is_found_among_the_outcomes(wines, tmp_path):
    """Once each, in the order of their answers, however often a worker is killed meanwhile."""
    with serving(tmp_path, wines, settings=TWO) as handle:
        stop = threading.Event()

        def load(number):
            answered, client = [], handle.client()
            while not stop.is_set():
                name = f"{number}-{len(answered)}"
                # Every other request goes through the queue.
                feeds = {"x": X if len(answered) % 2 else np.repeat(X, 40, axis=0)}
                try:
                    client.infer(feeds, id=name)
                except EndpointError:
                    name = ""  # Its worker was killed: perhaps it was run, but nobody heard of it.
                answered.append(name)
            client.close()
            return [name for name in answered if name]

        with ThreadPoolExecutor(4) as pool, handle.client() as client:
            asked = [pool.submit(load, number) for number in range(4)]
            try:
                for round_ in range(3):
                    counted = metric(client, "fairlead_requests_total")
                    until(
                        lambda counted=counted: (
                            metric(client, "fairlead_requests_total") > counted + 80
                        ),
                        "it is asked",
                    )
                    if round_ == 1:
                        client.outcomes()  # What was told already is not told again.
                    victim = workers_of(handle.process.pid)[round_ % 2]
                    os.kill(victim, signal.SIGKILL)
                    until(
                        lambda n=round_ + 1: (
                            metric(client, "fairlead_worker_restarts_total") == n
                            and metric(client, "fairlead_workers ") == 2
                        ),
                        "another takes its place",
                    )
            finally:
                stop.set()
            answered = [each.result() for each in asked]
            found: list[str] = []
            while (page := client.outcomes(after=len(found))).outcomes:
                assert page.missed == 0
                found += [item.id for item in page.outcomes]
    assert len(set(found)) == len(found)
    assert {name for names in answered for name in names} <= set(found)
    for number, names in enumerate(answered):
        own = set(names)
        assert [name for name in found if name in own and name.startswith(f"{number}-")] == names


def test_a_killed_worker_costs_its_own_requests_only(wines, wines_candidate, tmp_path):
    options = {"candidate": wines_candidate.path, "candidate_weight": 0.5, "settings": TWO}
    with serving(tmp_path, wines, **options) as handle:
        with handle.client() as client:
            client.set_traffic(TrafficSplit(weights={"candidate": 1.0}))
            counted = metric(client, "fairlead_requests_total")
        victim = workers_of(handle.process.pid)[0]
        stop = threading.Event()

        def load(_):
            good = bad = 0
            client = handle.client()
            while not stop.is_set():
                try:
                    assert client.infer({"x": X}).arm == "candidate"
                    good += 1
                except EndpointError:
                    bad += 1
            client.close()
            return good, bad

        with ThreadPoolExecutor(8) as pool:
            running = [pool.submit(load, i) for i in range(8)]
            with handle.client() as watcher:
                until(lambda: metric(watcher, "fairlead_requests_total") > counted + 200, "load")
            os.kill(victim, signal.SIGKILL)
            until(lambda: len(set(workers_of(handle.process.pid)) - {victim}) == 2, "a new worker")
            with handle.client() as watcher:
                until(lambda: _try(watcher, "fairlead_workers ") == 2, "it joins")
                assert metric(watcher, "fairlead_worker_restarts_total") == 1
                assert metric(watcher, "fairlead_requests_total") >= counted + 200
            stop.set()
            found = [item.result(30) for item in running]
        # A request that was on its way to the victim is lost, one per connection at most.
        assert sum(bad for _, bad in found) <= 8
        assert sum(good for good, _ in found) > 200
        # The replacement holds the split that was set before it was born.
        assert asked_anew(handle, 40) == {"candidate": 40}


def _try(client: EndpointClient, name: str) -> float:
    try:
        return metric(client, name)
    except FairleadError:
        return -1.0


def test_a_worker_that_hangs_is_replaced(wines, tmp_path):
    with serving(tmp_path, wines, settings={**TWO, "worker_hang_s": 1}) as handle:
        first = workers_of(handle.process.pid)
        os.kill(first[0], signal.SIGSTOP)
        until(lambda: not is_running(first[0]), "the watchdog bites")
        until(lambda: len(workers_of(handle.process.pid)) == 2, "a new worker")
        assert first[1] in workers_of(handle.process.pid)
        assert "silent" in handle.log.read_text()


def test_workers_end_with_their_supervisor(wines, tmp_path):
    with serving(tmp_path, wines, settings=TWO) as handle:
        workers = workers_of(handle.process.pid)
        assert len(workers) == 2
        handle.process.kill()
        until(lambda: not any(map(is_running, workers)), "the workers end")
    with serving(tmp_path, wines) as again, again.client() as client:
        assert client.infer({"x": X}).arm == "baseline"


@pytest.mark.parametrize("how", ["sigterm", "stdin"])
def test_every_worker_answers_what_it_has_before_it_ends(slow, tmp_path, how):
    with serving(tmp_path, slow, "slow", settings=TWO) as handle:
        workers = workers_of(handle.process.pid)
        with ThreadPoolExecutor(6) as pool, handle.client() as watcher:
            rows = np.repeat(X, 16, axis=0)
            flying = [pool.submit(_once, handle, rows) for _ in range(6)]
            until(lambda: metric(watcher, "fairlead_pending_requests") >= 1, "requests fly")
            if how == "sigterm":
                os.kill(handle.process.pid, signal.SIGTERM)
            else:
                handle.process.stdin.close()
            answers = [item.result(60) for item in flying]
        assert handle.process.wait(30) == 0
        assert not any(map(is_running, workers))
    n_answered = sum(answers)
    assert n_answered >= 1
    log = ParquetPredictionLog(tmp_path / ".fairlead" / "predictions")
    assert log.read("slow").n_rows == 16 * n_answered


def _once(handle, rows) -> bool:
    """Ask; a client that came after the port was closed hears so."""
    try:
        with handle.client(timeout_s=60) as client:
            return client.infer({"x": rows}).outputs["y"].shape == (16, 1)
    except EndpointError as exc:
        assert "cannot be reached" in exc.message  # noqa: PT017
        return False


def test_stop_and_status_know_the_supervisor(wines, tmp_path, module_cli):
    with serving(tmp_path, wines, settings=TWO) as handle:
        home = {"FAIRLEAD_HOME": str(tmp_path / ".fairlead")}
        status = module_cli("serve", "status", "wines", "--json", env=home, check=0)
        assert status.json["details"]["services"][0]["pid"] == handle.process.pid
        workspace = Workspace.open(Settings.load(home=tmp_path / ".fairlead"))
        stop_service(workspace, "wines")
        assert handle.process.wait(10) == 0


def test_workers_that_cannot_start_say_why(tmp_path):
    broken = tmp_path / "broken"
    models.classifier_bundle(broken)
    (broken / "model.onnx").write_bytes(b"changed")
    workspace = Workspace.open(Settings.load(home=tmp_path / ".fairlead"))
    with pytest.raises(EndpointError, match=r"exit code 2 [\s\S]*digest"):
        spawn_server(broken, workspace=workspace, name="broken", settings=TWO)
