"""Planted cases: the router measures, settles its own question, and names the measurement."""

from __future__ import annotations

import json
import socket
import threading
import time
from contextlib import closing, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from fairlead.api import service_timing
from fairlead.api.context import Context
from fairlead.api.in_process_timing import padding_share
from fairlead.api.packing import pack
from fairlead.api.routing import consult
from fairlead.api.source_rows import Sources
from fairlead.core.bundle import RuntimeSettings, derive_bundle
from fairlead.core.errors import EndpointError, OverloadedError, UsageError

pytestmark = pytest.mark.alone

SLOW = "my inference is slow"
POOR = "performance in production is bad"


@pytest.fixture
def context(tmp_path):
    return Context.open(home=tmp_path / ".fairlead")


def measured(text, context, **sources):
    return consult(text, sources=Sources(**sources), measure=True, context=context)


def write_chain(path: Path, *, width: int, depth: int) -> None:
    """Write an ONNX model of a row of `width` numbers and `depth` products of 512 x 512."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    first = (rng.standard_normal((width, 512)) / width**0.5).astype(np.float32)
    square = (rng.standard_normal((512, 512)) / 512**0.5).astype(np.float32)
    nodes = [helper.make_node("MatMul", ["x", "first"], ["h0"])]
    for layer in range(depth):
        nodes.append(helper.make_node("MatMul", [f"h{layer}", "square"], [f"h{layer + 1}"]))
    nodes.append(helper.make_node("ReduceMean", [f"h{depth}"], ["y"], axes=[1], keepdims=1))
    graph = helper.make_graph(
        nodes, "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 1])],
        [numpy_helper.from_array(first, "first"), numpy_helper.from_array(square, "square")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, path)


def write_rows(path: Path, *, width: int, n_rows: int = 60) -> None:
    rng = np.random.default_rng(1)
    np.savez(path, x=rng.standard_normal((n_rows, width)).astype(np.float32))


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """A model whose products take all the time of a request, packed, and its rows."""
    folder = tmp_path_factory.mktemp("chain")
    write_chain(folder / "chain.onnx", width=16, depth=300)
    write_rows(folder / "rows.npz", width=16)
    made = pack(
        str(folder / "chain.onnx"), data=str(folder / "rows.npz"), out=folder / "chain",
        context=Context.open(home=folder / ".fairlead"),
    )  # fmt: skip
    return made.noun, str(folder / "rows.npz")


def test_a_slow_operator_is_the_model(chain, context):
    bundle, rows = chain

    found = measured(SLOW, context, model=str(bundle.path), data=rows)

    assert found.answer.skill_ids[0] == "hardware-optimization-strategies"
    [used] = found.answer.evidence_used
    assert (used.metric, used.option) == ("model_time_share", "model")
    assert used.value > 0.6
    assert used.subject == bundle.digest


def test_a_model_that_is_no_bundle_is_measured_as_well(chain, context):
    model = chain[0].path.parent / "chain.onnx"

    found = measured(SLOW, context, model=str(model), data=chain[1])

    assert found.answer.kind == "route"
    assert found.answer.evidence_used[0].option == "model"


def test_the_whole_chain_of_questions_is_settled(chain, context):
    found = measured("my model is too slow", context, model=str(chain[0].path), data=chain[1])

    assert [used.settled for used in found.answer.evidence_used] == [
        "speed-inference-or-training",
        "model-or-infrastructure",
    ]


def test_too_many_threads_are_the_infrastructure(chain, context, tmp_path):
    bundle, rows = chain
    crowded = derive_bundle(
        bundle, tmp_path / "crowded", made_by="test", change="more threads than CPUs",
        runtime=RuntimeSettings(intra_op_threads=32),
    )  # fmt: skip

    found = measured(SLOW, context, model=str(crowded.path), data=rows)

    assert {item.labels.get("cause") for item in found.taken} >= {"threads"}
    [used] = found.answer.evidence_used
    assert (used.metric, used.option) == ("threads_per_cpu", "infrastructure")
    assert used.value >= 2


def test_a_slow_reader_of_requests_is_the_infrastructure(tmp_path, context):
    write_chain(tmp_path / "wide.onnx", width=2048, depth=1)
    write_rows(tmp_path / "rows.npz", width=2048)

    found = measured(
        SLOW, context, model=str(tmp_path / "wide.onnx"), data=str(tmp_path / "rows.npz")
    )

    assert found.answer.skill_ids[0] == "model-serving-patterns"
    assert found.taken[0].labels["cause"] == "data-path"


@pytest.mark.parametrize(
    ("feeds", "share"),
    [
        ({"ids": np.array([[5, 6] + [0] * 18, [5] * 10 + [0] * 10])}, 0.7),
        ({"ids": np.ones((2, 20), np.int64)}, 0.0),
        ({"attention_mask": np.array([[1, 1, 1, 0]])}, 0.25),
        ({"ids": np.zeros((3, 20), np.int64)}, 1.0),
        ({"pixels": np.zeros((3, 64), np.float32)}, None),
        ({"codes": np.zeros((3, 4), np.int64)}, None),
    ],
)
def test_padding_is_seen_in_sequences_only(feeds, share):
    found = padding_share(feeds)

    assert found == (None if share is None else pytest.approx(share))


def write_embedding(path: Path, *, width: int) -> None:
    """Write a model over token ids that does the same work for padding as for words."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    table = rng.standard_normal((50, 256)).astype(np.float32)
    square = rng.standard_normal((256, 256)).astype(np.float32) / 16
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["h0"]),
        helper.make_node("MatMul", ["h0", "square"], ["h1"]),
        helper.make_node("MatMul", ["h1", "square"], ["h2"]),
        helper.make_node("ReduceMean", ["h2"], ["y"], axes=[1, 2], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes, "words",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, [None, width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None])],
        [numpy_helper.from_array(table, "table"), numpy_helper.from_array(square, "square")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, path)


