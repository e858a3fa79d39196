"""HTTP as hostile, sloppy and slow clients speak it, on raw sockets."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import signal
import socket
import threading

import pytest

from . import inference_models as models
from .conftest import serving
from .raw_http import RawClient, get, post

INFER = "/v2/models/wines/infer"
ROW = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}
BODY = json.dumps({"inputs": [ROW]}).encode()


@pytest.fixture(scope="module")
def strict(wines, tmp_path_factory):
    """A server whose patience is short."""
    settings = {
        "max_body_bytes": 1 << 16,
        "header_timeout_s": 0.5,
        "body_timeout_s": 0.5,
        "min_body_rate": 1 << 20,
        "keep_alive_s": 60.0,
        "write_timeout_s": 1.0,
    }
    with serving(tmp_path_factory.mktemp("strict"), wines, settings=settings) as handle:
        yield handle


@pytest.fixture
def client(wines_server):
    with RawClient(wines_server.endpoint.url) as found:
        yield found


def body_of(id_: str) -> bytes:
    return json.dumps({"id": id_, "inputs": [ROW]}).encode()


SMUGGLED = b"GET /v2/smuggled HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.mark.parametrize(
    "lines",
    [
        ["Content-Length: 5", "Transfer-Encoding: chunked"],
        ["Transfer-Encoding: chunked", "Content-Length: 5"],
        ["Content-Length: 5", "Content-Length: 5"],
        ["Content-Length: 5", "Content-Length: 44"],
        ["Content-Length: 5, 5"],
        ["Content-Length: +5"],
        ["Content-Length: -5"],
        ["Content-Length: 0x5"],
        ["Content-Length: 5 5"],
        ["Content-Length: 99999999999999999999999"],
        ["Content-Length : 5"],
        ["Transfer-Encoding : chunked"],
        ["Transfer-Encoding: chunked", "Transfer-Encoding: chunked"],
        ["Transfer-Encoding: xchunked"],
        ["Transfer-Encoding: chunked, identity"],
        ["Transfer-Encoding: gzip, chunked"],
        ["Transfer-Encoding:\x0bchunked"],
        ["X: a\r\n folded: b", "Content-Length: 5"],
        ["X: a\nContent-Length: 5"],
        ["X: a\rContent-Length: 5"],
        ["X: a\x00b", "Content-Length: 5"],
        [" X: a", "Content-Length: 5"],
        [": a", "Content-Length: 5"],
        ["no colon", "Content-Length: 5"],
        ["Host: y", "Content-Length: 5"],
    ],
)
def test_a_request_that_two_servers_could_read_differently_is_refused(client, lines):
    head = "\r\n".join([f"POST {INFER} HTTP/1.1", "Host: x", *lines]).encode("latin-1")
    client.send(head + b"\r\n\r\n0\r\n\r\n" + SMUGGLED)
    answer = client.answer()
    assert answer.status in {400, 413, 501}
    assert answer.json["hint"]
    assert answer.headers["connection"] == "close"
    assert client.is_closed()  # and nothing behind it is ever read as a request


@pytest.mark.parametrize(
    "chunks",
    [
        b"zz\r\nabc\r\n0\r\n\r\n", b"0x3\r\nabc\r\n0\r\n\r\n", b"3\nabc\n0\n\n", b"-1\r\n\r\n",
        b"3\r\nabcd\r\n0\r\n\r\n", b"fffffffffffffffff\r\nabc\r\n", b" 3\r\nabc\r\n0\r\n\r\n",
        b"\r\n3\r\nabc\r\n0\r\n\r\n", b"3;a=\x00b\r\nabc\r\n0\r\n\r\n",
    ],
)  # fmt: skip
def test_bad_chunks_are_refused(client, chunks):
    client.send(
        f"POST {INFER} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode(),
        chunks + SMUGGLED,
    )
    assert client.answer().status == 400
    assert client.is_closed()


@pytest.mark.parametrize(
    ("start", "status"),
    [
        (b"GET /v2 HTTP/2.0\r\nHost: x\r\n\r\n", 505),
        (b"GET /v2 HTTP/1.2\r\nHost: x\r\n\r\n", 400),
        (b"GET /v2\r\n\r\n", 505),
        (b"GET /v2 HTTP/1.1\nHost: x\n\n", 400),
        (b"GET /v2 HTTP/1.1\r\n\r\n", 400),
        (b"GET /a b HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (b"BREW /v2 HTTP/1.1\r\nHost: x\r\n\r\n", 501),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 501),
        (b"POST /v2 HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST /v2 HTTP/1.1\r\nHost: x\r\nExpect: the best\r\nContent-Length: 1\r\n\r\n", 417),
    ],
)  # fmt: skip
def test_what_is_no_http_request_is_said_so(client, start, status):
    client.send(start)
    assert client.answer().status == status
    assert client.is_closed()


def test_too_long_heads_are_refused(client):
    client.send(get("/v2", *[f"h{i}: x" for i in range(200)]))
    assert client.answer().status == 431


def test_one_endless_header_and_one_endless_target_are_refused(wines_server):
    with RawClient(wines_server.endpoint.url) as client:
        client.send(b"GET /v2 HTTP/1.1\r\nHost: x\r\nX: ")
        with pytest.raises(OSError):  # noqa: PT011, PT012 (reset, broken pipe or closed)
            for _ in range(2000):
                client.send(b"x" * 4096)
            raise ConnectionResetError
        answer = client.answer()
        assert answer is None or answer.status == 431
    with RawClient(wines_server.endpoint.url) as client:
        client.send(get("/" + "x" * 20_000))
        assert client.answer().status == 414


def test_keep_alive_serves_many_requests_and_close_closes(client):
    for i in range(3):
        client.send(post(INFER, body_of(f"k{i}")))
        assert client.answer().json["id"] == f"k{i}"
    client.send(post(INFER, body_of("last"), "Connection: close"))
    answer = client.answer()
    assert answer.json["id"] == "last"
    assert answer.headers["connection"] == "close"
    assert client.is_closed()


def test_http_1_0_closes_unless_it_asks_otherwise(wines_server):
    with RawClient(wines_server.endpoint.url) as client:
        client.send(b"GET /v2/health/live HTTP/1.0\r\n\r\n")
        assert client.answer().json == {"live": True}
        assert client.is_closed()
    with RawClient(wines_server.endpoint.url) as client:
        for _ in range(2):
            client.send(get("/v2/health/live", "Connection: keep-alive", version="1.0"))
            assert client.answer().headers["connection"] == "keep-alive"


def test_pipelined_requests_are_answered_in_order(client):
    n = 60
    mixed = [
        get("/v2/health/live") if i % 3 == 0 else post(INFER, body_of(f"p{i}")) for i in range(n)
    ]
    client.send(b"".join(mixed))
    for i in range(n):
        answer = client.answer()
        assert answer.status == 200
        assert answer.json == {"live": True} if i % 3 == 0 else answer.json["id"] == f"p{i}"


def test_a_fault_behind_good_requests_is_answered_behind_them(client):
    client.send(post(INFER, body_of("good")) + b"GET / HTTP/9.9\r\n\r\n" + SMUGGLED)
    assert client.answer().json["id"] == "good"
    assert client.answer().status == 400
    assert client.is_closed()


@pytest.mark.parametrize("size", [1, 7, 64])
def test_requests_may_come_in_any_pieces(client, size):
    message = post(INFER, body_of("pieces")) * 2
    client.send(*[message[i : i + size] for i in range(0, len(message), size)])
    assert [client.answer().json["id"] for _ in range(2)] == ["pieces", "pieces"]


def test_chunked_bodies_are_put_together(client):
    head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    body = body_of("chunks")
    chunks = b"".join(b"%x;ext=1\r\n%b\r\n" % (1, body[i : i + 1]) for i in range(len(body)))
    client.send(head + chunks + b"0\r\nTrailer: ignored\r\n\r\n" + get("/v2/health/live"))
    assert client.answer().json["id"] == "chunks"
    assert client.answer().json == {"live": True}


def test_100_continue_is_sent_before_the_body_and_in_turn(client):
    head = post(INFER, BODY, "Expect: 100-continue")[: -len(BODY)]
    client.send(post(INFER, body_of("before")) + head)
    assert client.answer().json["id"] == "before"
    assert client.answer().status == 100
    client.send(BODY)
    assert client.answer().status == 200


def test_a_body_over_the_limit_is_refused_before_it_is_sent(strict):
    with RawClient(strict.endpoint.url) as client:
        lines = ["Content-Length: 70000", "Expect: 100-continue"]
        client.send("\r\n".join([f"POST {INFER} HTTP/1.1", "Host: x", *lines, "", ""]).encode())
        answer = client.answer()
        assert answer.status == 413
        assert "max_body_bytes" in answer.json["hint"]
    with RawClient(strict.endpoint.url) as client:
        client.send(
            f"POST {INFER} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode(),
            *[b"1000\r\n" + b"x" * 4096 + b"\r\n"] * 17,
        )
        assert client.answer().status == 413
    bomb = gzip.compress(b" " * (1 << 22))
    assert len(bomb) < 1 << 16
    with RawClient(strict.endpoint.url) as client:
        client.send(post(INFER, bomb, "Content-Encoding: gzip"))
        assert client.answer().status == 413
        client.send(post(INFER, gzip.compress(BODY) + b"more", "Content-Encoding: gzip"))
        assert client.answer().status == 400
        client.send(post(INFER, gzip.compress(BODY), "Content-Encoding: gzip"))
        assert client.answer().status == 200


def test_a_truncated_body_is_forgotten(wines_server):
    with RawClient(wines_server.endpoint.url) as client:
        client.send(post(INFER, BODY)[:-5])
        client.link.shutdown(socket.SHUT_WR)
        assert client.is_closed()


def test_a_client_that_stops_sending_still_hears_its_answer(wines_server):
    with RawClient(wines_server.endpoint.url) as client:
        client.send(post(INFER, body_of("half")))
        client.link.shutdown(socket.SHUT_WR)
        assert client.answer().json["id"] == "half"
        assert client.is_closed()


def test_head_says_what_get_would(client):
    client.send(get("/v2/health/live"))
    full = client.answer()
    client.send(get("/v2/health/live", method="HEAD") + get("/v2/health/live"))
    head = client.answer(has_body=False)
    assert (head.status, head.headers["content-length"]) == (200, str(len(full.body)))
    assert client.answer().json == {"live": True}


def test_methods_and_targets(client):
    client.send(get("/predict"))
    answer = client.answer()
    assert (answer.status, answer.headers["allow"]) == (405, "POST")
    client.send(get("/v2", method="OPTIONS"))
    assert client.answer().headers["allow"] == "GET, HEAD"
    client.send(get("/v2", method="PATCH"))
    assert client.answer().status == 405
    for target in (
        "http://x/v2/health/live", "HTTP://x:1/v2/health/live?a=b", "/v2/health/live?x=%ff",
        "/%76%32/health/live", "/v2/health/live/",
    ):  # fmt: skip
        client.send(get(target))
        assert client.answer().json == {"live": True}, target
    for target in (
        "/v2%2Fhealth/live", "/v2/models/wines%2Fready", "/%ff", "/v2/../v2", "//v2", "*",
        "ftp://x/v2", "/fairlead%2Foutcomes",
    ):  # fmt: skip
        client.send(get(target))
        assert client.answer().status in {401, 404}, target
    client.send(get("/v2/models/w%69nes"))
    assert client.answer().json["name"] == "wines"


def test_an_upgrade_is_not_taken_up(wines_server):
    with RawClient(wines_server.endpoint.url) as client:
        lines = ["Connection: upgrade", "Upgrade: websocket"]
        client.send(get("/v2/health/live", *lines) + SMUGGLED)
        answer = client.answer()
        assert answer.status == 200
        assert answer.headers["connection"] == "close"
        assert client.is_closed()
    with RawClient(wines_server.endpoint.url) as client:
        client.send(b"CONNECT a:1 HTTP/1.1\r\nHost: x\r\n\r\n")
        assert client.answer().status == 404


def test_text_that_is_not_utf_8_is_refused(client):
    client.send(post(INFER, b'{"inputs": [{"name": "\xff\xfe"}]}'))
    assert client.answer().status == 400
    client.send(post(INFER, BODY, "x-request-id: caf\xe9"))
    assert client.answer().json["id"] == "caf\xe9"


def test_slow_heads_and_slow_bodies_are_cut_off_and_others_are_served(strict):
    with RawClient(strict.endpoint.url) as loris, RawClient(strict.endpoint.url) as drip:
        loris.send(b"GET /v2 HTTP/1.1\r\nHost: x\r\nX-")
        drip.send(post(INFER, b"x" * 60_000)[:2000])
        with RawClient(strict.endpoint.url) as good:
            good.send(post(INFER, BODY))
            assert good.answer().status == 200
        for slow in (loris, drip):
            assert slow.answer().status == 408
            assert slow.is_closed()


def test_a_client_that_does_not_read_is_cut_off(tmp_path, wines):
    settings = {"write_timeout_s": 1.0, "log_predictions": False}
    with serving(tmp_path, wines, settings=settings) as handle:
        rows = 20_000
        item = {**ROW, "shape": [rows, 4], "data": [0.5] * (4 * rows)}
        message = post(INFER, json.dumps({"inputs": [item]}).encode())
        with RawClient(handle.endpoint.url, timeout=20) as deaf:
            deaf.link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sender = threading.Thread(target=_send_quietly, args=(deaf, message * 40))
            sender.start()
            sender.join(20)
            assert not sender.is_alive()  # the server closed, so that sending ended
        with RawClient(handle.endpoint.url) as good:
            good.send(post(INFER, BODY))
            assert good.answer().status == 200


def _send_quietly(client, message):
    with contextlib.suppress(OSError):
        client.send(message)


def test_more_clients_than_allowed_are_told_so(wines, tmp_path):
    with serving(tmp_path, wines, settings={"max_connections": 2}) as handle:
        url = handle.endpoint.url
        with RawClient(url) as one, RawClient(url) as two:
            for client in (one, two):
                client.send(get("/v2/health/live"))
                assert client.answer().status == 200
            with RawClient(url) as third:
                answer = third.answer()
                assert answer.status == 503
                assert int(answer.headers["retry-after"]) >= 1
            one.send(post(INFER, BODY))
            assert one.answer().status == 200


def test_a_request_whose_client_left_is_not_run(slow, tmp_path):
    row = dict(zip(models.FEATURES, (1.0, 2.0, 3.0, 4.0), strict=True))
    many = json.dumps({"rows": [row] * 64, "id": "long"}).encode()
    with serving(tmp_path, slow, "slow", settings={"max_batch_size": 1}) as handle:
        url = handle.endpoint.url
        with RawClient(url, timeout=60) as stays:
            stays.send(post("/predict", many))
            with RawClient(url) as leaves:
                leaves.send(post("/predict", json.dumps({"rows": [row], "id": "left"}).encode()))
            assert stays.answer().status == 200
        with handle.client() as client:
            found = {o.id: o.status for o in client.outcomes().outcomes}
        assert found["long"] == 200
        assert found.get("left") in {499, None}  # None: it left before it was read


def test_a_draining_server_answers_what_is_under_way_and_says_close(slow, tmp_path):
    row = dict(zip(models.FEATURES, (1.0, 2.0, 3.0, 4.0), strict=True))
    body = json.dumps({"rows": [row] * 48}).encode()
    with serving(tmp_path, slow, "slow", settings={"max_batch_size": 1}) as handle:
        url = handle.endpoint.url
        with RawClient(url, timeout=60) as flying, RawClient(url) as idle:
            idle.send(get("/v2/health/ready"))
            assert idle.answer().status == 200
            flying.send(post("/predict", body) + post("/predict", body))
            with handle.client() as watcher:
                while "fairlead_pending_requests" + '{arm="baseline",model="slow"} 1.0' not in (
                    watcher.metrics()
                ):
                    pass
            os.kill(handle.process.pid, signal.SIGTERM)
            assert flying.answer().status == 200
            last = flying.answer()
            assert last.status == 200
            assert last.headers["connection"] == "close"
            assert idle.is_closed()
        assert handle.process.wait(30) == 0
