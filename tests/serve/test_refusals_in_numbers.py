"""Refusals for want of room: the first at once, a flood of them slowly, none of them never."""

from __future__ import annotations

import asyncio
import json
from time import perf_counter

from fairlead.core.errors import DataError, OverloadedError
from fairlead.serve.inference.http.brake import Brake
from fairlead.serve.inference.http.exchange import Exchange
from fairlead.serve.inference.http.head import Head

from .conftest import serving


class Client:
    """Stands for a connection: notes what is sent to it, and when."""

    peer = "127.0.0.1"
    certificate_subject = None

    def __init__(self, **headers):
        fields = [(name.replace("_", "-").encode(), value) for name, value in headers.items()]
        self.exchange = Exchange(self, Head("POST", b"/predict", fields, is_old=False))
        self.exchange.arrived = perf_counter()
        self.exchange.body = b"x" * 1000
        self.released = 0
        self.heard = None

    def send(self, exchange, status, body, headers):
        assert self.heard is None
        self.heard = (status, json.loads(body), headers, perf_counter() - exchange.arrived)

    def release(self, size):
        self.released += size


async def heard(clients):
    """Wait until all of them were answered."""
    until = perf_counter() + 60
    while any(client.heard is None for client in clients) and perf_counter() < until:
        await asyncio.sleep(0.01)
    return [client.heard for client in clients]


def flood(brake, count, **headers):
    clients = [Client(**headers) for _ in range(count)]
    for client in clients:
        brake.refuse(client.exchange, OverloadedError("no room", hint="come", retry_after_s=3))
    return clients


def test_some_are_refused_at_once_and_the_rest_after_a_while():
    async def scenario():
        brake = Brake(0.5, lambda: False, at_once_per_s=1.0)
        clients = flood(brake, 150)
        held = [client for client in clients if client.heard is None]
        assert 0 < len(held) == brake.n_held < 150
        assert all(client.released == 1000 and not client.exchange.body for client in held)
        wrong = Client()
        brake.refuse(wrong.exchange, DataError("no JSON", hint="send some"))
        assert wrong.heard[0] == 400  # Only want of room is worth waiting.
        answers = await heard(clients)
        assert {(status, body["error"]) for status, body, _, _ in answers} == {(503, "no room")}
        assert all(b"retry-after: 3" in headers for _, _, headers, _ in answers)
        assert all(client.heard[3] >= 0.5 for client in held)
        assert brake.n_held == 0

    asyncio.run(scenario())


def test_nobody_is_held_longer_than_they_wait_or_than_the_server_lives():
    async def scenario():
        is_stopping = False
        brake = Brake(3600.0, lambda: is_stopping, at_once_per_s=1.0)
        flood(brake, 2)
        short = flood(brake, 5, x_request_timeout_ms=b"50")
        assert all(status == 503 for status, *_ in await heard(short))
        rest = flood(brake, 20)
        assert brake.n_held > 0
        is_stopping = True
        assert all(status == 503 for status, *_ in await heard(rest))
        assert flood(brake, 1)[0].heard is not None

    asyncio.run(scenario())


def test_without_a_pause_everybody_is_refused_at_once():
    brake = Brake(0.0, lambda: False)
    assert all(client.heard is not None for client in flood(brake, 300))


def test_a_server_that_is_flooded_answers_everybody(slow, tmp_path):
    body = json.dumps(
        {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]}
    ).encode()
    head = f"POST /v2/models/slow/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"

    async def ask(port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        found = []
        for _ in range(2):
            writer.write(head.encode() + body)
            answer = await reader.readuntil(b"\r\n\r\n")
            length = int(answer.lower().partition(b"content-length: ")[2].partition(b"\r")[0])
            await reader.readexactly(length)
            found.append(int(answer[9:12]))
        writer.close()
        return found

    settings = {"max_pending_requests": 4, "refusal_pause_ms": 300}

    async def everybody(port):
        return await asyncio.wait_for(asyncio.gather(*[ask(port) for _ in range(150)]), 120)

    with serving(tmp_path, slow, "slow", settings=settings) as server:
        port = int(server.endpoint.url.rpartition(":")[2])
        statuses = [status for found in asyncio.run(everybody(port)) for status in found]
        with server.client() as client:
            counted = client.metrics()
    assert set(statuses) == {200, 503}
    refused = [line for line in counted.splitlines() if 'status="503"' in line]
    assert sum(float(line.rpartition(" ")[2]) for line in refused) == statuses.count(503)
