"""Serving: start and stop servers, and score files in batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, Any, Literal

from fairlead.api.context import Context
from fairlead.core.bundle import Bundle
from fairlead.core.endpoint import Endpoint
from fairlead.core.errors import FairleadError
from fairlead.core.report import Outcome, Report

__all__ = ["run_server", "score_batch", "serve", "spare_memory", "stop_service"]

_SKILL = "model-serving-patterns"


def serve(
    bundle: str | Path,
    *more: str | Path,
    candidate: str | Path | None = None,
    trust: bool = False,
    settings: Mapping[str, Any] | None = None,
    within: ExitStack | None = None,
    context: Context | None = None,
) -> Outcome[Endpoint]:
    """Start a server as a process of its own and prove that it answers as the bundle does.

    Args:
        bundle: What to serve: a folder, or `NAME=FOLDER`; its model is the default one.
        *more: Further bundles; two of one name are two versions of one model.
        candidate: A bundle that shares the traffic of the default model, as arm `candidate`.
        trust: Whether code that came with the model may run.
        settings: Settings of `ServingConfig`.
        within: Stops the server when it closes; None lets it outlive this process.
        context: Surroundings of the call.

    Raises:
        PortInUseError: The port is taken; nothing was started.
        EndpointError: The server ended before it was ready, or does not answer.
        GateError: The server answers otherwise than the bundle does.
    """
    from fairlead.serve import inference

    ctx = (context or Context.open()).ready_to_record()
    sources = [inference.ModelSource.parse(str(item)) for item in (bundle, *more)]
    outcome = inference.serve(
        sources,
        inference.ServingConfig.parse(settings or {}),
        workspace=ctx.workspace,
        candidate=None if candidate is None else Bundle.open(candidate),
        trust=trust,
        within=within,
        progress=ctx.progress,
    )
    return ctx.record(outcome)


def run_server(
    bundle: str | Path,
    *more: str | Path,
    on_ready: Callable[[Endpoint], None],
    candidate: str | Path | None = None,
    trust: bool = False,
    until_stdin_closes: bool = False,
    settings: Mapping[str, Any] | None = None,
    context: Context | None = None,
) -> None:
    """Serve in this process until SIGTERM, SIGINT or the end of standard input; then drain.

    Args:
        bundle: What to serve: a folder, or `NAME=FOLDER`; its model is the default one.
        *more: Further bundles; two of one name are two versions of one model.
        on_ready: Called with the endpoint once the server answers.
        candidate: A bundle that shares the traffic of the default model, as arm `candidate`.
        trust: Whether code that came with the model may run.
        until_stdin_closes: Whether the end of standard input stops the server.
        settings: Settings of `ServingConfig`.
        context: Surroundings of the call.

    Raises:
        PortInUseError: The port is taken; nothing was loaded.
        ConflictError: A server of that name already runs in the workspace.
        ModelError: A model cannot be loaded.
    """
    from fairlead.serve.inference import ModelSource, ServingConfig
    from fairlead.serve.inference.model_versions import name_sources
    from fairlead.serve.inference.plan import ServerPlan
    from fairlead.serve.inference.starting import run_server as run

    ctx = context or Context.open()
    config = ServingConfig.parse(settings or {})
    sources = [ModelSource.parse(str(item)) for item in (bundle, *more)]
    token = ctx.settings.admin_token
    plan = ServerPlan(
        sources=name_sources(sources, config.name),
        config=config,
        workspace=ctx.workspace,
        candidate=None if candidate is None else Bundle.open(candidate),
        trust=trust,
        cpu_limit=ctx.settings.cpu_limit,
        admin_token=None if token is None else token.get_secret_value(),
        until_stdin_closes=until_stdin_closes,
    )
    run(plan, on_ready)


def score_batch(
    bundle: str | Path,
    data: str | Path | Sequence[str | Path],
    *,
    out: str | Path,
    keep: Sequence[str] = (),
    columns: Sequence[str] = (),
    chunk_rows: int = 16_384,
    workers: int | None = None,
    engine: Literal["threads", "processes", "ray"] | None = None,
    trust: bool = False,
    stdin: IO[bytes] | None = None,
    context: Context | None = None,
) -> Outcome[Path]:
    """Predict every row of some files and write the predictions as one file.

    Reads, runs and writes in chunks, so memory does not grow with the files. A run that was
    killed goes on where it was when it is started again the same way; the output then holds each
    row once, in order, byte by byte as if nothing had happened. Rows that cannot be predicted go
    to `<out>.quarantine.parquet` with file, number, reason and content.

    Args:
        bundle: The model.
        data: Parquet, CSV or JSON-lines files, folders of such, or patterns; `-` reads `stdin`.
        out: File to write, whole or not at all: `.parquet`, `.csv` or `.jsonl`.
        keep: Columns of the input to carry over, for example an id.
        columns: Columns of predictions to write; none writes all.
        chunk_rows: Rows that are read, scored and kept at once.
        workers: Chunks that are scored at the same time; None takes one per core.
        engine: `threads`, `processes`, or `ray` for a cluster; None chooses between the first two.
        trust: Whether code that came with the model may run.
        stdin: What `-` reads: Parquet, CSV or JSON lines.
        context: Surroundings of the call.

    Returns:
        The file, with the measured throughput and its digest.

    Raises:
        NotFoundError: There is no such file.
        DataError: A file cannot be read, lacks a column of the model, or no row is any good.
        ConflictError: Another process writes the same output.
        WorkspaceError: The output cannot be written.
        MissingExtraError: The engine is `ray`, and Ray is not installed.
    """
    from fairlead.serve.inference.batch import BatchJob, score_files

    ctx = (context or Context.open()).ready_to_record()
    sources = [data] if isinstance(data, str | Path) else list(data)
    job = BatchJob(
        bundle=Bundle.open(bundle),
        data=[str(item) for item in sources],
        out=Path(out),
        keep=tuple(keep),
        columns=tuple(columns),
        chunk_rows=chunk_rows,
        workers=workers,
        engine=engine,
        trust=trust,
        cpu_limit=ctx.settings.cpu_limit,
        stdin=stdin,
    )
    return ctx.record(score_files(job, ctx.progress))


def spare_memory(bundle: str | Path) -> None:
    """Prepare a process that does nothing but score files with an ONNX bundle: it needs no pandas.

    Call it before anything else uses Arrow, and never where somebody's own code runs.
    """
    from fairlead.backends.arrow import leave_pandas_out

    with suppress(FairleadError):  # What is wrong with it will be said in its time.
        if Bundle.open(bundle, verify=False).manifest.kind == "onnx":
            leave_pandas_out()


def stop_service(
    name: str, *, timeout_s: float = 30.0, context: Context | None = None
) -> Outcome[Endpoint]:
    """Ask a server to drain and wait until it has ended.

    Args:
        name: Name of the service.
        timeout_s: How long the drain may take, in seconds.
        context: Surroundings of the call.

    Raises:
        NotFoundError: No server of that name is recorded.
        EndpointError: It did not end in time.
    """
    from fairlead.backends.endpoint import stop_service as stop

    ctx = context or Context.open()
    record = stop(ctx.workspace, name, timeout_s=timeout_s)
    how = "drained and ended" if record.is_alive else "had ended before; its record is removed"
    report = Report(
        skill=_SKILL,
        title=f"Stopped {name}",
        summary=f"{name} (process {record.endpoint.pid}) {how}.",
        details={"endpoint": record.endpoint.model_dump(mode="json"), "was_alive": record.is_alive},
    )
    return Outcome(record.endpoint, report)
