"""Several models and versions behind one service, changed while they answer."""

from __future__ import annotations

import json
import shutil
import signal
import threading
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from fairlead.backends.endpoint import EndpointClient, find_endpoint, spawn_server
from fairlead.core.errors import NotFoundError, OverloadedError
from fairlead.core.profile import ReferenceProfile
from fairlead.core.settings import Settings
from fairlead.core.signature import Signature, TensorSpec
from fairlead.core.workspace import Workspace

from . import inference_models as models

ROW = np.array([[1.0, 2.0, -1.0, 0.5]], np.float32)


def admin(server, path, parameters=None):
    """POST with the admin token; returns the parsed body."""
    body = json.dumps({} if parameters is None else {"parameters": parameters}).encode()
    request = urllib.request.Request(
        f"{server.endpoint.url}/v2/repository/{path}", data=body, method="POST"
    )
    request.add_header("Authorization", f"Bearer {server.admin_token}")
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())


def index(server):
    """Model and version → state, once nothing is on its way out."""
    for _ in range(200):
        states = {(m["name"], m["version"]): m["state"] for m in admin(server, "index")[1]}
        if "UNLOADING" not in states.values():
            return states
        threading.Event().wait(0.02)
    raise AssertionError(f"still unloading: {states}")


def ask(server, model, version=None):
    with EndpointClient(server.endpoint.url, model) as client:
        return client.infer({"x": ROW}, version=version)


@contextmanager
def under_load(server, model, n_threads=4):
    """Ask all the time; yields what came back: versions, or errors."""
    seen, stop = [], threading.Event()

    def press():
        with EndpointClient(server.endpoint.url, model) as client:
            while not stop.is_set():
                try:
                    seen.append(client.infer({"x": ROW}).version)
                except Exception as exc:  # noqa: BLE001 (that is what the test looks for)
                    seen.append(exc)

    threads = [threading.Thread(target=press) for _ in range(n_threads)]
    for thread in threads:
        thread.start()
    try:
        yield seen
    finally:
        stop.set()
        for thread in threads:
            thread.join(20)


def await_version(seen, version):
    """Wait until the load has seen a version a few times."""
    done = threading.Event()
    for _ in range(600):
        if sum(item == version for item in list(seen)) >= 20:
            return
        done.wait(0.05)
    raise AssertionError(f"{version} never answered: {seen[-5:]}")


@pytest.fixture(scope="module")
def three_versions(tmp_path_factory):
    folder = tmp_path_factory.mktemp("versions")
    return [
        models.classifier_bundle(folder / f"v{number}", shift=number / 2) for number in range(3)
    ]


@pytest.fixture
def workspace(tmp_path):
    return Workspace.open(Settings.load(home=tmp_path / ".fairlead"))


@pytest.fixture(scope="module")
def mixed(three_versions, people, tmp_path_factory):
    """A server with two versions of one model, and another model."""
    old, new = three_versions[:2]
    sources = (f"wines={old.path}", f"wines={new.path}", f"people={people.path}")
    home = tmp_path_factory.mktemp("mixed") / ".fairlead"
    with spawn_server(
        *sources, workspace=Workspace.open(Settings.load(home=home)), name="wines"
    ) as server:
        yield server


def test_one_server_holds_several_models_and_versions(mixed, people, three_versions):
    old, new = three_versions[:2]
    assert set(index(mixed).values()) == {"READY"}
    assert ask(mixed, "wines").version == new.version
    assert ask(mixed, "wines", old.version).version == old.version
    with EndpointClient(mixed.endpoint.url, "people") as client:
        feeds = {"city": np.array([["Oslo"]], object), "age": np.ones((1, 1), np.float32)}
        assert client.infer(feeds).outputs["older"] == 2.0
        assert client.metadata()["versions"] == [people.version]
    with mixed.client() as client:
        assert 'model="people"' in client.metrics()
    status, problem = admin(mixed, "models/other/load")
    assert (status, "no model 'other'" in problem["error"]) == (404, True)


