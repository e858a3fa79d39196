"""Requests that are served together: they get the answers that they would have got alone."""

from __future__ import annotations

import json
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.backends.prediction_log import LogCounts
from fairlead.core.endpoint import TrafficSplit
from fairlead.core.errors import FairleadError
from fairlead.core.signature import Signature, TensorSpec
from fairlead.serve.inference.arms import open_arm
from fairlead.serve.inference.config import ServingConfig
from fairlead.serve.inference.dataplane import Dataplane, Joined
from fairlead.serve.inference.intake import Intake
from fairlead.serve.inference.metrics import ServingMetrics
from fairlead.serve.inference.openinference import decode
from fairlead.serve.inference.outcomes import OutcomeRing
from fairlead.serve.inference.recording import _Recorder
from fairlead.serve.inference.row_reader import RowReader
from fairlead.serve.inference.served import ServedRequest, ServedTogether
from fairlead.serve.inference.traffic import Traffic

from .raw_http import RawClient, post

INFER = "/v2/models/wines/infer"
SIGNATURE = Signature(
    inputs=(TensorSpec(name="x", dtype="float32", shape=(-1, 4)),),
    outputs=(TensorSpec(name="y", dtype="float32", shape=(-1, 2)),),
)


def reader_of(dtype="float32"):
    spec = TensorSpec(name="x", dtype=dtype, shape=(-1, 4))
    signature = Signature(inputs=(spec,), outputs=SIGNATURE.outputs)
    intake = Intake(signature, max_rows=100)
    return RowReader(signature, intake), intake


def body(data, *, shape=(1, 4), datatype="FP32", name="x", **more):
    item = {"name": name, "shape": list(shape), "datatype": datatype, "data": data}
    return json.dumps({"inputs": [item], **more}).encode()


def carefully(intake, raw):
    """What the careful way says of a body: id, rows and values, or None where it refuses."""
    try:
        message = decode(raw, None)
        if message.outputs or message.is_binary or message.parameters:
            return None
        feeds, n_rows = intake.check(message.feeds)
    except FairleadError:
        return None
    return message.id, n_rows, feeds["x"].tobytes()


LEARNED = [
    body([1, 2, 3, 4]),
    body([[1, 2, 3, 4]]),
    body([[1.5, 2, 3, 4], [5, 6, 7, 8]], shape=(2, 4)),
    body([1, 2, 3, 4], id=""),
    b'{"inputs":[{"data" : [ 1,2,3,4 ],"name":"x","datatype":"FP32","shape":[1,4]}]}',
    b'{"inputs":[{"data":[9],"name":"x","datatype":"FP32","shape":[1,4],"data":[1,2,3,4]}]}',
    b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,4],"data":[1,2,3,4]}],"x":"\\"data\\":[7]"}',
]
ODD = [
    b"", b"1", b"1,2,3", b"1,2,3,4,5", b"1,2,3,true", b"true,2,3,4", b"1,2,3,null", b'1,2,3,"4"',
    b"[1,2,3,4]", b"1,2,3,4],[1,2,3,4", b"1,2],[3,4", b"1,2,3,4]}],\"id\":\"a\",\"b\":[{\"c\":[",
    b"1,2,3,1e39", b"1,2,3,1e400", b"1,2,3,NaN", b"01,2,3,4", b"1,2,3,4,", b",1,2,3",
    b" 1 , 2,3,4 ",
    b"1,2,3,-0.0", b"1,2,3,123456789012345678901234567890", b"1,2,3,.5", b"1,2,3,{}", b"1 2 3 4",
    b"1,2,3,4] , [", b"\xff", b"1,2,3,4\x00", b"5,6,7,8", b"1e-50,2,3,4",
]  # fmt: skip


@pytest.mark.parametrize("learned", LEARNED)
@pytest.mark.parametrize("dtype", ["float32", "int64", "uint8"])
def test_a_body_means_what_it_means_to_the_careful_way(learned, dtype):
    datatype = {"float32": b"FP32", "int64": b"INT64", "uint8": b"UINT8"}[dtype]
    learned = learned.replace(b"FP32", datatype)
    reader, intake = reader_of(dtype)
    for _ in range(3):
        found, expected = reader.read(learned), carefully(intake, learned)
        assert (found is None) == (expected is None)
        assert found is None or tuple(found) == expected
    at = learned.rindex(b'"data"')
    start = learned.index(b"[", at) + 1
    end = learned.index(b"]", start)
    for odd in ODD:
        changed = learned[:start] + odd + learned[end:]
        found = reader.read(changed)
        assert found is None or tuple(found) == carefully(intake, changed), odd
    assert tuple(reader.read(body([5, 6, 7, 8], datatype=datatype.decode()))) == (
        "", 1, np.array([5, 6, 7, 8], dtype).tobytes(),
    )  # fmt: skip


@given(
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=4, max_size=4),
    st.binary(max_size=3),
    st.integers(0, 200),
)
def test_damaged_bodies_are_never_read_otherwise(values, noise, place):
    reader, intake = reader_of()
    reader.read(body([1, 2, 3, 4]))
    raw = body(values)
    assert tuple(reader.read(raw)) == carefully(intake, raw)
    damaged = raw[:place] + noise + raw[place + 1 :]
    found = reader.read(damaged)
    assert found is None or tuple(found) == carefully(intake, damaged)


