"""HTTP/2 under gRPC: its rules, its limits, and clients that break them."""

from __future__ import annotations

import contextlib
import socket
import struct
import warnings

import grpc
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fairlead.serve.inference.grpc.call_head import CallHead
from fairlead.serve.inference.grpc.header_blocks import (
    HeaderDecoder,
    HeaderError,
    literal_field,
)
from fairlead.serve.inference.grpc.schema import schema

from .conftest import serving

with warnings.catch_warnings():
    warnings.simplefilter("ignore", UserWarning)
    from tritonclient.grpc import service_pb2

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST, SETTINGS, PUSH, PING, GOAWAY, WINDOW, CONTINUATION = range(10)
END_STREAM, END_HEADERS, PADDED = 1, 4, 8
PROTOCOL, FLOW, CLOSED, SIZE, REFUSED, COMPRESSION, CALM = 1, 3, 5, 6, 7, 9, 11
INFER = "/inference.GRPCInferenceService/ModelInfer"


def frame(kind, flags=0, stream=0, payload=b""):
    return len(payload).to_bytes(3, "big") + struct.pack(">BBI", kind, flags, stream) + payload


def head(path=INFER, **more):
    fields = {":method": "POST", ":scheme": "http", ":path": path, ":authority": "h",
              "te": "trailers", "content-type": "application/grpc", **more}  # fmt: skip
    return b"".join(literal_field(n.encode(), v.encode()) for n, v in fields.items())


def message(raw):
    return b"\0" + len(raw).to_bytes(4, "big") + raw


def infer_message(n_rows=1):
    request = service_pb2.ModelInferRequest(model_name="wines")
    request.inputs.add(name="x", datatype="FP32", shape=[n_rows, 4])
    request.raw_input_contents.append(np.ones((n_rows, 4), np.float32).tobytes())
    return message(request.SerializeToString())


GREETING = PREFACE + frame(SETTINGS)


class Talk:
    """A client that sends whatever it is told."""

    def __init__(self, server, *, opening=GREETING):
        host, port = server.endpoint.grpc.rsplit(":", 1)
        self.socket = socket.create_connection((host, int(port)), timeout=10)
        self.rest = b""
        self.send(opening)

    def send(self, data):
        self.socket.sendall(data)

    def frames(self):
        """Yield (kind, flags, stream, payload) until the server closes."""
        while True:
            while len(self.rest) < 9 or len(self.rest) < 9 + int.from_bytes(self.rest[:3], "big"):
                try:
                    piece = self.socket.recv(1 << 16)
                except ConnectionResetError:
                    return
                if not piece:
                    return
                self.rest += piece
            size = int.from_bytes(self.rest[:3], "big")
            kind, flags, stream = struct.unpack(">BBI", self.rest[3:9])
            payload, self.rest = self.rest[9 : 9 + size], self.rest[9 + size :]
            yield kind, flags, stream, payload

    def answer(self, stream):
        """Read until a stream ends; returns its data and its last header fields or reset code."""
        data = b""
        for kind, flags, number, payload in self.frames():
            if number != stream:
                continue
            if kind == DATA:
                data += payload
            elif kind == RST:
                return data, int.from_bytes(payload, "big")
            elif kind == HEADERS and flags & END_STREAM:
                return data, dict(HeaderDecoder(tuple).decode(payload))
        raise AssertionError("the connection closed before the answer")

    def goaway(self):
        """Read until the server says goodbye; returns why."""
        for kind, _, _, payload in self.frames():
            if kind == GOAWAY:
                return int.from_bytes(payload[4:8], "big")
        raise AssertionError("the connection closed without a goodbye")


@pytest.fixture(scope="module")
def server(wines, tmp_path_factory):
    options = {"grpc_port": 0, "max_body_bytes": 1 << 20, "log_predictions": False}
    with serving(tmp_path_factory.mktemp("server"), wines, settings=options) as handle:
        yield handle


@pytest.fixture
def talk(server):
    made = []

    def start(**options):
        made.append(Talk(server, **options))
        return made[-1]

    yield start
    for one in made:
        one.socket.close()


@pytest.fixture(autouse=True)
def _still_answers(server):
    yield
    with grpc.insecure_channel(server.endpoint.grpc) as channel:
        ask = channel.unary_unary("/inference.GRPCInferenceService/ServerLive")
        assert ask(b"", timeout=10) == b"\x08\x01"