def test_administration_needs_the_token(mixed):
    request = urllib.request.Request(
        f"{mixed.endpoint.url}/v2/repository/models/wines/unload", data=b"{}", method="POST"
    )
    request.add_header("Authorization", "Bearer wrong")
    with pytest.raises(urllib.error.HTTPError) as refused, urllib.request.urlopen(request):
        pass
    refused.value.close()
    assert refused.value.code == 401
    assert ask(mixed, "wines").version


def test_switching_versions_under_load_fails_no_request(three_versions, workspace):
    old, new, third = three_versions
    sources = (f"wines={old.path}", f"wines={new.path}")
    with spawn_server(*sources, workspace=workspace, name="wines") as server:
        with under_load(server, "wines") as seen:
            for bundle in (old, new, old):
                chosen = {"version": bundle.version, "default": True}
                assert admin(server, "models/wines/load", chosen)[0] == 200
                seen.clear()
                await_version(seen, bundle.version)
                assert {item for item in list(seen) if item != bundle.version} <= {
                    one.version for one in (old, new)
                }
            added = {"bundle": str(third.path), "default": True}
            assert admin(server, "models/wines/load", added)[0] == 200
            await_version(seen, third.version)
        assert [item for item in seen if not isinstance(item, str)] == []
        assert len(index(server)) == 3
        assert find_endpoint(workspace, "wines")[0].arms == {"baseline": third.digest}
        assert server.stop() == 0
    with pytest.raises(NotFoundError, match="does not run"):
        find_endpoint(workspace, "wines")


@pytest.mark.parametrize("is_watched", [True, False])
def test_a_bundle_that_changes_on_disk_is_taken_up_under_load(
    three_versions, workspace, tmp_path, is_watched
):
    old, new = three_versions[:2]
    place = tmp_path / "served"
    shutil.copytree(old.path, place)
    settings = {"reload_every_s": 0.1} if is_watched else {}
    with (
        spawn_server(place, workspace=workspace, name="wines", settings=settings) as server,
        under_load(server, "wines") as seen,
    ):
        await_version(seen, old.version)
        shutil.rmtree(place)
        shutil.copytree(new.path, place)
        if not is_watched:
            assert admin(server, "models/wines/load")[0] == 200
        await_version(seen, new.version)
    assert [item for item in seen if not isinstance(item, str)] == []


def test_a_damaged_bundle_changes_nothing(three_versions, workspace, tmp_path):
    place = tmp_path / "served"
    shutil.copytree(three_versions[0].path, place)
    with spawn_server(place, workspace=workspace, name="wines") as server:
        (place / "model.onnx").write_bytes(b"broken")
        (place / "fairlead" / "digests.json").write_text("{}")
        status, problem = admin(server, "models/wines/load")
        assert (status, "error" in problem) == (422, True)
        assert ask(server, "wines").version == three_versions[0].version


def test_an_unloaded_model_is_gone_until_it_is_loaded(mixed):
    assert admin(mixed, "models/people/unload")[0] == 200
    with (
        EndpointClient(mixed.endpoint.url, "people") as client,
        pytest.raises(OverloadedError, match=r"503.*not loaded: unloaded"),
    ):
        client.infer({"age": np.ones((1, 1), np.float32)})
    assert ask(mixed, "wines").version
    assert admin(mixed, "models/people/load")[0] == 200
    assert set(index(mixed).values()) == {"READY"}


def test_a_killed_server_comes_back_with_the_same_models(three_versions, people, workspace):
    old, new, third = three_versions
    sources = (f"wines={old.path}", f"wines={new.path}", f"people={people.path}")
    with spawn_server(*sources, workspace=workspace, name="wines") as server:
        admin(server, "models/wines/load", {"bundle": str(third.path)})
        admin(server, "models/wines/load", {"version": old.version, "default": True})
        admin(server, "models/people/unload")
        before = index(server)
        server.process.send_signal(signal.SIGKILL)
        server.process.wait(10)
    with spawn_server(*sources, workspace=workspace, name="wines") as server:
        assert index(server) == before
        assert ask(server, "wines").version == old.version
        assert ask(server, "wines", third.version).version == third.version
    # Other bundles are another service: what was changed before does not hold for it.
    with spawn_server(f"wines={new.path}", workspace=workspace, name="wines") as server:
        assert index(server) == {("wines", new.version): "READY"}


