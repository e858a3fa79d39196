"""How connections spread over workers: one shared socket, a socket each, and taking turns.

    python benchmarks/serving/worker_balance.py

Prints one JSON document: for each way and number of connections, how many of them each of two
workers got in every round. Counts, not times, so other load on the machine changes little.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import socket

from fairlead.serve.inference.accepting import Acceptor, OpenCounts, new_open_counts

WAYS = ("shared", "own", "in-turn")
CONNECTIONS = (4, 16, 64)
ROUNDS = 5
WORKERS = 2


class Counted(asyncio.Protocol):
    n_open = 0

    def connection_made(self, transport):
        Counted.n_open += 1
        self._transport = transport

    def data_received(self, data):
        self._transport.write(data)

    def connection_lost(self, exc):  # noqa: ARG002 (asyncio's signature)
        Counted.n_open -= 1


def bound(way: str, port: int = 0) -> socket.socket:
    found = socket.socket()
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if way == "own":
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    found.bind(("127.0.0.1", port))
    return found


def work(number, way, held, counts_file, asked, told):
    async def live():
        loop = asyncio.get_running_loop()
        listener = held
        if way == "own":
            listener = bound(way, held.getsockname()[1])
        if way == "in-turn":
            counts = OpenCounts(counts_file, number)
            Acceptor(listener, counts, protocol=Counted, n_open=lambda: Counted.n_open).start()
        else:
            await loop.create_server(Counted, sock=listener)
        told.put("ready")
        while await loop.run_in_executor(None, asked.get):
            told.put((number, Counted.n_open))

    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(live())


async def connect(port: int, n: int, ask) -> list[int]:
    pairs = [await asyncio.open_connection("127.0.0.1", port) for _ in range(n)]
    for reader, writer in pairs:
        writer.write(b"x")
        await reader.readexactly(1)
    found = await asyncio.to_thread(ask)
    for _, writer in pairs:
        writer.close()
        await writer.wait_closed()
    return found


def spread(way: str, n: int) -> list[list[int]]:
    context = multiprocessing.get_context("fork")
    held, counts_file = bound(way), new_open_counts()
    if way != "own":
        held.listen(2048)
    asked, told = [context.Queue() for _ in range(WORKERS)], context.Queue()
    processes = [
        context.Process(target=work, args=(i, way, held, counts_file, asked[i], told))
        for i in range(WORKERS)
    ]
    for process in processes:
        process.start()
    for _ in processes:
        told.get()

    def ask():
        for queue in asked:
            queue.put(True)
        return [count for _, count in sorted(told.get() for _ in processes)]

    port = held.getsockname()[1]
    found = [asyncio.run(connect(port, n, ask)) for _ in range(ROUNDS)]
    for queue in asked:
        queue.put(False)
    for process in processes:
        process.join()
    held.close()
    return found


if __name__ == "__main__":
    print(json.dumps({way: {n: spread(way, n) for n in CONNECTIONS} for way in WAYS}, indent=1))
