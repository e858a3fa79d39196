"""The client: retries within a budget, hedging, deadlines, and what is on the wire."""

from __future__ import annotations

import asyncio
import json
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead import AsyncClient, Client, HedgePolicy, RetryPolicy
from fairlead.backends.client_policy import LatencyWindow, RetryBudget
from fairlead.backends.http_wire import ResponseReader, WireError, request_bytes
from fairlead.core.errors import (
    DataError,
    DeadlineError,
    EndpointError,
    ForbiddenError,
    NotFoundError,
    OverloadedError,
    RateLimitedError,
    UnauthenticatedError,
    UsageError,
)
from tests.fakes.faulty_server import FaultyServer, http, seconds_of, unused_url

X = {"x": np.zeros((1, 2), np.float32)}
QUICK = RetryPolicy(attempts=4, first_backoff_s=0.001)


class Waiting:
    """The client that waits."""

    def __init__(self, url, **options) -> None:
        self._client = Client(url, "m", **options)

    def infer(self, **options):
        return self._client.infer(X, **options)

    def infer_many(self, count):
        with ThreadPoolExecutor(count) as pool:
            return list(pool.map(lambda _: self.infer(), range(count)))

    def close(self):
        self._client.close()


class Awaiting:
    """The client that awaits, in a loop of its own."""

    def __init__(self, url, **options) -> None:
        self._loop = asyncio.new_event_loop()
        self._client = AsyncClient(url, "m", **options)

    def infer(self, **options):
        return self._loop.run_until_complete(self._client.infer(X, **options))

    def infer_many(self, count):
        async def all_of_them():
            return await asyncio.gather(*(self._client.infer(X) for _ in range(count)))

        return self._loop.run_until_complete(all_of_them())

    def close(self):
        self._loop.run_until_complete(self._client.close())
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()


@pytest.fixture(params=[Waiting, Awaiting])
def connect(request):
    clients = []

    def build(url, **options):
        clients.append(request.param(url, **options))
        return clients[-1]

    yield build
    for client in clients:
        client.close()


def test_one_connection_serves_many_requests(connect):
    with FaultyServer() as server:
        client = connect(server.url, api_key="k", token="t")
        for _ in range(5):
            assert client.infer(id="a").outputs["y"].tolist() == [7.0]
        assert server.n_connections == 1
        head = server.requests[0].split(b"\r\n\r\n")[0].lower()
    assert b"x-api-key: k" in head
    assert b"authorization: bearer t" in head
    assert b"inference-header-content-length" in head


def test_tensors_may_go_as_json(connect):
    with FaultyServer() as server:
        connect(server.url).infer(is_binary=False)
        body = json.loads(server.requests[0].split(b"\r\n\r\n", 1)[1])
    assert body["inputs"][0]["data"] == [0.0, 0.0]


@pytest.mark.parametrize(
    "failures",
    [
        (http(503), http(502)),
        (http(429),),
        ("drop", "drop"),
        (b"nonsense\r\n\r\n",),
        (http()[:40] + b"",),
    ],
)
def test_failures_that_pass_are_not_seen(connect, failures):
    script = [(step, "drop") if isinstance(step, bytes) and len(step) == 40 else step
              for step in failures]  # fmt: skip
    with FaultyServer(*script) as server:
        assert connect(server.url, retry=QUICK).infer().outputs["y"].tolist() == [7.0]
        assert len(server.requests) == len(failures) + 1


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, DataError),
        (401, UnauthenticatedError),
        (403, ForbiddenError),
        (404, NotFoundError),
        (413, DataError),
        (422, DataError),
        (500, EndpointError),
        (504, DeadlineError),
    ],
)
def test_what_the_server_means_is_not_tried_again(connect, status, error):
    with FaultyServer(http(status, {"error": "because", "hint": "do so"})) as server:
        with pytest.raises(error, match=f"{status}: because") as caught:
            connect(server.url, retry=QUICK).infer()
        assert caught.value.hint == "do so"
        assert len(server.requests) == 1


@pytest.mark.parametrize(("status", "error"), [(429, RateLimitedError), (503, OverloadedError)])
def test_attempts_end_and_the_last_answer_tells(connect, status, error):
    refusal = http(status, {"error": "busy"}, ["Retry-After: 0.01"])
    with FaultyServer(*[refusal] * 9) as server:
        with pytest.raises(error, match="busy") as caught:
            connect(server.url, retry=QUICK).infer()
        assert len(server.requests) == 4
        assert caught.value.retry_after_s == 0.01


def test_retry_after_is_honoured_and_not_waited_for_in_vain(connect):
    wait = http(503, {"error": "busy"}, ["Retry-After: 0.3"])
    with FaultyServer(wait, http(), wait, http()) as server:
        client = connect(server.url, retry=QUICK)
        assert seconds_of(client.infer) >= 0.3
        with pytest.raises(OverloadedError):
            client.infer(timeout_s=0.2)
        assert len(server.requests) == 3


def test_the_budget_ends_retries_in_an_outage(connect):
    policy = RetryPolicy(attempts=3, first_backoff_s=0, budget_ratio=0.1, budget_reserve=5)
    with FaultyServer(*[http(503)] * 100) as server:
        client = connect(server.url, retry=policy)
        for _ in range(30):
            with pytest.raises(OverloadedError):
                client.infer()
        # 30 requests, 5 retries in reserve and one more for every ten requests.
        assert 30 + 5 <= len(server.requests) <= 30 + 5 + 3


def test_a_refused_connection_says_so(connect):
    with pytest.raises(EndpointError, match="cannot be reached"):
        connect(unused_url(), retry=QUICK).infer()