def test_the_newest_versions_are_loaded_by_policy(three_versions, workspace):
    sources = [f"wines={bundle.path}" for bundle in three_versions]
    settings = {"version_policy": "latest:2"}
    with spawn_server(*sources, workspace=workspace, name="wines", settings=settings) as server:
        states = index(server)
        oldest = ("wines", three_versions[0].version)
        assert states.pop(oldest) == "UNAVAILABLE"
        assert set(states.values()) == {"READY"}
        assert ask(server, "wines").version == three_versions[2].version


def heavy_bundle(target, number, megabytes=24):
    """A model whose weights take so much memory; answers with its number."""
    width = 1024
    height = megabytes * (1 << 20) // (4 * width)
    weights = np.zeros((height, width), np.float32)
    nodes = [
        helper.make_node("Gather", ["W", "row"], ["w"]),
        helper.make_node("ReduceSum", ["w"], ["s"], keepdims=0),
        helper.make_node("Add", ["x", "s"], ["xs"]),
        helper.make_node("Mul", ["xs", "zero"], ["z"]),
        helper.make_node("Add", ["z", "number"], ["y"]),
    ]
    constants = {
        "W": weights, "zero": np.array(0, np.float32), "number": np.array(number, np.float32),
    }  # fmt: skip
    model = models.save_model(
        [helper.make_node("ArgMax", ["x"], ["row"], axis=0, keepdims=0), *nodes],
        [models.value("x", TensorProto.FLOAT, ["n", 1])],
        [models.value("y", TensorProto.FLOAT, ["n", 1])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    spec = TensorSpec(name="x", dtype="float32", shape=(-1, 1))
    return models.pack_model(
        target,
        model,
        Signature(inputs=(spec,), outputs=(spec.model_copy(update={"name": "y"}),)),
        profile=ReferenceProfile(n_rows=0, columns=()),
        task="other",
        name=f"heavy{number}",
        prediction_output="y",
    )


def resident_mb(pid):
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 / 2**20


def test_models_make_room_for_one_another_within_the_memory_limit(tmp_path, workspace):
    bundles = [heavy_bundle(tmp_path / f"heavy{number}", number) for number in range(4)]
    paths = [bundle.path for bundle in bundles]
    with spawn_server(*paths[:1], workspace=workspace, name="heavy0") as server:
        with EndpointClient(server.endpoint.url, "heavy0") as client:
            client.infer({"x": np.ones((1, 1), np.float32)})
        limit = round(resident_mb(server.endpoint.pid) + 60)  # room for two more, not for three
    settings = {"memory_limit_mb": limit}
    with spawn_server(*paths, workspace=workspace, name="heavy0", settings=settings) as server:
        states = index(server)
        assert "UNAVAILABLE" in states.values()
        for number in [0, 1, 2, 3, 3, 0]:
            with EndpointClient(server.endpoint.url, f"heavy{number}") as client:
                answer = client.infer({"x": np.ones((1, 1), np.float32)})
            assert answer.outputs["y"] == number
            # Code that starting up gave back is read again when it is needed.
            assert resident_mb(server.endpoint.pid) <= limit + 20
        assert index(server)["heavy0", bundles[0].version] == "READY"
        assert list(index(server).values()).count("READY") < len(bundles)


def test_a_model_that_can_never_fit_is_refused(tmp_path, wines, workspace):
    heavy = heavy_bundle(tmp_path / "heavy", 1, megabytes=160)
    sources, settings = (wines.path, heavy.path), {"memory_limit_mb": 180}
    with spawn_server(*sources, workspace=workspace, name="wines", settings=settings) as server:
        status, problem = admin(server, "models/heavy1/load")
        assert (status, "does not fit into the memory limit" in problem["error"]) == (503, True)
        assert ask(server, "wines").version == wines.version
