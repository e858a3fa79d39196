"""The evidence store: what is stored comes back, whole, once, in order, or the error says why."""

from __future__ import annotations

import math
import os
import resource
import signal
import sqlite3
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fairlead.backends.sql import Database, SqlEvidenceStore
from fairlead.core.errors import ConfigError, DataError, MissingExtraError, WorkspaceError
from fairlead.core.evidence import Evidence
from tests import processes


def make(metric: str = "accuracy", value: float = 0.5, **fields: object) -> Evidence:
    base = {"unit": "ratio", "method": "held-back rows", "subject": "sha256:aa", "skill": "quant"}
    return Evidence.model_validate({"metric": metric, "value": value, **base, **fields})


def url_of(folder: Path) -> str:
    return f"sqlite:///{folder / 'state.db'}"


@pytest.fixture
def store(tmp_path: Path) -> SqlEvidenceStore:
    return SqlEvidenceStore(url_of(tmp_path))


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
numbers = st.floats(allow_nan=False)
measurements = st.builds(
    Evidence,
    metric=texts,
    value=numbers,
    unit=texts,
    method=texts,
    subject=texts,
    sample_size=st.integers(0, 2**63 - 1),
    ci_low=st.none() | numbers,
    ci_high=st.none() | numbers,
    skill=texts,
    labels=st.dictionaries(texts, texts, max_size=3),
    environment=st.dictionaries(texts, texts, max_size=3),
    measured_at=st.datetimes(
        min_value=datetime(1, 1, 2),  # noqa: DTZ001
        max_value=datetime(9999, 12, 30),  # noqa: DTZ001
        timezones=st.sampled_from([UTC]),
    ),
)
"""Ids are made anew for each, so that one example cannot repeat the id of another."""


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(items=st.lists(measurements, min_size=1, max_size=5))
def test_what_is_stored_comes_back(store: SqlEvidenceStore, items: list[Evidence]) -> None:
    store.append(items)
    found = {item.id: item for item in store.query(limit=100_000)}
    assert all(found[item.id] == item for item in items)


def test_the_newest_measurement_comes_first(store: SqlEvidenceStore) -> None:
    now = datetime.now(UTC)
    store.append([make(value=n, measured_at=now + timedelta(seconds=n)) for n in (2, 0, 1)])
    store.append([make(value=9, measured_at=now + timedelta(seconds=2))])
    assert [item.value for item in store.query()] == [9, 2, 1, 0]
    assert [item.value for item in store.query(limit=2)] == [9, 2]
    assert store.query(limit=0) == []


def test_a_query_matches_everything_that_is_given(store: SqlEvidenceStore) -> None:
    store.append([make(), make(subject="b"), make(metric="loss"), make(skill="tune")])
    assert len(store.query(metric="accuracy")) == 3
    assert len(store.query(metric="accuracy", subject="b")) == 1
    assert len(store.query(skill="tune")) == 1
    assert store.query(metric="accuracy", subject="b", skill="tune") == []


def test_the_same_id_is_kept_once(store: SqlEvidenceStore) -> None:
    first = make(value=1)
    store.append([first, first])
    store.append([first.model_copy(update={"value": 2.0}), make(value=3)])
    assert sorted(item.value for item in store.query()) == [1, 3]


@pytest.mark.parametrize("name", ["value", "ci_low", "ci_high"])
def test_nan_is_refused_and_nothing_of_the_batch_is_stored(
    store: SqlEvidenceStore, name: str
) -> None:
    with pytest.raises(DataError, match=name) as caught:
        store.append([make(), make().model_copy(update={name: math.nan})])
    assert caught.value.hint
    assert store.query() == []


def test_a_number_too_large_is_refused(store: SqlEvidenceStore) -> None:
    with pytest.raises(DataError, match="sample_size"):
        store.append([make(sample_size=2**63)])


def test_infinity_is_a_value(store: SqlEvidenceStore) -> None:
    store.append([make(value=math.inf, ci_low=-math.inf)])
    assert store.query()[0].value == math.inf


def test_queries_use_an_index(tmp_path: Path, store: SqlEvidenceStore) -> None:
    store.append([make()])
    with sqlite3.connect(tmp_path / "state.db") as connection:
        for column in ("metric", "subject", "skill"):
            plan = connection.execute(
                f"EXPLAIN QUERY PLAN SELECT * FROM evidence WHERE {column} = 'x' "
                "ORDER BY measured_at DESC"
            ).fetchall()
            assert f"evidence_{column}" in str(plan)
    connection.close()


def test_the_database_keeps_readers_and_a_writer_apart(tmp_path: Path) -> None:
    store = SqlEvidenceStore(url_of(tmp_path))
    store.append([make()])
    connection = sqlite3.connect(tmp_path / "state.db")
    try:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        connection.execute("BEGIN IMMEDIATE")
        assert len(store.query()) == 1
    finally:
        connection.close()


def append_many(database_url: str, worker: int) -> None:
    store = SqlEvidenceStore(database_url)
    for number in range(10):
        store.append([make(value=number, labels={"worker": str(worker), "half": h}) for h in "ab"])


def test_eight_processes_append_at_once(tmp_path: Path) -> None:
    calls = [(append_many, (url_of(tmp_path), worker)) for worker in range(8)]
    assert processes.run_all(calls) == [0] * 8
    found = SqlEvidenceStore(url_of(tmp_path)).query(limit=10_000)
    assert len(found) == 8 * 10 * 2
    assert len({(i.labels["worker"], i.labels["half"], i.value) for i in found}) == 160