def test_a_plain_call(talk):
    client = talk()
    client.send(
        frame(HEADERS, END_HEADERS, 1, head()) + frame(DATA, END_STREAM, 1, infer_message())
    )
    data, end = client.answer(1)
    assert end["grpc-status"] == "0"
    response = service_pb2.ModelInferResponse.FromString(data[5:])
    assert [output.name for output in response.outputs] == ["label", "scores"]


def test_a_call_in_crumbs_padding_and_continuations(talk):
    client = talk()
    block, body = head(), infer_message()
    pieces = [frame(HEADERS, 0, 1, block[:10]), frame(CONTINUATION, 0, 1, block[10:50])]
    pieces.append(frame(CONTINUATION, END_HEADERS, 1, block[50:]))
    pieces += [frame(DATA, PADDED, 1, b"\x03" + body[:9] + b"\0\0\0"), frame(0x42, 7, 1, b"?")]
    pieces += [frame(DATA, 0, 1, body[9:]), frame(DATA, END_STREAM, 1)]
    for byte in b"".join(pieces):
        client.send(bytes((byte,)))
    assert client.answer(1)[1]["grpc-status"] == "0"


def test_trailers_may_end_a_request(talk):
    client = talk()
    client.send(frame(HEADERS, END_HEADERS, 1, head()) + frame(DATA, 0, 1, infer_message()))
    client.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, literal_field(b"x-sum", b"1")))
    assert client.answer(1)[1]["grpc-status"] == "0"


def test_an_answer_waits_for_the_window(talk):
    small = frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 100))
    client = talk(opening=PREFACE + small)
    client.send(frame(HEADERS, END_HEADERS, 1, head()))
    client.send(frame(DATA, END_STREAM, 1, infer_message(200)))
    got, chunks = b"", []
    for kind, flags, number, payload in client.frames():
        if number == 1 and kind == DATA:
            got += payload
            chunks.append(len(payload))
            client.send(frame(WINDOW, 0, 1, struct.pack(">I", 1000)))
        elif number == 1 and flags & END_STREAM:
            break
    assert chunks[0] == 100
    assert max(chunks) <= 1000
    assert len(got) == 5 + int.from_bytes(got[1:5], "big")


@pytest.mark.parametrize(
    ("sent", "why"),
    [
        (frame(PING, 0, 0, b"12345678"), PROTOCOL),  # SETTINGS must come first
        (frame(SETTINGS) + frame(DATA, 0, 1, b"x"), PROTOCOL),
        (frame(SETTINGS) + frame(HEADERS, END_HEADERS, 2, head()), PROTOCOL),
        (frame(SETTINGS) + frame(HEADERS, END_HEADERS, 0, head()), PROTOCOL),
        (frame(SETTINGS) + frame(HEADERS, 0, 1, head()) + frame(PING, 0, 0, bytes(8)), PROTOCOL),
        (frame(SETTINGS) + frame(CONTINUATION, 0, 1, b""), PROTOCOL),
        (frame(SETTINGS) + frame(HEADERS, END_HEADERS, 1, b"\xff\xff\xff"), COMPRESSION),
        (frame(SETTINGS) + frame(HEADERS, END_HEADERS, 1, b"\x80"), COMPRESSION),
        (frame(SETTINGS) + frame(PING, 0, 0, b"1"), SIZE),
        (frame(SETTINGS) + frame(PING, 0, 1, bytes(8)), PROTOCOL),
        (frame(SETTINGS) + frame(SETTINGS, 0, 0, b"123"), SIZE),
        (frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 1 << 31)), FLOW),
        (frame(SETTINGS, 0, 0, struct.pack(">HI", 5, 1)), PROTOCOL),
        (frame(SETTINGS, 0, 0, struct.pack(">HI", 2, 7)), PROTOCOL),
        (frame(SETTINGS) + frame(WINDOW, 0, 0, bytes(4)), FLOW),
        (frame(SETTINGS) + frame(WINDOW, 0, 0, b"\x7f\xff\xff\xff"), FLOW),
        (frame(SETTINGS) + frame(WINDOW, 0, 5, b"\0\0\0\1"), PROTOCOL),
        (frame(SETTINGS) + frame(RST, 0, 5, bytes(4)), PROTOCOL),
        (frame(SETTINGS) + frame(PUSH, 0, 1, bytes(4)), PROTOCOL),
        (frame(SETTINGS) + frame(PRIORITY, 0, 1, b"1"), SIZE),
        (frame(SETTINGS) + b"\xff\xff\xff\0\0\0\0\0\1", SIZE),
        (frame(SETTINGS) + frame(HEADERS, END_HEADERS | PADDED, 1, b"\xff"), PROTOCOL),
    ],
)
def test_a_broken_rule_ends_the_connection_with_its_reason(talk, sent, why):
    client = talk(opening=PREFACE + sent)
    assert client.goaway() == why
    assert list(client.frames()) == []


