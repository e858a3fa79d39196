"""The life of a run: begun before the work, finished after it, whatever happens between."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from fairlead.core.errors import NotFoundError
from fairlead.core.evidence import current_environment
from fairlead.core.files import user_path
from fairlead.core.run import Run, RunFile
from fairlead.core.workspace import Workspace
from fairlead.mlops.tracking.config import TrackingConfig
from fairlead.mlops.tracking.environment import (
    describe_environment,
    describe_packages,
    without_secrets,
)
from fairlead.mlops.tracking.log import LoggedValues, RunLog, read_log

if TYPE_CHECKING:
    from fairlead.mlops.tracking.methods.git_snapshot import FileKeeper

__all__ = ["Recording", "log_path", "recording"]


def log_path(workspace: Workspace, run_id: str) -> Path:
    """Return where a run that has not ended keeps what it logged."""
    return workspace.runs / run_id / "log.jsonl"


@dataclass
class Recording:
    """A run that is being recorded.

    Attributes:
        run: What is known of it so far; the end of the block stores it.
        log: Takes parameters, metrics and artifacts.
        log_file: The file behind `log`, for other processes to append to.
        outputs: Files whose digests are recorded when the run ends.
    """

    run: Run
    log: RunLog
    log_file: Path
    outputs: tuple[str, ...] = ()
    changes: dict[str, object] = field(default_factory=dict)

    def end(self, **changes: object) -> None:
        """Say what is known at the end: status, exit code, tails of the output."""
        self.changes.update(changes)


@contextmanager
def recording(
    config: TrackingConfig,
    *,
    workspace: Workspace,
    environ: Mapping[str, str],
    folder: Path,
    command: Sequence[str] = (),
    params: Mapping[str, object] | None = None,
    inputs: Sequence[str] = (),
    outputs: Sequence[str] = (),
) -> Iterator[Recording]:
    """Record everything that happens in the block as one run.

    Args:
        config: What is captured.
        workspace: Where it is stored.
        environ: The environment of the process.
        folder: Working directory; relative paths start here.
        command: Program and arguments, when the run is a command.
        params: Parameters known at the start.
        inputs: Files whose digests are recorded at the start.
        outputs: Files whose digests are recorded at the end.

    Raises:
        NotFoundError: An input does not exist.
        WorkspaceError: The workspace cannot be written.
    """
    from fairlead.backends.artifact_store import ArtifactStore
    from fairlead.backends.locks import exclusive
    from fairlead.backends.sql_runs import SqlRunStore, lock_name
    from fairlead.mlops.tracking.methods.git_snapshot import FileKeeper

    keeper = FileKeeper(ArtifactStore(workspace.artifacts), config)
    run = _begin(config, workspace, environ, folder, command, inputs, keeper)
    store = SqlRunStore(workspace.database_url)
    path = log_path(workspace, run.id)
    with exclusive(workspace.database_url, lock_name(run.id)), RunLog(path) as log:
        log.log_params(params or {})
        store.begin(run)
        active = Recording(run, log, path, tuple(outputs))
        try:
            yield active
        except BaseException as exc:
            active.changes.setdefault("status", "failed")
            active.changes.setdefault("stderr_tail", f"{type(exc).__name__}: {exc}")
            raise
        finally:
            logged = read_log(path)
            active.run = _end(active, logged, keeper, folder)
            store.finish(active.run, logged.points)
    shutil.rmtree(path.parent, ignore_errors=True)


def _begin(
    config: TrackingConfig,
    workspace: Workspace,
    environ: Mapping[str, str],
    folder: Path,
    command: Sequence[str],
    inputs: Sequence[str],
    keeper: FileKeeper,
) -> Run:
    from fairlead.mlops.tracking.methods import METHODS

    files = tuple(_declared(folder, name, "input", keeper) for name in inputs)
    python, packages = describe_packages(command)
    code = METHODS[config.method](folder, keeper, without=workspace.root)
    now = datetime.now(UTC)
    run_id = f"{now:%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:8]}"
    return Run(
        id=run_id,
        experiment=config.experiment,
        name=config.name or run_id,
        status="running",
        started_at=now,
        command=without_secrets(command),
        folder=str(folder),
        code=code,
        files=files,
        python=python,
        packages=packages,
        environment=describe_environment(environ, config.env_names),
        notes=(code.note,) if code.note else (),
        host=current_environment()["host"],
    )


def _declared(folder: Path, name: str, role: str, keeper: FileKeeper) -> RunFile:
    path = folder / user_path(name)
    if not path.is_file():
        kind = "a folder" if path.is_dir() else "missing"
        raise NotFoundError(
            f"the {role} {name} is {kind}, expected a file", hint="name files one by one"
        )
    return keeper.keep(path, role=role, path=name, is_content_kept=False)


def _end(active: Recording, logged: LoggedValues, keeper: FileKeeper, folder: Path) -> Run:
    files = list(active.run.files)
    notes = [*active.run.notes, *logged.notes]
    for name in active.outputs:
        try:
            files.append(_declared(folder, name, "output", keeper))
        except NotFoundError as exc:
            notes.append(exc.message)
    for name in dict.fromkeys(logged.artifacts):
        path = folder / name
        if not path.is_file():
            notes.append(f"the artifact {name} is missing or no file")
            continue
        files.append(keeper.keep(path, role="artifact", path=name))
    every = [*files, *active.run.code.untracked]
    notes += [f"{f.path} was not stored: {f.reason}" for f in every if _is_left_out(f)]
    changes = {"status": "done", **active.changes}
    return active.run.model_copy(
        update={
            **changes,
            "ended_at": datetime.now(UTC),
            "params": logged.params,
            "metrics": logged.metrics,
            "files": tuple(files),
            "notes": tuple(notes),
        }
    )


def _is_left_out(file: RunFile) -> bool:
    return not file.is_stored and file.role in {"untracked", "artifact"}