def test_padding_waste_is_the_infrastructure(tmp_path, context):
    write_embedding(tmp_path / "words.onnx", width=128)
    ids = np.zeros((40, 128), np.int64)
    ids[:, :12] = np.random.default_rng(0).integers(1, 50, (40, 12))
    np.savez(tmp_path / "ids.npz", ids=ids)

    found = measured(
        SLOW, context, model=str(tmp_path / "words.onnx"), data=str(tmp_path / "ids.npz")
    )

    assert found.taken[0].labels["cause"] == "data-path"
    assert found.answer.skill_ids[0] == "model-serving-patterns"
    [used] = found.answer.evidence_used
    assert (used.metric, used.option) == ("padding_share", "infrastructure")
    assert used.value == pytest.approx(1 - 12 / 128, abs=0.01)
    assert "padding" in found.taken[0].labels["why"]
    assert next(i for i in found.taken if i.metric == "model_time_share").value < 0.4


@pytest.fixture(scope="module")
def served(chain, tmp_path_factory):
    from fairlead.backends.endpoint import spawn_server

    context = Context.open(home=tmp_path_factory.mktemp("served") / ".fairlead")
    with spawn_server(chain[0].path, workspace=context.workspace, name="chain") as handle:
        yield handle, context.workspace.root


@pytest.fixture
def service(served):
    """The address of the service and its workspace, without what was measured before."""
    handle, home = served
    for file in home.glob("state.db*"):
        file.unlink()
    return handle.endpoint.url, Context.open(home=home)