@pytest.mark.parametrize(
    "opening", [b"GET / HTTP/1.1\r\nhost: h\r\n\r\n", b"PRI * HTTP/1.0\r\n\r\n" + bytes(30)]
)
def test_what_is_not_http_2_is_closed(talk, opening):
    assert talk(opening=opening).goaway() == PROTOCOL


def test_streams_are_never_used_twice(talk):
    client = talk()
    call = frame(HEADERS, END_HEADERS, 3, head()) + frame(DATA, END_STREAM, 3, infer_message())
    client.send(call)
    assert client.answer(3)[1]["grpc-status"] == "0"
    client.send(frame(HEADERS, END_HEADERS, 1, head()))
    assert client.goaway() == CLOSED


def test_malformed_fields_reset_only_their_stream(talk):
    client = talk()
    client.send(frame(HEADERS, END_HEADERS, 1, head(Upper="x")))
    assert client.answer(1)[1] == PROTOCOL
    client.send(frame(HEADERS, END_HEADERS, 3, head(connection="close")))
    assert client.answer(3)[1] == PROTOCOL
    client.send(frame(HEADERS, END_HEADERS, 5, head(**{"content-type": "text/html"})))
    assert client.answer(5)[1] == {":status": "415"}
    client.send(
        frame(HEADERS, END_HEADERS, 7, head()) + frame(DATA, END_STREAM, 7, infer_message())
    )
    assert client.answer(7)[1]["grpc-status"] == "0"


def test_endless_header_blocks_are_cut_off(talk):
    client = talk()
    client.send(frame(HEADERS, 0, 1, head()))
    with contextlib.suppress(OSError):
        for _ in range(100):
            client.send(frame(CONTINUATION, 0, 1, literal_field(b"x", b"y" * 4000)))
    assert client.goaway() == CALM


def test_header_bombs_are_cut_off(talk):
    # One entry of 4 kB in the table, named a thousand times.
    bomb = b"\x40" + literal_field(b"x", b"y" * 3900)[1:] + b"\xbe" * 1000
    client = talk()
    client.send(frame(HEADERS, END_HEADERS, 1, head() + bomb))
    assert client.goaway() == COMPRESSION


@pytest.mark.parametrize(
    "nuisance",
    [
        frame(PING, 0, 0, bytes(8)),
        frame(SETTINGS),
        frame(PRIORITY, 0, 1, bytes(5)),
        frame(0x99, 0, 0, b""),
    ],
)
def test_floods_of_nothing_are_cut_off(talk, nuisance):
    client = talk()
    with contextlib.suppress(OSError):
        for _ in range(60):
            client.send(nuisance * 500)
    assert client.goaway() == CALM


def test_calls_that_are_opened_and_reset_without_end_are_cut_off(talk):
    client = talk()
    block = head()
    with contextlib.suppress(OSError):
        for number in range(1, 60_001, 2):
            client.send(
                frame(HEADERS, END_HEADERS, number, block) + frame(RST, 0, number, bytes(4))
            )
    assert client.goaway() == CALM


def test_too_many_calls_at_once_are_refused_but_the_others_go_on(talk):
    client = talk()
    block = head()
    numbers = range(1, 2 * 1024 + 4, 2)
    client.send(b"".join(frame(HEADERS, END_HEADERS, n, block) for n in numbers))
    assert client.answer(numbers[-1])[1] == REFUSED
    client.send(frame(DATA, END_STREAM, 1, infer_message()))
    assert client.answer(1)[1]["grpc-status"] == "0"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", "3"),  # no message
        (infer_message()[:20], "3"),  # half a message
        (infer_message() * 2, "3"),  # two of them
        (b"\x01" + infer_message()[1:], "12"),  # compressed by an unknown way
        (b"\0\xff\xff\xff\xff", "8"),  # a message of 4 GB
    ],
)
def test_bodies_that_are_no_message(talk, body, status):
    client = talk()
    client.send(frame(HEADERS, END_HEADERS, 1, head()) + frame(DATA, END_STREAM, 1, body))
    assert client.answer(1)[1]["grpc-status"] == status


