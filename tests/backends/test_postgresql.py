"""A team's database: the same behaviour on PostgreSQL, where a server can be started."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from fairlead.api.context import Context
from fairlead.api.tracking import list_runs, register, tracked
from fairlead.backends.locks import exclusive, is_held
from fairlead.backends.sql import SqlEvidenceStore
from fairlead.backends.sql_registry import SqlRegistry
from fairlead.core.errors import ConflictError, WorkspaceError
from fairlead.core.evidence import Evidence
from fairlead.core.settings import Settings
from fairlead.core.workspace import Workspace
from fairlead.mlops.pipelines import read_run
from tests import processes
from tests.backends.test_sql_evidence import append_many
from tests.mlops.bundle_factory import make_bundle
from tests.mlops.pipeline_driver import STEPS, drive, executions

pytestmark = pytest.mark.skipif(
    not (shutil.which("initdb") and shutil.which("pg_ctl")), reason="PostgreSQL is not installed"
)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """A server of its own, without a password, until the tests of this file end."""
    # PostgreSQL refuses to run as root, and its socket needs a short path.
    user = "nobody" if os.getuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="pg", dir="/tmp"))
    if user:
        shutil.chown(folder, user)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    data, options = str(folder / "data"), f"-p {port} -c fsync=off -k {folder} -h 127.0.0.1"

    def call(*words: str) -> None:
        subprocess.run(words, check=True, user=user, cwd=folder, stdout=subprocess.DEVNULL)

    call("initdb", "-D", data, "-U", "fairlead", "-A", "trust", "--no-sync")
    call("pg_ctl", "-D", data, "-o", options, "-l", str(folder / "log"), "-w", "start")
    try:
        yield f"postgresql://fairlead@127.0.0.1:{port}"
    finally:
        call("pg_ctl", "-D", data, "-m", "immediate", "stop")
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def url(server: str, request: pytest.FixtureRequest) -> str:
    import psycopg

    name = f"t{abs(hash(request.node.name))}"
    with psycopg.connect(f"{server}/postgres", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}".encode())
    return f"{server}/{name}"


def test_evidence_is_appended_by_four_processes_at_once(url: str) -> None:
    assert processes.run_all([(append_many, (url, worker)) for worker in range(4)]) == [0] * 4
    store = SqlEvidenceStore(url)
    assert len(store.query(limit=10_000)) == 80
    item = Evidence(metric="m", value=0.5, unit="", method="", subject="s", labels={"é": "ü"})
    store.append([item, item])
    assert store.query(metric="m") == [item]


def test_a_text_that_postgresql_cannot_store_is_an_error_with_a_hint(url: str) -> None:
    item = Evidence(metric="a\0b", value=0.5, unit="", method="", subject="s")
    with pytest.raises(WorkspaceError) as caught:
        SqlEvidenceStore(url).append([item])
    assert caught.value.hint


def register_many(home: str, database_url: str, bundle: str) -> None:
    settings = Settings.model_validate({"home": home, "database_url": database_url})
    context = Context(Workspace.open(settings), settings)
    for _ in range(3):
        register(bundle, name="churn", alias="champion", context=context)


def test_registrations_at_once_get_consecutive_versions(url: str, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    call = (register_many, (str(tmp_path / "home"), url, str(bundle.path)))
    assert processes.run_all([call] * 4) == [0] * 4
    versions = SqlRegistry(url).versions("churn")
    assert sorted(item.version for item in versions) == list(range(1, 13))
    assert [item.aliases for item in versions if item.aliases] == [("champion",)]


def test_a_run_is_recorded(url: str, tmp_path: Path) -> None:
    settings = Settings.model_validate({"home": tmp_path / "home", "database_url": url})
    context = Context(Workspace.open(settings), settings)
    with tracked(params={"lr": 1}, context=context) as log:
        log.log_metric("loss", 0.5)
        assert list_runs(context=context)[0].status == "running"
    run = list_runs(context=context)[0]
    assert (run.status, run.metrics) == ("done", {"loss": 0.5})


def test_a_lock_has_one_holder(url: str) -> None:
    with exclusive(url, "run a"):
        assert is_held(url, "run a")
        with pytest.raises(ConflictError), exclusive(url, "run a"):
            pass
    assert not is_held(url, "run a")


def test_a_killed_pipeline_goes_on(url: str, tmp_path: Path) -> None:
    folder = str(tmp_path)
    assert processes.run(drive, folder, "r1", {"quantize": "kill"}, "", url) == -9
    assert read_run("r1", database_url=url).status == "interrupted"
    drive(folder, "r1", {}, "", url)
    assert executions(tmp_path) == ["pack", "quantize", "quantize", "tune"]
    assert [r.step for r in read_run("r1", database_url=url).results] == list(STEPS)