@contextmanager
def delaying_proxy(port: int, delay_s: float):
    """Forward bytes to a local port, every piece of an answer late by `delay_s`."""
    door = socket.create_server(("127.0.0.1", 0))
    door.settimeout(30)
    open_ends = [door]

    def carry(source, target, pause):
        try:
            while data := source.recv(65536):
                time.sleep(pause)
                target.sendall(data)
        except OSError:
            pass

    def accept():
        while True:
            try:
                near, _ = door.accept()
                far = socket.create_connection(("127.0.0.1", port))
            except OSError:
                return
            open_ends.extend((near, far))
            for pair in ((near, far, 0.0), (far, near, delay_s)):
                threading.Thread(target=carry, args=pair, daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{door.getsockname()[1]}"
    finally:
        for end in open_ends:
            end.close()


def test_a_slow_network_is_the_infrastructure(service, chain):
    url, context = service
    with delaying_proxy(int(url.rsplit(":", 1)[1]), 0.3) as late:
        found = measured(SLOW, context, url=late, data=chain[1])

    assert found.taken[0].labels["cause"] == "network"
    [used] = found.answer.evidence_used
    assert (used.metric, used.option) == ("network_time_share", "infrastructure")
    assert used.value > 0.3


def test_a_server_that_only_runs_the_model_is_the_model(service, chain):
    _, context = service

    found = measured(SLOW, context, url="chain", data=chain[1])

    assert found.answer.evidence_used[0].option == "model"
    assert found.answer.evidence_used[0].subject == "service:chain"
    assert next(i for i in found.taken if i.metric == "error_rate_ratio").value == 0


def test_a_slow_queue_is_the_infrastructure(service, chain):
    from fairlead.backends.endpoint import EndpointClient

    url, context = service
    stop = threading.Event()
    crowd = np.random.default_rng(0).standard_normal((40, 16)).astype(np.float32)

    def press():
        with closing(EndpointClient(url, "chain")) as client:
            while not stop.is_set():
                with suppress(OverloadedError):
                    client.infer({"x": crowd})

    threads = [threading.Thread(target=press) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        found = measured(SLOW, context, url="chain", data=chain[1])
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)

    queue = next(item for item in found.taken if item.metric == "queue_time_share")
    assert queue.value > 0.4
    assert found.answer.evidence_used[0].option == "infrastructure"


class ForeignServer(BaseHTTPRequestHandler):
    """A server of the protocol that is not ours: it keeps the statistics of the extension."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1
    counts: ClassVar[dict[str, int]] = {"requests": 0}

    def do_GET(self):
        model = {"name": "m", "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}]}
        model["outputs"] = [{"name": "y", "datatype": "FP32", "shape": [-1, 1]}]
        n = self.counts["requests"]
        times = {"success": 27_000_000, "queue": 20_000_000, "compute_infer": 5_000_000}
        stats = {key: {"count": n, "ns": n * ns} for key, ns in times.items()}
        self.reply({
            "/v2": {"name": "other", "extensions": ["binary_tensor_data", "statistics"]},
            "/v2/models/m": model,
            "/v2/models/m/stats": {"model_stats": [{"name": "m", "inference_stats": stats}]},
        }.get(self.path))  # fmt: skip

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.counts["requests"] += 1
        time.sleep(0.027)
        output = {"name": "y", "datatype": "FP32", "shape": [1, 1], "data": [1.0]}
        self.reply({"model_name": "m", "outputs": [output]})

    def reply(self, document):
        body = json.dumps(document or {"error": "no such thing"}).encode()
        self.send_response(200 if document else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def log_message(self, *_):
        pass


@contextmanager
def running(handler):
    """Serve with a handler of requests, and give the address."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.fixture
def foreign():
    with running(ForeignServer) as url:
        yield url


def test_a_server_of_others_is_timed_by_its_own_statistics(foreign, context, tmp_path):
    np.savez(tmp_path / "rows.npz", x=np.ones((5, 2), np.float32))

    found = measured(SLOW, context, url=f"{foreign}/v2/models/m", data=str(tmp_path / "rows.npz"))

    shares = {item.metric: item.value for item in found.taken}
    assert found.taken[0].labels["verdict"] == "infrastructure"
    assert found.answer.evidence_used[0].option == "infrastructure"
    assert shares["queue_time_share"] > shares["model_time_share"]


class FullServer(ForeignServer):
    """A server that is full: it refuses what comes, while it answers those that wait in line."""

    counts: ClassVar[dict[str, int]] = {"requests": 0}

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.counts["requests"] += 1
        body = json.dumps({"error": "full"}).encode()
        self.send_response(503)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()


def test_a_server_that_is_full_is_judged_by_the_requests_of_others(context, tmp_path, monkeypatch):
    monkeypatch.setattr(service_timing, "_PATIENCE_S", 0.0)
    np.savez(tmp_path / "rows.npz", x=np.ones((5, 2), np.float32))
    with running(FullServer) as url:
        found = measured(SLOW, context, url=f"{url}/v2/models/m", data=str(tmp_path / "rows.npz"))

    [used] = found.answer.evidence_used
    assert (used.metric, used.option) == ("queue_time_share", "infrastructure")
    assert found.taken[0].method.endswith("requests of its clients")


def test_a_server_that_does_not_say_what_it_serves_must_be_told(foreign, context):
    with pytest.raises(EndpointError, match="does not say") as caught:
        measured(SLOW, context, url=foreign)

    assert f"{foreign}/v2/models/NAME" in caught.value.hint


@pytest.fixture
def digits(bundles):
    return str(bundles / "baseline"), bundles


def test_drifted_input_is_a_matter_of_accuracy(digits, context):
    baseline, folder = digits

    found = measured(POOR, context, model=baseline, data=str(folder / "shifted.parquet"))

    assert found.answer.evidence_used[0].option == "accuracy"
    metrics = {item.metric: item.value for item in found.taken}
    assert metrics["drifted_columns"] > 0


def test_drift_without_labels_is_named_by_the_drift(digits, context, tmp_path):
    import pyarrow.parquet as pq

    baseline, folder = digits
    table = pq.read_table(folder / "shifted.parquet").drop_columns(["label"])
    pq.write_table(table, tmp_path / "unlabelled.parquet")

    found = measured(POOR, context, model=baseline, data=str(tmp_path / "unlabelled.parquet"))

    assert found.answer.evidence_used[0].metric == "drift_detected"
    assert found.answer.skill_ids == ("production-monitoring-and-alerting",)


def test_flipped_labels_are_a_loss_of_accuracy_without_drift(digits, context, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    baseline, folder = digits
    table = pq.read_table(folder / "holdout.parquet")
    labels = (np.asarray(table["label"]) + 1) % 10
    index = table.schema.get_field_index("label")
    pq.write_table(table.set_column(index, "label", pa.array(labels)), tmp_path / "wrong.parquet")

    found = measured(POOR, context, model=baseline, data=str(tmp_path / "wrong.parquet"))

    assert found.answer.evidence_used[0].metric == "accuracy_drop_ratio"
    assert found.answer.evidence_used[0].value > 0.5
    assert next(i for i in found.taken if i.metric == "drifted_columns").value == 0


def test_nothing_wrong_settles_nothing(digits, context):
    baseline, folder = digits

    found = measured(POOR, context, model=baseline, data=str(folder / "holdout.parquet"))

    assert found.answer.ambiguity == "speed-or-accuracy"
    assert found.answer.evidence_used == ()
    assert next(i for i in found.taken if i.metric == "drifted_columns").value == 0


def test_a_limit_that_is_broken_makes_it_a_matter_of_speed(chain, context):
    sources = {"model": str(chain[0].path), "data": chain[1]}

    found = measured(POOR, context, **sources, slo_ms=0.01)

    assert [used.settled for used in found.answer.evidence_used] == [
        "speed-or-accuracy",
        "model-or-infrastructure",
    ]
    assert found.answer.evidence_used[0].metric == "latency_p95_ms"


def test_what_was_measured_once_is_read_the_next_time(chain, context):
    sources = Sources(model=str(chain[0].path))
    assert consult(SLOW, sources=sources, context=context).answer.kind == "clarify"
    measured(SLOW, context, model=str(chain[0].path), data=chain[1])

    again = consult(SLOW, sources=sources, context=context)

    assert again.answer.kind == "route"
    assert again.taken == ()


def test_a_workspace_about_one_model_needs_no_reference(chain, context):
    measured(SLOW, context, model=str(chain[0].path), data=chain[1])

    assert consult(SLOW, context=context).answer.kind == "route"


def test_findings_about_other_rows_are_not_used(digits, context):
    baseline, folder = digits
    measured(POOR, context, model=baseline, data=str(folder / "shifted.parquet"))

    other = Sources(model=baseline, data=str(folder / "holdout.parquet"))

    assert consult(POOR, sources=other, context=context).answer.kind == "clarify"


def test_a_question_that_nothing_measures_is_asked(chain, context):
    found = measured("I need to deploy my model", context, model=str(chain[0].path), data=chain[1])

    assert found.answer.ambiguity == "deployment-target"
    assert found.taken == ()


def test_a_model_without_rows_cannot_be_measured(chain, context):
    with pytest.raises(UsageError, match="nothing to measure"):
        measured(SLOW, context, model=str(chain[0].path))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--measure"], "nothing to measure"),
        (["--model", "missing.onnx"], "there is no model"),
        (["--data", "rows.npz"], "alone says nothing"),
        (["--url", "http://127.0.0.1:1", "--labels", "y"], "belong to no rows"),
        (["--url", "ftp://x"], "is no URL"),
        (["--url", "http://127.0.0.1:1"], "cannot be reached"),
        (["--url", "http://[bad"], "no valid host or port"),
        (["--url", "no-such-service"], "does not run"),
    ],
)
def test_sources_that_cannot_be_used_are_refused(here, words, says):
    done = here("ask", SLOW, *words, check=2)

    assert says in done.stderr
    assert "hint: " in done.stderr
    assert "Traceback" not in done.stderr


def test_what_is_measured_is_told_and_a_cause_only_where_it_counts(here, digits, chain):
    baseline, folder = digits
    rows = folder / "holdout.parquet"

    fine = here("ask", POOR, "--model", baseline, "--data", rows, "--measure", check=0)
    slow = here("ask", SLOW, "--model", chain[0].path, "--data", chain[1], "--measure", check=0)

    assert "measured now: drifted_columns = 0" in fine.stderr
    assert "does not settle it" in fine.stderr
    assert "what decides" not in fine.stderr
    assert "measured instead of asking: model_time_share" in slow.stdout
    assert "what decides: " in slow.stderr
