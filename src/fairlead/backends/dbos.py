"""Durable steps on DBOS: what has finished stays finished, whatever happens to the process.

How DBOS is used, and why (see docs/decisions/durable-executor.md):

- The application version is the id of the run and the executor id is new in every process. So a
  process never picks up the unfinished work of another run; only the holder of the run's lock
  continues it.
- The first attempt of a run is the workflow `ID`; running a refused or failed run again forks it
  as `ID~2`, `ID~3`, … and takes the finished steps over.
- Values are stored as JSON, never pickled.
- Steps are executed in the thread that calls `execute`, so that Ctrl-C reaches them and no thread
  keeps the process from ending.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from sqlalchemy import inspect

from fairlead.backends.caller_thread import CallerThread
from fairlead.backends.dbos_sqlite import engine_for_old_sqlite
from fairlead.backends.locks import exclusive, is_held
from fairlead.backends.sql import Database
from fairlead.backends.sql_errors import translated_sql_errors
from fairlead.core.errors import ConflictError, WorkspaceError
from fairlead.core.extras import requires

if TYPE_CHECKING:
    from dbos import DBOSClient, WorkflowStatus
    from dbos._dbos import WorkflowHandle

__all__ = ["DurableRuns", "DurableStep", "Record", "StoredRun"]

Record = dict[str, Any]
"""What a step leaves: a JSON object whose `state` is `done` when the next step may follow."""

_APPLICATION = "fairlead"
_WORKFLOW = "fairlead-pipeline"
_QUEUE = "fairlead"
_SCHEMA = "fairlead_dbos"
_POLL_S = 0.02
_SETTLE_S = 30.0
_ACTIVE = {"PENDING", "ENQUEUED", "DELAYED"}
_ONE_AT_A_TIME = threading.Lock()


@dataclass(frozen=True, slots=True)
class DurableStep:
    """One step: a name, what it depends on, and the function that does it.

    Attributes:
        id: Name, unique within the run.
        fingerprint: Digest of the step's settings; a stored result with another one is not used.
        run: Receives the records of the steps before it; raises to be tried again.
        attempts: How often it may be tried.
        backoff_s: Pause before the second attempt; doubled before each further one.
    """

    id: str
    fingerprint: str
    run: Callable[[Sequence[Record]], Record]
    attempts: int = 1
    backoff_s: float = 1.0


@dataclass(frozen=True, slots=True)
class StoredRun:
    """What the database knows of a run.

    Attributes:
        id: Id of the run.
        is_active: Whether it neither finished nor stopped.
        is_held: Whether a living process works on it.
        header: What the first attempt was started with.
        records: What the steps of the last attempt left, in order.
        attempts: How many attempts there were.
        started_at_ms: Unix time of the first attempt.
        updated_at_ms: Unix time of the last change.
    """

    id: str
    is_active: bool
    is_held: bool
    header: dict[str, Any]
    records: tuple[Record, ...]
    attempts: int
    started_at_ms: int
    updated_at_ms: int


class _Json:
    """Stores values as JSON; a database that was tampered with can run no code."""

    def serialize(self, data: Any) -> str:  # noqa: ANN401 (DBOS's interface)
        return json.dumps(data, default=_plain, separators=(",", ":"))

    def deserialize(self, serialized_data: str) -> Any:  # noqa: ANN401 (DBOS's interface)
        value = json.loads(serialized_data)
        if isinstance(value, dict) and "__exception__" in value:
            return RuntimeError(value["__exception__"])
        return value

    def name(self) -> str:
        return "fairlead_json"


def _plain(value: object) -> object:
    if isinstance(value, BaseException):
        return {"__exception__": f"{type(value).__name__}: {value}"}
    raise TypeError(f"{type(value).__name__} cannot be stored as JSON")


class DurableRuns:
    """The runs of pipelines in one database."""

    def __init__(self, database_url: str) -> None:
        """Name the database; DBOS keeps its tables beside Fairlead's.

        Raises:
            ConfigError: The URL cannot be read or names an unknown kind of database.
        """
        self._url = database_url
        self._database = Database(database_url)

    @contextmanager
    def owned(self, run_id: str) -> Iterator[None]:
        """Be the only process that works on a run.

        Raises:
            ConflictError: Another process, or this one, works on it already.
        """
        with exclusive(self._url, f"run {run_id}"):
            if not _ONE_AT_A_TIME.acquire(blocking=False):
                raise ConflictError(
                    "this process already runs a pipeline", hint="run them one after the other"
                )
            try:
                yield
            finally:
                _ONE_AT_A_TIME.release()

    def execute(
        self, run_id: str, steps: Sequence[DurableStep], *, header: Mapping[str, Any]
    ) -> StoredRun:
        """Run the steps that have no stored result yet, in this thread, until one is not done.

        Call it inside `owned`. Leading steps whose stored record is `done` and has the same id
        and fingerprint are not executed; the first other step and all after it are.

        Raises:
            WorkspaceError: The database cannot be read or written.
            MissingExtraError: DBOS is not installed.
        """
        with self._database.reading():
            pass
        caller = CallerThread[Record]()
        failures: list[BaseException] = []
        with translated_sql_errors(self._url), self._launched(run_id) as library:
            workflow = _register(library, steps, caller, failures)
            handle = _start(library, run_id, steps, dict(header), workflow)
            if handle is not None:
                caller.serve(lambda: handle.get_status().status not in _ACTIVE)
                if failures:
                    raise failures[0]
                _settle(handle)
        stored = self.read(run_id)
        if stored is None:
            raise WorkspaceError(
                f"the run {run_id} was not stored", hint="check the database and run it again"
            )
        return stored

    def read(self, run_id: str) -> StoredRun | None:
        """Return what is known of a run, or None."""
        with self._client() as client:
            if client is None:
                return None
            found = client.list_workflows(name=_WORKFLOW, app_version=_version(run_id))
            return self._stored(client, run_id, found) if found else None

    def latest(self, limit: int = 100) -> list[StoredRun]:
        """Return the latest runs, newest first."""
        with self._client() as client:
            if client is None:
                return []
            runs: dict[str, list[WorkflowStatus]] = {}
            for item in client.list_workflows(name=_WORKFLOW, sort_desc=True, load_output=False):
                runs.setdefault(item.workflow_id.partition("~")[0], []).append(item)
            newest = sorted(runs, key=lambda run_id: _started_ms(runs[run_id]), reverse=True)
            return [self._stored(client, run_id, runs[run_id]) for run_id in newest[:limit]]

    def _stored(
        self, client: DBOSClient, run_id: str, found: Sequence[WorkflowStatus]
    ) -> StoredRun:
        attempts = sorted(found, key=_attempt_number)
        last = attempts[-1]
        inputs = attempts[0].input or {"args": ({},), "kwargs": {}}
        steps = client.list_workflow_steps(last.workflow_id)
        is_active = last.status in _ACTIVE
        return StoredRun(
            id=run_id,
            is_active=is_active,
            is_held=is_active and is_held(self._url, f"run {run_id}"),
            header=dict(inputs["args"][0]),
            records=tuple(step["output"] for step in steps if isinstance(step["output"], dict)),
            attempts=len(attempts),
            started_at_ms=_started_ms(attempts),
            updated_at_ms=last.updated_at or 0,
        )

    @contextmanager
    def _launched(self, run_id: str) -> Iterator[Any]:
        with requires("mlops", needed_by="running a pipeline"):
            import dbos
        config: dbos.DBOSConfig = {
            "name": _APPLICATION,
            "system_database_url": self._url,
            "dbos_system_schema": _SCHEMA,
            "application_version": _version(run_id),
            "executor_id": f"{os.getpid()}-{uuid.uuid4().hex}",
            "serializer": cast(Any, _Json()),
            "log_level": "CRITICAL",
            "notification_listener_polling_interval_sec": 0.05,
            "enable_otlp": False,
        }
        _be_quiet()
        with engine_for_old_sqlite(self._url) as engine:
            if engine is not None:
                config["system_database_engine"] = engine
            dbos.DBOS(config=config)
            try:
                dbos.DBOS.listen_queues([_QUEUE])
                yield dbos
            finally:
                dbos.DBOS.destroy(destroy_registry=True)

    @contextmanager
    def _client(self) -> Iterator[DBOSClient | None]:
        with self._database.reading() as connection:
            schema = _SCHEMA if connection.dialect.name == "postgresql" else None
            if not inspect(connection).has_table("workflow_status", schema=schema):
                yield None
                return
        with requires("mlops", needed_by="reading the runs of pipelines"):
            from dbos import DBOSClient
        _be_quiet()
        with translated_sql_errors(self._url), engine_for_old_sqlite(self._url) as engine:
            client = DBOSClient(
                system_database_url=self._url,
                system_database_engine=engine,
                dbos_system_schema=_SCHEMA,
                serializer=cast(Any, _Json()),
                application_name=_APPLICATION,
                retry_connection_errors=False,
            )
            try:
                yield client
            finally:
                client.destroy()


def _be_quiet() -> None:
    logger = logging.getLogger("dbos")
    if not logger.handlers:
        # Otherwise DBOS adds one that holds on to the standard error of this moment.
        logger.addHandler(logging.NullHandler())
    logger.setLevel(logging.CRITICAL)


def _version(run_id: str) -> str:
    return f"run {run_id}"


def _started_ms(attempts: Sequence[WorkflowStatus]) -> int:
    return min(attempt.created_at or 0 for attempt in attempts)


def _attempt_number(status: WorkflowStatus) -> int:
    return int(status.workflow_id.partition("~")[2] or 1)


def _register(
    library: Any,  # noqa: ANN401 (the module dbos)
    steps: Sequence[DurableStep],
    caller: CallerThread[Record],
    failures: list[BaseException],
) -> Callable[[dict[str, Any]], int]:
    """Make the steps a DBOS workflow; it returns the number of steps that are done."""

    @library.DBOS.workflow(name=_WORKFLOW)  # type: ignore[untyped-decorator]
    def pipeline(header: dict[str, Any]) -> int:  # noqa: ARG001 (kept with the run)
        records: list[Record] = []
        try:
            for step in steps:
                record = _run_step(library, step, records, caller)
                records.append(record)
                if record.get("state") != "done":
                    break
        except BaseException as exc:
            failures.append(exc)
            raise
        finally:
            caller.finish()
        return sum(record.get("state") == "done" for record in records)

    return cast(Callable[[dict[str, Any]], int], pipeline)


def _run_step(
    library: Any,  # noqa: ANN401 (the module dbos)
    step: DurableStep,
    before: Sequence[Record],
    caller: CallerThread[Record],
) -> Record:
    options = {
        "name": step.id,
        "retries_allowed": step.attempts > 1,
        "max_attempts": step.attempts,
        "interval_seconds": step.backoff_s,
        "backoff_rate": 2.0,
    }
    finished = tuple(before)

    def execute() -> Record:
        record = caller.run(lambda: step.run(finished))
        return {**record, "step": step.id, "fingerprint": step.fingerprint}

    return cast(Record, library.DBOS.run_step(options, execute))


def _start(
    library: Any,  # noqa: ANN401 (the module dbos)
    run_id: str,
    steps: Sequence[DurableStep],
    header: dict[str, Any],
    workflow: Callable[[dict[str, Any]], int],
) -> WorkflowHandle[int] | None:
    """Begin, resume or fork the run; None when everything is already stored."""
    dbos = library.DBOS
    dbos.launch()
    dbos.register_queue(_QUEUE, polling_interval_sec=_POLL_S, on_conflict="always_update")
    attempts = sorted(dbos.list_workflows(app_version=_version(run_id)), key=_attempt_number)
    if not attempts:
        with library.SetWorkflowID(run_id):
            return cast("WorkflowHandle[int]", dbos.start_workflow(workflow, header))
    last = attempts[-1]
    records = [info["output"] for info in dbos.list_workflow_steps(last.workflow_id)]
    n_kept = _count_kept(records, steps)
    is_active = last.status in _ACTIVE
    if n_kept == len(records):
        if is_active or last.status == "CANCELLED":
            return cast(
                "WorkflowHandle[int]", dbos.resume_workflow(last.workflow_id, queue_name=_QUEUE)
            )
        if n_kept == len(steps):
            return None
    if is_active:
        dbos.cancel_workflow(last.workflow_id)
    with library.SetWorkflowID(f"{run_id}~{_attempt_number(last) + 1}"):
        fork = dbos.fork_workflow(
            last.workflow_id,
            n_kept + 1,
            application_version=_version(run_id),
            queue_name=_QUEUE,
        )
    return cast("WorkflowHandle[int]", fork)


def _count_kept(records: Sequence[Any], steps: Sequence[DurableStep]) -> int:
    n_kept = 0
    for record, step in zip(records, steps, strict=False):
        is_same = isinstance(record, dict) and (
            record.get("state"), record.get("step"), record.get("fingerprint")
        ) == ("done", step.id, step.fingerprint)  # fmt: skip
        if not is_same:
            break
        n_kept += 1
    return n_kept


def _settle(handle: WorkflowHandle[int]) -> None:
    """Wait until the end of the workflow is stored, which follows its last step at once."""
    deadline = time.monotonic() + _SETTLE_S
    while handle.get_status().status in _ACTIVE:
        if time.monotonic() > deadline:
            raise WorkspaceError(
                f"the end of the run {handle.workflow_id} could not be stored",
                hint="check the disk and the database, then run the same command again",
            )
        time.sleep(_POLL_S)