def append_until_killed(database_url: str) -> None:
    store = SqlEvidenceStore(database_url)
    number = 0
    while True:
        store.append([make(value=number, labels={"half": half}) for half in "ab"])
        number += 1
        if number == 30:
            os.kill(os.getpid(), signal.SIGKILL)


def test_what_was_appended_survives_kill_9(tmp_path: Path) -> None:
    assert processes.run(append_until_killed, url_of(tmp_path)) == -9
    assert len(SqlEvidenceStore(url_of(tmp_path)).query()) == 60


def test_a_read_only_database_can_be_read_and_says_why_it_is_not_written(tmp_path: Path) -> None:
    SqlEvidenceStore(url_of(tmp_path)).append([make()])
    store = SqlEvidenceStore(f"sqlite:///file:{tmp_path / 'state.db'}?mode=ro&uri=true")
    assert len(store.query()) == 1
    with pytest.raises(WorkspaceError, match="not written") as caught:
        store.append([make()])
    assert "FAIRLEAD_HOME" in caught.value.hint


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "state.db").write_bytes(os.urandom(5000))
    store = SqlEvidenceStore(url_of(tmp_path))
    with pytest.raises(
        WorkspaceError, match=r"state\.db.*something else than a database"
    ) as caught:
        store.append([make()])
    assert "copy" in caught.value.hint


def test_a_damaged_database_is_named(tmp_path: Path) -> None:
    store = SqlEvidenceStore(url_of(tmp_path))
    store.append([make(method="x" * 3000) for _ in range(200)])
    with sqlite3.connect(tmp_path / "state.db") as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    data = bytearray((tmp_path / "state.db").read_bytes())
    data[8192:] = bytes(len(data) - 8192)
    (tmp_path / "state.db").write_bytes(data)
    with pytest.raises(WorkspaceError) as caught:
        SqlEvidenceStore(url_of(tmp_path)).query()
    assert caught.value.hint


def test_a_database_of_another_program_is_named(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "state.db") as connection:
        connection.execute("CREATE TABLE evidence (something TEXT)")
    connection.close()
    with pytest.raises(WorkspaceError) as caught:
        SqlEvidenceStore(url_of(tmp_path)).append([make()])
    assert caught.value.hint


def test_a_newer_schema_asks_for_an_update(tmp_path: Path) -> None:
    store = SqlEvidenceStore(url_of(tmp_path))
    store.append([make()])
    with sqlite3.connect(tmp_path / "state.db") as connection:
        connection.execute("UPDATE fairlead_schema SET version = 99")
    connection.close()
    with pytest.raises(WorkspaceError, match="schema 99") as caught:
        SqlEvidenceStore(url_of(tmp_path)).query()
    assert "update fairlead" in caught.value.hint


def test_a_lock_that_is_not_released_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fairlead.backends.sql.BUSY_TIMEOUT_S", 0.05)
    store = SqlEvidenceStore(url_of(tmp_path))
    store.append([make()])
    connection = sqlite3.connect(tmp_path / "state.db")
    connection.execute("BEGIN IMMEDIATE")
    try:
        with pytest.raises(WorkspaceError, match="another process holds") as caught:
            store.append([make()])
        assert "wait" in caught.value.hint
    finally:
        connection.close()


def append_on_a_full_disk(database_url: str) -> None:
    store = SqlEvidenceStore(database_url)
    store.append([make()])
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000))
    try:
        store.append([make(method="x" * 100_000) for _ in range(20)])
    except WorkspaceError as exc:
        os._exit(3 if exc.hint else 4)


def test_a_full_disk_is_an_error_and_leaves_the_database_as_it_was(tmp_path: Path) -> None:
    assert processes.run(append_on_a_full_disk, url_of(tmp_path)) == 3
    assert len(SqlEvidenceStore(url_of(tmp_path)).query()) == 1


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("nonsense", "cannot be used"),
        ("mysql://me:pw@host/db", "expected sqlite or postgresql"),
        ("sqlite://", "memory"),
    ],
)
def test_a_url_that_cannot_be_used_is_named(url: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        SqlEvidenceStore(url)
    assert "FAIRLEAD_DATABASE_URL" in caught.value.hint
    assert "pw" not in caught.value.message


def test_a_server_that_is_not_there_is_named_without_the_password() -> None:
    store = SqlEvidenceStore("postgresql://me:hunter2@127.0.0.1:9/db")
    with pytest.raises((WorkspaceError, MissingExtraError)) as caught:
        store.query()
    assert "hunter2" not in caught.value.message


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(WorkspaceError, match="file/sub"):
        SqlEvidenceStore(f"sqlite:///{tmp_path}/file/sub/state.db").query()


def test_a_transaction_that_raises_stores_nothing(tmp_path: Path) -> None:
    from sqlalchemy import insert, select

    from fairlead.backends.sql_schema import MODELS

    database = Database(url_of(tmp_path))

    def write_and_fail() -> None:
        with database.writing() as connection:
            connection.execute(insert(MODELS).values(name="m", created_at="now"))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_and_fail()
    with database.reading() as connection:
        assert connection.execute(select(MODELS)).all() == []
