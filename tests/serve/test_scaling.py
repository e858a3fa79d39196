"""Load tests and capacity plans, on real servers where there is one to press."""

import json
import math
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from fairlead.api.context import Context
from fairlead.api.scaling import load_test, scale
from fairlead.backends.load import Answer, LoadGenerator
from fairlead.backends.service_times import load_service_times
from fairlead.core.errors import (
    ConfigError,
    DataError,
    EndpointError,
    NotFoundError,
    UsageError,
)
from fairlead.core.ports import SilentProgress
from fairlead.entrypoints.cli.app import main
from fairlead.serve.scaling import LoadConfig, ScalingConfig, check_loopback, load_outcome, press
from fairlead.serve.scaling import scale as plan_scale
from tests.serve.inference_models import classifier_bundle
from tests.serve.rollout_models import rows_file

# Plans


def lognormal(n=4000):
    spread = math.log(1 + 1.3**2)
    rng = np.random.default_rng(0)
    return rng.lognormal(math.log(20) - spread / 2, spread**0.5, n)


def plan(times=None, **settings):
    quick = {"requests": 5000, "runs": 1}
    config = ScalingConfig.parse({"target_rps": 400, "slo_p99_ms": 200, **quick, **settings})
    return plan_scale(lognormal() if times is None else times, config, subject="test")


def test_the_plan_is_the_least_number_that_meets_the_slo():
    outcome = plan()
    chosen = outcome.noun
    assert chosen.p99_ms <= 200
    assert chosen.replicas > 400 * chosen.mean_service_ms / 1e3
    fewer = plan(max_replicas=chosen.replicas - 1)
    assert fewer.noun.replicas is None
    assert fewer.is_refused


def test_a_plan_keeps_a_spare_and_compares_the_policies():
    chosen = plan(spare_replicas=2, gateways=4).noun
    assert chosen.replicas_with_spare == chosen.replicas + 2
    assert chosen.p99_with_spare_ms <= chosen.p99_ms
    needed = {item.policy: item.replicas for item in chosen.policies}
    assert needed["central-queue"] <= needed["least-outstanding"] <= needed["round-robin"]


def test_the_plan_matches_the_published_comparison():
    """2,000 rps at p99 ≤ 150 ms: central queue 42, least-outstanding through one gateway 45."""
    outcome = plan(lognormal(20_000), target_rps=2000, slo_p99_ms=150, requests=20_000)
    needed = {item.policy: item.replicas for item in outcome.noun.policies}
    assert needed["central-queue"] == pytest.approx(42, abs=2)
    assert needed["least-outstanding"] == pytest.approx(45, abs=3)


def test_an_slo_below_the_service_time_is_refused_with_the_way_out():
    outcome = plan(slo_p99_ms=5)
    assert outcome.is_refused
    assert "make the model faster" in outcome.report.findings[0].advice


def test_a_measured_capacity_stretches_the_service_times():
    assert plan(capacity_rps=25).noun.mean_service_ms == pytest.approx(40)


def test_the_same_seed_gives_the_same_plan():
    assert plan(seed=4).noun == plan(seed=4).noun


@pytest.mark.parametrize("times", [[1.0] * 10, [1.0] * 40 + [0.0], [1.0] * 40 + [math.nan]])
def test_service_times_that_make_no_sense_are_refused(times):
    with pytest.raises(DataError):
        plan(np.array(times))


@pytest.mark.parametrize("settings", [{"policy": "best"}, {"target_rps": 0}, {"nope": 1}])
def test_settings_that_make_no_sense_are_refused(settings):
    with pytest.raises(ConfigError):
        ScalingConfig.parse(settings)


def test_plots_and_evidence_are_there():
    outcome = plan()
    assert outcome.report.plots[0].marks == (("SLO", 200.0),)
    assert {item.metric for item in outcome.evidence} >= {"replicas_needed", "service_time_mean_ms"}


# Service times from files


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", "[1, 2.5]"),
        ("b.json", '{"service_ms": [1, 2.5]}'),
        ("c.csv", "service_ms,other\n1,9\n2.5,9\n"),
        ("d.csv", "whatever\n1\n2.5\n"),
    ],
)
def test_service_times_are_read(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert load_service_times(str(tmp_path / name)).tolist() == [1.0, 2.5]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", "{"), ("b.json", "[]"), ("c.json", '["x"]'), ("d.json", "3"),
        ("e.csv", "a,b\n1,2\n"),
    ],
)  # fmt: skip
def test_files_without_service_times_are_refused(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError):
        load_service_times(str(tmp_path / name))


def test_missing_service_times_are_said():
    with pytest.raises(NotFoundError):
        load_service_times("nowhere.json")


# Pressing a server


class FakeSender:
    """Takes a fixed time per request, one at a time for all connections."""

    busy = threading.Lock()

    def __init__(self, service_s=0.002, status=200, stall=None):
        self._service_s, self._status, self._stall = service_s, status, stall

    def send(self, row, request_id):
        with self.busy:
            if self._stall is not None and request_id == self._stall:
                time.sleep(0.3)
            time.sleep(self._service_s)
        return Answer(self._status)

    def close(self):
        pass


def pressed(**settings):
    service_s = settings.pop("service_s", 0.002)
    config = LoadConfig.parse({"step_seconds": 0.4, "connections": 16, **settings})
    test = press(
        lambda: FakeSender(service_s), n_rows=3, url="http://127.0.0.1:1", service="fake",
        config=config, progress=SilentProgress(),
    )  # fmt: skip
    return load_outcome(test, config, "test")


def test_the_search_brackets_the_capacity():
    outcome = pressed(rate_rps=20, service_s=0.005, max_steps=8)
    assert outcome.noun.is_limit_found
    assert 20 <= outcome.noun.saturation_rps < 220


