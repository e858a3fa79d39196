"""A server's life: start, refuse, overload, drain, die."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import numpy as np
import pytest

from fairlead.api import Context
from fairlead.api import serving as serving_api
from fairlead.backends.endpoint import (
    EndpointClient,
    find_endpoint,
    list_services,
    spawn_server,
    stop_service,
)
from fairlead.backends.prediction_log import ParquetPredictionLog
from fairlead.backends.runners import open_runner
from fairlead.backends.services import hold_service, write_service
from fairlead.core.bundle import RuntimeSettings
from fairlead.core.endpoint import Endpoint
from fairlead.core.errors import (
    ConflictError,
    EndpointError,
    NotFoundError,
    PortInUseError,
    SignatureError,
    UsageError,
)
from fairlead.core.settings import Settings
from fairlead.core.workspace import Workspace
from fairlead.measure.profile import flatten_inputs
from fairlead.serve.inference import ServingConfig, serve

from . import inference_models as models
from .conftest import serving

X = np.array([[1.0, 2.0, -1.0, 0.5]], np.float32)


@pytest.fixture
def workspace(tmp_path):
    return Workspace.open(Settings.load(home=tmp_path / ".fairlead"))


@pytest.fixture
def taken_port():
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        yield holder.getsockname()[1]


def test_the_skill_starts_proves_and_stops(wines, wines_candidate, workspace):
    with ExitStack() as stack:
        outcome = serve(
            wines,
            ServingConfig(name="proven", candidate_weight=0.0, max_batch_size=4),
            workspace=workspace,
            candidate=wines_candidate,
            within=stack,
        )
        endpoint, token = find_endpoint(workspace, "proven")
        assert endpoint == outcome.noun
        with EndpointClient(endpoint.url, "proven", token) as client:
            assert client.infer({"x": X}).arm == "baseline"
            assert client.outcomes().next == 1  # the proof itself is not remembered
    with pytest.raises(NotFoundError):
        find_endpoint(workspace, "proven")
    measures = {measure.name: measure for measure in outcome.report.measures}
    assert measures["first_latency_ms"].note == "tritonclient.http"
    assert measures["answer_difference"].value == 0
    assert measures["cold_start_ms"].value > 10
    assert {item.subject for item in outcome.evidence} == {wines.digest}


def test_a_taken_port_is_refused_before_anything_starts(wines, workspace, taken_port, module_cli):
    with pytest.raises(PortInUseError, match=str(taken_port)):
        spawn_server(wines.path, workspace=workspace, name="w", http_port=taken_port)
    assert not list(workspace.services.iterdir())
    done = module_cli("serve", "start", wines.path, "--http-port", taken_port)
    assert done.returncode == 2
    assert "held by another process" in done.stderr
    assert "hint:" in done.stderr
    assert done.stdout == ""


def test_a_server_that_dies_early_is_reported_with_its_last_words(tmp_path, workspace):
    broken = tmp_path / "broken"
    models.classifier_bundle(broken)
    (broken / "model.onnx").write_bytes(b"changed")
    with pytest.raises(EndpointError, match=r"exit code 2 [\s\S]*digest"):
        spawn_server(broken, workspace=workspace, name="broken")
    assert list_services(workspace) == []


def test_arms_that_take_different_inputs_are_refused(wines, people, workspace):
    with pytest.raises(SignatureError, match="candidate takes"):
        serve(wines, workspace=workspace, candidate=people)


def test_a_name_is_served_once_per_workspace(wines, tmp_path):
    with serving(tmp_path, wines) as handle:
        workspace = Workspace.open(Settings.load(home=tmp_path / ".fairlead"))
        with pytest.raises(ConflictError, match="already runs"):
            spawn_server(wines.path, workspace=workspace, name="wines")
        with (
            pytest.raises(ConflictError, match="already runs"),
            hold_service(workspace, "wines"),
        ):
            pass
        with handle.client() as client:
            assert client.ready()
        record = workspace.services / "wines.json"
        assert record.stat().st_mode & 0o077 == 0
    assert not record.exists()


@pytest.mark.parametrize("name", ["../up", "", "a/b", "x" * 65])
def test_a_name_that_is_no_file_name_is_refused(wines, workspace, name):
    with pytest.raises(UsageError, match="cannot name"):
        spawn_server(wines.path, workspace=workspace, name=name)


def test_a_flood_is_refused_with_503_and_the_accepted_are_answered(slow, tmp_path):
    row = dict(zip(models.FEATURES, X[0].tolist(), strict=True))
    body = json.dumps({"rows": [row] * 16})
    with serving(tmp_path, slow, "slow", settings={"max_pending_requests": 2}) as handle:
        host = handle.endpoint.url.removeprefix("http://")

        def once(_):
            connection = http.client.HTTPConnection(host, timeout=30)
            connection.request("POST", "/predict", body)
            answer = connection.getresponse()
            document = json.loads(answer.read())
            connection.close()
            return answer.status, answer.headers, document

        with ThreadPoolExecutor(12) as pool:
            found = list(pool.map(once, range(24)))
        with handle.client() as client:
            assert client.infer({"x": X}).outputs["y"][0, 0] == 2.5
    assert {status for status, _, _ in found} == {200, 503}
    for status, headers, document in found:
        if status == 503:
            assert int(headers["Retry-After"]) >= 1
            assert document["hint"]
        else:
            assert [item["prediction"] for item in document["predictions"]] == [2.5] * 16


def test_a_request_that_takes_too_long_is_answered_with_504(slow, tmp_path):
    with (
        serving(tmp_path, slow, "slow", settings={"request_timeout_s": 0.02}) as handle,
        handle.client() as client,
    ):
        with pytest.raises(EndpointError, match="504"):
            client.infer({"x": np.repeat(X, 48, axis=0)}, id="late")
        assert [o.status for o in client.outcomes().outcomes] == [504]


@pytest.mark.parametrize("how", ["sigterm", "stdin"])
def test_requests_in_flight_are_answered_while_the_server_drains(slow, tmp_path, how):
    patience = {"request_timeout_s": 300, "drain_timeout_s": 300}
    with serving(tmp_path, slow, "slow", settings=patience) as handle:
        with ThreadPoolExecutor(1) as pool, handle.client() as client, handle.client() as watcher:
            flying = pool.submit(client.infer, {"x": np.repeat(X, 48, axis=0)})
            while 'model="slow"} 1.0' not in pending(watcher) and not flying.done():
                pass
            assert not flying.done()
            if how == "sigterm":
                os.kill(handle.process.pid, signal.SIGTERM)
            else:
                handle.process.stdin.close()
            assert flying.result(timeout=300).outputs["y"].shape == (48, 1)
        assert handle.process.wait(300) == 0
    log = ParquetPredictionLog(tmp_path / ".fairlead" / "predictions")
    assert log.read("slow").n_rows == 48


def pending(client):
    lines = client.metrics().splitlines()
    return next(line for line in lines if line.startswith("fairlead_pending_requests"))


def test_the_server_ends_when_its_parent_is_killed(wines, tmp_path):
    script = (
        "import sys, time\n"
        "from fairlead.backends.endpoint import spawn_server\n"
        "from fairlead.core.workspace import Workspace\n"
        "handle = spawn_server(sys.argv[1], workspace=Workspace.open(), name='orphan')\n"
        "print(handle.process.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    env = {**os.environ, "FAIRLEAD_HOME": str(tmp_path / ".fairlead")}
    parent = subprocess.Popen(
        [sys.executable, "-c", script, str(wines.path)], stdout=subprocess.PIPE, env=env
    )
    with parent:
        pid = int(parent.stdout.readline())
        parent.kill()
    workspace = Workspace.open(Settings.load(home=tmp_path / ".fairlead"))
    stop_service_when_gone(workspace, pid)
    assert list_services(workspace) == []


def stop_service_when_gone(workspace, pid):
    """Wait for the lock of the orphan: taking it succeeds once its process has ended."""
    for _ in range(50):
        try:
            with hold_service(workspace, "orphan"):
                return
        except ConflictError:
            continue
    raise AssertionError(f"process {pid} still runs")


def test_kill_9_leaves_a_stale_record_and_whole_segments(wines, tmp_path, module_cli):
    with serving(tmp_path, wines, settings={"log_flush_rows": 10, "log_flush_s": 600}) as handle:
        with handle.client() as client:
            for i in range(10):
                client.infer({"x": X}, id=f"kept{i}")
            while "predictions_logged_total 10.0" not in client.metrics():
                pass
            client.infer({"x": X}, id="lost")
        handle.process.kill()
        handle.process.wait()
    home = {"FAIRLEAD_HOME": str(tmp_path / ".fairlead")}
    batch = ParquetPredictionLog(tmp_path / ".fairlead" / "predictions").read("wines")
    assert sorted(batch.ids) == [f"kept{i}" for i in range(10)]
    status = module_cli("serve", "status", "wines", "--json", env=home)
    assert status.returncode == 1
    assert status.json["details"]["services"][0]["is_alive"] is False
    workspace = Workspace.open(Settings.load(home=tmp_path / ".fairlead"))
    with pytest.raises(NotFoundError, match="without a goodbye"):
        find_endpoint(workspace, "wines")
    context = Context.open(home=tmp_path / ".fairlead")
    stopped = serving_api.stop_service("wines", context=context)
    assert stopped.report.details["was_alive"] is False
    assert list_services(workspace) == []
    with pytest.raises(NotFoundError, match="does not run"):
        serving_api.stop_service("wines", context=context)


def test_the_log_holds_what_was_asked_and_answered(wines, wines_candidate, tmp_path):
    x = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    options = {"candidate": wines_candidate.path, "candidate_weight": 0.5}
    with serving(tmp_path, wines, **options) as handle, handle.client() as client:
        answers = [client.infer({"x": x[i : i + 1]}, id=f"q{i}") for i in range(15)]
        many = client.infer({"x": x[15:]}, id="many")
    batch = ParquetPredictionLog(tmp_path / ".fairlead" / "predictions").read("wines")
    assert batch.n_rows == 20
    place = {name: i for i, name in enumerate(batch.ids)}
    order = [place[f"q{i}"] for i in range(15)] + [place[f"many#{i}"] for i in range(5)]
    expected = flatten_inputs(wines.manifest, {"x": x})
    assert list(batch.inputs.columns) == list(models.FEATURES) == list(expected)
    for name, column in expected.items():
        np.testing.assert_allclose(batch.inputs.columns[name][order], column)
    labels = np.concatenate([answer.outputs["label"] for answer in [*answers, many]])
    np.testing.assert_array_equal(batch.outputs["prediction"][order], labels)
    assert list(batch.fields["arm"][order][:15]) == [answer.arm for answer in answers]
    assert set(batch.fields["version"]) <= {wines.version, wines_candidate.version}
    assert (batch.fields["total_ms"] >= batch.fields["run_ms"]).all()


def test_an_unwritable_log_does_not_stop_the_server(wines, workspace, tmp_path):
    with serving(tmp_path, wines, settings={"log_flush_s": 0.05}) as handle:
        folder = tmp_path / ".fairlead" / "predictions" / "wines"
        folder.rmdir()
        folder.write_text("in the way")
        with handle.client() as client:
            for _ in range(3):
                assert client.infer({"x": X}).arm == "baseline"
        assert handle.stop() == 0
    assert "predictions are lost" in handle.log.read_text()


def test_models_of_fixed_batch_take_any_number_of_rows(tmp_path):
    bundle = models.classifier_bundle(tmp_path / "bundle", batch=4)
    x = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    runner = open_runner(models.classifier_bundle(tmp_path / "free"))
    expected = runner.run({"x": x})["scores"]
    runner.close()
    with serving(tmp_path, bundle) as handle, handle.client() as client:
        assert client.metadata()["inputs"][0]["shape"] == [-1, 4]
        for n_rows in (1, 4, 6):
            found = client.infer({"x": x[:n_rows]}).outputs["scores"]
            np.testing.assert_allclose(found, expected[:n_rows], atol=1e-6)


def test_tuned_settings_are_obeyed(tmp_path):
    tuned = RuntimeSettings(intra_op_threads=1, max_batch_size=2, is_tuned=True)
    bundle = models.classifier_bundle(tmp_path / "bundle", runtime=tuned)
    with serving(tmp_path, bundle) as handle, handle.client() as client:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda _: client.infer({"x": X}), range(80)))
        text = client.metrics()
    counts = {
        line.split('le="')[1].split('"')[0]: float(line.split()[-1])
        for line in text.splitlines()
        if line.startswith("fairlead_batch_rows_bucket")
    }
    assert counts["2.0"] == counts["+Inf"] == 80


def test_records_without_a_process_are_stale(workspace):
    endpoint = Endpoint(service="ghost", url="http://127.0.0.1:9", pid=os.getpid(), arms={})
    write_service(workspace, endpoint, "token")
    assert [record.is_alive for record in list_services(workspace)] == [False]
    with hold_service(workspace, "ghost"):
        assert [record.is_alive for record in list_services(workspace)] == [True]
        assert find_endpoint(workspace, "ghost") == (endpoint, "token")
    stop_service(workspace, "ghost")
    assert list_services(workspace) == []
    (workspace.services / "half.json").write_text("{")
    assert list_services(workspace) == []
