"""The connections of replayed traffic and load tests, against a real server."""

import socket

import numpy as np
import pytest

from fairlead.api.context import Context
from fairlead.backends import senders
from fairlead.backends.endpoint import spawn_server
from fairlead.backends.label_file import LabelFile
from fairlead.core.errors import DataError, EndpointError, NotFoundError
from tests.serve.inference_models import text_bundle

FEEDS = {
    "city": np.array([["Oslo"], ["Zürich"], [""]], object),
    "age": np.array([[1.0], [2.0], [np.nan]], np.float32),
}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("senders")
    bundle = text_bundle(folder / "people")
    context = Context.open(home=folder / "home")
    with spawn_server(bundle.path, workspace=context.workspace, name="people") as handle:
        yield handle.endpoint.url, bundle.signature


def open_sender(kind, url, signature, feeds=FEEDS):
    if kind == "tritonclient":
        return senders.TritonSender(url, "people", feeds, signature, timeout_s=5)
    if kind == "fairlead":
        return senders.EndpointSender(url, "people", feeds, timeout_s=5)
    is_binary = kind == "raw-binary"
    finite = {name: array[:2] for name, array in feeds.items()}
    bodies = senders.prepare_requests(url, "people", finite, signature, is_binary=is_binary)
    return senders.RawSender(url, bodies, timeout_s=5)


@pytest.mark.parametrize("kind", ["tritonclient", "fairlead"])
def test_text_and_numbers_come_back_as_they_are(server, kind):
    sender = open_sender(kind, *server)
    for row, (city, older) in enumerate([("Oslo", 2.0), ("Zürich", 3.0)]):
        answer = sender.send(row, f"{kind}-{row}")
        assert answer.is_served, answer.error
        assert answer.outputs["echo"].ravel().tolist() == [city]
        assert answer.outputs["older"].ravel().tolist() == [older]
    assert np.isnan(sender.send(2, "nan").outputs["older"]).all()
    sender.close()


@pytest.mark.parametrize("kind", ["raw-json", "raw-binary"])
def test_prepared_requests_are_served(server, kind):
    sender = open_sender(kind, *server)
    assert [sender.send(row, "").status for row in (0, 1, 0)] == [200, 200, 200]
    sender.close()


@pytest.mark.parametrize("kind", ["tritonclient", "fairlead", "raw-binary"])
def test_refusals_are_answers_and_say_why(server, kind):
    url, signature = server
    wide = {"city": FEEDS["city"], "age": np.ones((3, 2), np.float32)}
    sender = open_sender(kind, url, signature, wide)
    answer = sender.send(0, "wide")
    assert 400 <= answer.status < 500
    assert "age" in answer.error
    sender.close()


@pytest.mark.parametrize("kind", ["tritonclient", "fairlead", "raw-binary"])
def test_a_server_that_is_gone_is_status_0(server, kind):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    sender = open_sender(kind, url, server[1])
    answer = sender.send(0, "gone")
    assert answer.status == 0
    assert answer.error
    sender.close()


def test_the_model_is_read_from_the_server(server):
    url, signature = server
    described = senders.read_model(url, "people")
    assert described.is_binary
    assert {spec.name: spec.dtype for spec in described.signature.inputs} == {
        spec.name: spec.dtype for spec in signature.inputs
    }
    with pytest.raises(NotFoundError):
        senders.read_model(url, "nobody")


def test_a_server_of_another_kind_is_said(server):
    with pytest.raises(EndpointError):
        senders.read_model("http://127.0.0.1:1", "people")


def test_labels_are_read_again_when_they_change(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text("id,label\na,1\n")
    labels = LabelFile(str(path))
    assert labels() == {"a": 1}
    path.write_text("id,label\na,1\nb,2\n")
    assert labels() == {"a": 1, "b": 2}
    assert not labels.is_regression


def test_numbers_as_labels_are_told_apart(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text("id,label\na,1.5\n")
    assert LabelFile(str(path)).is_regression


def test_labels_that_cannot_be_used_are_refused(tmp_path):
    with pytest.raises(NotFoundError):
        LabelFile(str(tmp_path / "nowhere.csv"))
    (tmp_path / "wrong.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="columns"):
        LabelFile(str(tmp_path / "wrong.csv"))