def test_without_search_one_rate_is_tried():
    outcome = pressed(rate_rps=20, search=False)
    assert len(outcome.noun.steps) == 1
    assert not outcome.noun.is_limit_found


def test_a_server_that_never_keeps_up_is_refused():
    outcome = pressed(rate_rps=100, service_s=0.05, search=False)
    assert outcome.is_refused
    assert outcome.noun.saturation_rps is None


def test_a_latency_limit_counts():
    assert pressed(rate_rps=20, service_s=0.02, search=False, max_p99_ms=1).is_refused


def test_a_stall_shows_in_the_latency_of_all_who_had_to_wait():
    """Coordinated omission: a closed loop would report one slow request."""
    with LoadGenerator(lambda: FakeSender(0.0, stall="r-10"), connections=1) as load:
        offsets = [index * 0.01 for index in range(40)]
        samples = load.run([0] * 40, [f"r-{i}" for i in range(40)], offsets_s=offsets)
    slow = [sample for sample in samples if sample.latency_ms > 50]
    assert len(slow) >= 20
    assert sum((s.done_s - s.sent_s) > 0.05 for s in samples) == 1


def test_requests_beyond_the_time_limit_are_left_out():
    with LoadGenerator(lambda: FakeSender(0.02), connections=1) as load:
        samples = load.run([0] * 50, ["r"] * 50, offsets_s=[0.0] * 50, limit_s=0.1)
        assert load.run([], []) == []
    assert 0 < len(samples) < 50


def test_an_error_of_a_thread_reaches_the_caller():
    def broken():
        raise EndpointError("no", hint="none")

    with LoadGenerator(broken, connections=2) as load, pytest.raises(EndpointError):
        load.run([0, 1], ["a", "b"])


def test_a_server_that_answers_nothing_is_an_error():
    with pytest.raises(EndpointError, match="answers 500"):
        press(
            lambda: FakeSender(0.0, status=500), n_rows=1, url="u", service="s",
            config=LoadConfig(), progress=SilentProgress(),
        )  # fmt: skip


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com", "http://10.0.0.1:80", "https://example.com", "ftp://127.0.0.1",
        "http://", "http://127.0.0.1:99999", "http://0.0.0.0:80", "http://localhost.evil.com",
    ],
)  # fmt: skip
def test_other_machines_are_not_pressed(url):
    with pytest.raises(UsageError):
        check_loopback(url)


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:8080", "http://localhost", "http://[::1]:80", "https://127.0.0.1"]
)
def test_this_machine_may_be_pressed(url):
    assert check_loopback(url) == url


# A server that we did not write: JSON only, chunked answers


class PlainV2(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        model = {
            "name": "m",
            "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}],
            "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 1]}],
        }
        server = {"name": "plain", "extensions": []}
        self._answer(json.dumps(model if "models" in self.path else server).encode())

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert body["inputs"][0]["shape"] == [1, 4]
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.write(b"2\r\n{}\r\n0\r\n\r\n")

    def _answer(self, body):
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words):
        pass


@pytest.fixture
def plain_server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), PlainV2)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_any_server_of_the_protocol_can_be_pressed(plain_server, tmp_path):
    rows = rows_file(tmp_path / "rows.parquet")
    outcome = load_test(
        plain_server, str(rows), labels="kind", model="m",
        settings={"rate_rps": 30, "search": False, "step_seconds": 0.5},
        context=Context.open(home=tmp_path / "home"),
    )  # fmt: skip
    assert outcome.noun.steps[0].error_ratio == 0.0


def test_a_url_nobody_knows_needs_the_name_of_the_model(plain_server, tmp_path):
    rows = rows_file(tmp_path / "rows.parquet")
    with pytest.raises(EndpointError, match="name of its model"):
        load_test(plain_server, str(rows), context=Context.open(home=tmp_path / "home"))


# The whole way


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scale")
    classifier_bundle(folder / "bundle")
    rows_file(folder / "rows.parquet")
    return folder


def test_a_bundle_is_measured_and_planned(packed, tmp_path):
    context = Context.open(home=tmp_path / "home")
    outcome = scale(
        packed / "bundle", str(packed / "rows.parquet"), labels="kind", requests=200,
        settings={"target_rps": 50, "slo_p99_ms": 500, "requests": 4000}, context=context,
    )  # fmt: skip
    assert outcome.noun.replicas == 1
    assert outcome.noun.service_samples == 200
    assert context.evidence.query(metric="service_time_mean_ms")


def test_the_command_presses_a_bundle(packed, cli):
    done = cli(
        "serve", "scale", "test", packed / "bundle", "--data", packed / "rows.parquet",
        "--labels", "kind", "--rate", "30", "--no-search", "--step-seconds", "0.5", "--json",
    )  # fmt: skip
    assert done.json["details"]["load_test"]["steps"][0]["requests"] == 20


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["plan"], "either a server"),
        (["plan", "http://example.com", "--data", "x"], "not this machine"),
        (["plan", "nobody", "--data", "x.csv"], "does not run"),
        (["plan", "nobody"], "no rows to send"),
        (["plan", "--service-times", "nowhere.json"], "no service times"),
        (["plan", "--service-times", "x", "--policy", "best"], "policy"),
        (["test", "http://127.0.0.1:1", "--model", "m", "--data", "x.csv"], "cannot be reached"),
    ],
)
def test_wrong_usage_ends_with_a_hint_and_exit_code_2(words, said, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["serve", "scale", *words])
    told = capsys.readouterr().err
    assert ended.value.code == 2, told
    assert said in told
    assert "hint:" in told