def test_a_compressed_message_may_not_unfold_beyond_the_limit(talk):
    import zlib

    packed = zlib.compress(bytes(100 << 20))
    client = talk()
    body = b"\x01" + len(packed).to_bytes(4, "big") + packed
    client.send(frame(HEADERS, END_HEADERS, 1, head(**{"grpc-encoding": "deflate"})))
    for at in range(0, len(body), 1 << 14):
        client.send(frame(DATA, 0, 1, body[at : at + (1 << 14)]))
    client.send(frame(DATA, END_STREAM, 1))
    assert client.answer(1)[1]["grpc-status"] == "8"


def test_more_data_than_the_window_allows_ends_the_connection(talk):
    client = talk()
    block = head("/inference.GRPCInferenceService/ModelStreamInfer")
    client.send(frame(HEADERS, END_HEADERS, 1, block))
    # A message that never ends: nobody takes it, so nothing is acknowledged on the stream.
    piece = frame(DATA, 0, 1, b"\0\0\x0f\xff\xff" + bytes(16_000))
    with contextlib.suppress(OSError):
        for _ in range(400):
            client.send(piece)
            piece = frame(DATA, 0, 1, bytes(16_000))
    _, end = client.answer(1)
    assert end in (FLOW, 8) or end["grpc-status"] in {"3", "8"}


FRAMES = st.tuples(
    st.integers(0, 12), st.integers(0, 255), st.integers(0, 9), st.binary(max_size=60)
)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(FRAMES, max_size=12), st.binary(max_size=30))
def test_noise_never_hangs_the_server(server, frames, tail):
    client = Talk(server)
    with contextlib.suppress(OSError), client.socket:
        client.send(b"".join(frame(*item[:3], item[3]) for item in frames) + tail)
        client.socket.shutdown(socket.SHUT_WR)
        for _ in client.frames():
            pass


# What the header blocks of RFC 7541, appendix C, say.
REQUESTS = [
    ("828684418cf1e3c2e5f23a6ba0ab90f4ff", {":path": "/", ":authority": "www.example.com"}),
    ("828684be5886a8eb10649cbf", {"cache-control": "no-cache", ":authority": "www.example.com"}),
    ("828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf",
     {":path": "/index.html", ":scheme": "https", "custom-key": "custom-value"}),
]  # fmt: skip


def test_header_blocks_of_the_standard():
    decoder = HeaderDecoder(dict)
    for block, fields in REQUESTS:
        found = decoder.decode(bytes.fromhex(block))
        assert found.items() >= fields.items()
        assert found[":method"] == "GET"


@given(st.binary(max_size=80))
def test_header_blocks_are_read_or_refused(block):
    with contextlib.suppress(HeaderError):
        HeaderDecoder(CallHead.of).decode(block)


@pytest.mark.parametrize(
    "block", ["c6", "3fe21f", "40", "0082ff", "00017883ffffff", "7fffffffffff7f"]
)
def test_broken_header_blocks_are_refused(block):
    with pytest.raises(HeaderError):
        HeaderDecoder(tuple).decode(bytes.fromhex(block))


@pytest.mark.parametrize(
    ("text", "seconds"), [("5S", 5), ("100m", 0.1), ("7u", 7e-6), ("1H", 3600), ("x", None)]
)
def test_timeouts_are_read(text, seconds):
    fields = ((":method", "POST"), (":scheme", "http"), (":path", "/a"), ("grpc-timeout", text))
    assert CallHead.of(fields).timeout_s == (None if seconds is None else pytest.approx(seconds))


def test_our_messages_have_the_numbers_that_clients_send():
    pool = service_pb2.DESCRIPTOR.pool
    for name, kind in schema().messages.items():
        if not name.startswith("inference."):
            continue
        theirs = {field.number: field for field in pool.FindMessageTypeByName(name).fields}
        for field in kind.DESCRIPTOR.fields:
            other = theirs[field.number]
            assert (field.name, field.type, field.is_repeated) == (
                other.name,
                other.type,
                other.is_repeated,
            )