def plane_of(arm, seen, **options):
    split = TrafficSplit(weights={"baseline": 1.0})
    return Dataplane(
        "wines", {"baseline": arm}, Traffic(("baseline",), split), observers=[seen.append],
        **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def arm(wines):
    found = open_arm("baseline", wines, ServingConfig(inline_run_ms=10.0), cores=1, model="wines")
    yield found
    found.close()


def joined(n, ids=None):
    feeds = {"x": np.arange(n * 4, dtype=np.float32).reshape(n, 4)}
    names = ids or [""] * n
    return Joined(names, [0.0] * n, [1] * n, [""] * n, [""] * n, feeds)


def test_what_is_served_together_can_be_looked_at_one_by_one(arm):
    seen = []
    plane = plane_of(arm, seen, timeout_s=float("inf"))
    assert plane.plain_arm() is arm
    first = arm.runner.run(joined(1).feeds)
    arm.queue._pace.learn_inline(1e-5, 1)
    served = plane.answer_now(arm, joined(3, ["a", "", "c"]))
    plane.remember_together(served)
    assert seen == [served]
    assert isinstance(served, ServedTogether)
    one, two, three = served
    assert isinstance(one, ServedRequest)
    assert (one.id, three.id) == ("a", "c")
    assert two.id
    assert [item.n_rows for item in served] == [1, 1, 1]
    assert served[0].batch_rows == 3
    assert [item.id for item in served[1:]] == [two.id, "c"]
    for name, array in first.items():
        np.testing.assert_allclose(one.outputs[name], array, rtol=1e-5)


@pytest.mark.parametrize("size", [1, 3, 8])
def test_observers_hear_the_same_together_as_one_by_one(arm, size):
    plane = plane_of(arm, [], timeout_s=float("inf"))
    arm.queue._pace.learn_inline(1e-5, 1)
    batches = [plane.answer_now(arm, joined(size)) for _ in range(40)]
    rings, metrics = (OutcomeRing(100), OutcomeRing(100)), (measured(), measured())
    for served in batches:
        for observer in (rings[0], metrics[0]):
            observer.observe(served)
        for observer in (rings[1], metrics[1]):
            observer.observe(list(served))
    assert rings[0].read(0, 1000) == rings[1].read(0, 1000)
    for one in metrics:
        one.tallies()
    found, expected = ([(f.name, f.samples) for f in one.collect()] for one in metrics)
    assert found == expected
    columns = [_Recorder(None, "wines")._render_together(batches)[0]]
    columns += _Recorder(None, "wines")._render([item for served in batches for item in served])
    for name in ("id", "status", "n_rows", "queue_ms", "run_ms", "total_ms", "batch_rows", "at"):
        assert list(getattr(columns[0], name)) == list(getattr(columns[1], name)), name
    for side in ("feeds", "outputs"):
        first, second = (getattr(column, side) for column in columns)
        for name in first[0]:
            one, other = ([part[name] for part in parts] for parts in (first, second))
            np.testing.assert_array_equal(np.concatenate(one), np.concatenate(other))


def measured():
    return ServingMetrics("wines", lambda: LogCounts(0, 0, 0))


def test_time_that_is_up_and_models_not_known_to_be_short_go_through_the_queue(wines, arm):
    assert plane_of(arm, [], timeout_s=1e-9).answer_now(arm, joined(1)) is None
    fresh = open_arm("baseline", wines, ServingConfig(), cores=1, model="wines")
    try:
        assert plane_of(fresh, [], timeout_s=float("inf")).answer_now(fresh, joined(1)) is None
    finally:
        fresh.close()


def test_arms_that_need_a_choice_are_not_plain(wines):
    waiting = open_arm("baseline", wines, ServingConfig(batching="request-at-a-time"), cores=1)
    try:
        assert plane_of(waiting, []).plain_arm() is None
    finally:
        waiting.close()


def are_alike(one, other):
    """Whether two answers say the same; rows that run together may be rounded otherwise."""
    if "outputs" not in other:
        return "error" in one and one["error"] == other["error"]
    return all(
        first["name"] == second["name"]
        and first["shape"] == second["shape"]
        and np.allclose(first["data"], second["data"], rtol=1e-4, atol=1e-6)
        for first, second in zip(one["outputs"], other["outputs"], strict=True)
    )


def test_good_and_bad_requests_at_once_each_get_their_own_answer(wines_server):
    row = [1.0, 2.0, 3.0, 4.0]
    bodies = {
        "plain": (body(row), 200),
        "two rows": (body([*row, *row], shape=(2, 4)), 200),
        "named": (body(row, id="mine"), 200),
        "nested": (body([row]), 200),
        "short": (body(row[:3]), 400),
        "no number": (body([1, 2, 3, "x"]), 400),
        "unknown input": (body(row, name="z"), 400),
        "no json": (body(row)[:-1] + b"]", 400),
        "one output": (body(row, outputs=[{"name": "label"}]), 200),
        "other": (body([4.0, 3.0, 2.0, 1.0]), 200),
    }
    with RawClient(wines_server.endpoint.url) as client:
        alone = {}
        for name, (raw, status) in bodies.items():
            client.send(post(INFER, raw))
            alone[name] = client.answer()
            assert alone[name].status == status, name
    start = threading.Barrier(len(bodies))
    wrong = []

    def ask(name):
        raw, status = bodies[name]
        with RawClient(wines_server.endpoint.url, 60) as client:
            start.wait(60)
            for _ in range(20):
                client.send(post(INFER, raw))
                answer = client.answer()
                if answer.status != status or not are_alike(answer.json, alone[name].json):
                    wrong.append((name, answer))

    threads = [threading.Thread(target=ask, args=(name,)) for name in bodies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not wrong