def test_a_connection_that_died_while_it_rested_is_replaced(connect):
    closing = http(200, None, ["Connection: close"])
    with FaultyServer(closing, (http(), "drop"), http(), "drop") as server:
        client = connect(server.url, retry=RetryPolicy(attempts=1))
        for _ in range(3):
            client.infer()
        # The last script step drops a kept connection at the moment of a request.
        client.infer()
        assert server.n_connections == 4


def test_time_is_up_for_all_attempts_together(connect):
    with FaultyServer(30, 30) as server:
        client = connect(server.url)
        with pytest.raises(DeadlineError, match=r"no answer within 0\.2 s"):
            client.infer(timeout_s=0.2)
        assert server.gone.wait(5)
        head = server.requests[0].lower()
        sent_ms = int(head.split(b"x-request-timeout-ms: ")[1].split(b"\r\n")[0])
        assert 0 < sent_ms <= 200


def test_the_second_request_wins_and_the_first_is_cancelled(connect):
    with FaultyServer(30) as server:
        client = connect(server.url, hedge=HedgePolicy(after=0.05))
        assert client.infer(timeout_s=20).outputs["y"].tolist() == [7.0]
        assert len(server.requests) == 2
        assert server.gone.wait(5)


def test_the_first_request_may_still_win(connect):
    with FaultyServer(0.3, 30) as server:
        client = connect(server.url, hedge=HedgePolicy(after=0.05))
        assert client.infer(timeout_s=20).outputs["y"].tolist() == [7.0]
        assert len(server.requests) == 2
        assert server.gone.wait(5)


def test_a_failed_hedge_does_not_cost_the_answer(connect):
    with FaultyServer(0.3, "drop") as server:
        client = connect(server.url, hedge=HedgePolicy(after=0.05))
        assert client.infer(timeout_s=20).outputs["y"].tolist() == [7.0]
        assert len(server.requests) == 2


def test_hedges_take_from_the_budget(connect):
    policy = RetryPolicy(budget_ratio=0, budget_reserve=2)
    with FaultyServer(*[0.1] * 20) as server:
        client = connect(server.url, hedge=HedgePolicy(after=0.01), retry=policy)
        for _ in range(4):
            client.infer()
        assert len(server.requests) == 4 + 2


def test_many_at_a_time(connect):
    with FaultyServer(*[0.05] * 16) as server:
        client = connect(server.url)
        assert len(client.infer_many(16)) == 16
        assert server.n_connections == 16
        client.infer_many(8)
        assert server.n_connections <= 24


def test_p95_of_the_last_answers_is_when_to_hedge():
    window = LatencyWindow()
    policy = HedgePolicy()
    assert window.hedge_after_s(policy) is None
    for i in range(100):
        window.add(i / 100)
    assert window.hedge_after_s(policy) == pytest.approx(0.95)
    assert window.hedge_after_s(None) is None


def test_a_budget_is_never_overdrawn_by_threads():
    budget = RetryBudget(RetryPolicy(budget_reserve=100, budget_ratio=0))
    taken = []

    def take():
        taken.extend(budget.take() for _ in range(50))

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(taken) == 100


@given(st.integers(1, 8), st.floats(0, 5), st.floats(0, 1))
def test_pauses_grow_but_have_a_limit_and_are_never_before_the_server_said(n, after, chance):
    policy = RetryPolicy(first_backoff_s=0.1, longest_backoff_s=1)
    pause = policy.backoff_s(n, after, chance=chance)
    assert after <= pause <= after + min(1.0, 0.1 * 2 ** (n - 1))


CHUNKED = (
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"3;x=y\r\nabc\r\n5\r\ndefgh\r\n0\r\nTrailer: 1\r\n\r\n"
)
PLAIN = b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno"
EMPTY = b"HTTP/1.0 204 \r\n\r\n"


@given(st.sampled_from([CHUNKED, PLAIN, EMPTY]), st.data())
def test_answers_are_the_same_however_they_are_cut(raw, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=6)))
    reader = ResponseReader()
    pieces = [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
    answers = [answer for piece in pieces if (answer := reader.feed(piece)) is not None]
    expected = ResponseReader().feed(raw)
    assert expected is not None
    assert answers[0] == expected
    assert expected.body in (b"abcdefgh", b"no", b"")


@given(st.binary(max_size=200))
def test_no_bytes_break_the_reader(raw):
    reader = ResponseReader()
    try:
        answer = reader.feed(raw)
    except WireError:
        return
    assert answer is None or answer.status >= 200


@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        b"HTTP/2 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno header\r\n\r\n",
        b"x" * (1 << 17),
    ],
)
def test_answers_that_are_none_are_refused(raw):
    with pytest.raises(WireError):
        ResponseReader().feed(raw)


def test_an_answer_may_end_with_its_connection():
    reader = ResponseReader()
    assert reader.feed(b"HTTP/1.0 200 OK\r\n\r\nall of it") is None
    answer = reader.end()
    assert answer is not None
    assert (answer.body, answer.is_reusable) == (b"all of it", False)


def test_nobody_smuggles_a_header():
    with pytest.raises(WireError):
        request_bytes("GET", "/", "h", {"X-API-Key": "a\r\nX-Admin: 1"}, None)
    with pytest.raises(UsageError, match="cannot be written"):
        Client("http://127.0.0.1:9", "m", token="a\nb").infer(X)


@pytest.mark.parametrize("url", ["ftp://x", "http://", "http://h:port"])
def test_urls_are_checked_at_once(url):
    with pytest.raises(UsageError):
        Client(url, "m")
