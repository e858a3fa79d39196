"""`fairlead mlops`: runs, the model registry, and the runs of plans."""

from __future__ import annotations

import sys
from typing import Annotated, Any, Literal

import typer

from fairlead.core.errors import UsageError
from fairlead.core.report import Report, Table
from fairlead.entrypoints.cli.door import JsonFlag, finish, present, show

__all__ = ["app"]

app = typer.Typer(
    help="Track runs, register models, look at the runs of plans.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
track_app = typer.Typer(
    help="Record runs and compare them.", no_args_is_help=True, rich_markup_mode=None
)
registry_app = typer.Typer(
    help="Name versions of models.", no_args_is_help=True, rich_markup_mode=None
)
pipeline_app = typer.Typer(
    help="Look at the runs of plans; `fairlead run` makes and resumes them.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(track_app, name="track")
app.add_typer(registry_app, name="registry")
app.add_typer(pipeline_app, name="pipeline")

RunId = Annotated[str, typer.Argument(help="Id of the run, or its first letters.")]
Reference = Annotated[str, typer.Argument(help="NAME, NAME@alias or NAME:version.")]
Limit = Annotated[int, typer.Option(min=1, max=100_000, help="Most rows to show.")]
Status = Literal["running", "done", "failed", "interrupted"]


def _pairs(words: list[str] | None, option: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for word in words or []:
        name, sign, value = word.partition("=")
        if not name or not sign:
            raise UsageError(
                f"{option} {word!r} cannot be read, expected name=value",
                hint=f"write for example {option} lr=0.1",
            )
        found[name] = value
    return found


@track_app.command("run", context_settings={"ignore_unknown_options": False})
def track_run(
    command: Annotated[list[str], typer.Argument(help="The command, after `--`.")],
    experiment: Annotated[str, typer.Option(help="Experiment of the run.")] = "default",
    name: Annotated[str, typer.Option(help="Name of the run, for people.")] = "",
    param: Annotated[
        list[str] | None, typer.Option("--param", "-p", help="Parameter, as name=value.")
    ] = None,
    input_: Annotated[
        list[str] | None, typer.Option("--input", help="File the command reads.")
    ] = None,
    output: Annotated[
        list[str] | None, typer.Option("--output", help="File the command writes.")
    ] = None,
    env: Annotated[
        list[str] | None, typer.Option("--env", help="Environment variable to record, by name.")
    ] = None,
    max_file_mb: Annotated[
        float, typer.Option(min=0, help="Largest file whose content is stored, in MB.")
    ] = 10.0,
    max_total_mb: Annotated[
        float, typer.Option(min=0, help="Most content stored for the run, in MB.")
    ] = 100.0,
    json_: JsonFlag = False,
) -> None:
    """Run a command and record code, environment, files, parameters, metrics and its end.

    The command may append lines such as {"metric": "loss", "value": 0.3, "step": 1} to the file
    named by FAIRLEAD_RUN_FILE. Its own output is passed on; with --json, to stderr.
    """
    from fairlead.api.tracking import track

    settings = {
        "experiment": experiment,
        "name": name,
        "env_names": tuple(env or ()),
        "max_file_mb": max_file_mb,
        "max_total_mb": max_total_mb,
    }
    outcome = track(
        command,
        params=_pairs(param, "--param"),
        inputs=tuple(input_ or ()),
        outputs=tuple(output or ()),
        settings=settings,
        output=_pass_on(to_stderr=json_),
    )
    finish(outcome, as_json=json_)


def _pass_on(*, to_stderr: bool) -> Any:  # noqa: ANN401 (a callable of the api)
    def write(stream: Literal["stdout", "stderr"], piece: bytes) -> None:
        target = sys.stderr if to_stderr or stream == "stderr" else sys.stdout
        try:
            target.buffer.write(piece)
            target.buffer.flush()
        except (BrokenPipeError, ValueError):
            return

    return write


@track_app.command("list")
def track_list(
    experiment: Annotated[str | None, typer.Option(help="Only runs of this experiment.")] = None,
    status: Annotated[Status | None, typer.Option(help="Only runs with this status.")] = None,
    limit: Limit = 50,
    json_: JsonFlag = False,
) -> None:
    """List runs, the latest first."""
    from fairlead.api.tracking import list_runs

    runs = list_runs(experiment=experiment, status=status, limit=limit)
    if json_:
        show([run.model_dump(mode="json") for run in runs])
        return
    rows = tuple(
        (
            run.id,
            run.experiment,
            run.name if run.name != run.id else "",
            run.status,
            None if run.duration_s is None else round(run.duration_s, 2),
            " ".join(f"{key}={value:.4g}" for key, value in list(run.metrics.items())[:4]),
        )
        for run in runs
    )
    columns = ("run", "experiment", "name", "status", "seconds", "metrics")
    _list("Runs", columns, rows, "there are no runs yet; `fairlead mlops track run -- COMMAND`")


@track_app.command("show")
def track_show(run: RunId, json_: JsonFlag = False) -> None:
    """Show everything that is known of a run."""
    from fairlead.api.tracking import report_run

    present(report_run(run), as_json=json_)


@track_app.command("compare")
def track_compare(first: RunId, second: RunId, json_: JsonFlag = False) -> None:
    """Show what differs between two runs: metrics, parameters, code, files, packages."""
    from fairlead.api.tracking import compare_runs

    present(compare_runs(first, second), as_json=json_)


@registry_app.command("register")
def registry_register(
    bundle: Annotated[str, typer.Argument(help="Folder of the bundle.")],
    name: Annotated[str, typer.Option(help="Name of the registered model.")],
    run: Annotated[str | None, typer.Option(help="Id of the run that made it.")] = None,
    alias: Annotated[
        str | None, typer.Option(help="Alias that points to this version from now on.")
    ] = None,
    json_: JsonFlag = False,
) -> None:
    """Make a bundle the next version of a model; its bytes are copied into the workspace."""
    from fairlead.api.tracking import register

    finish(register(bundle, name=name, run=run, alias=alias), as_json=json_)


@registry_app.command("list")
def registry_list(
    name: Annotated[str | None, typer.Argument(help="Only versions of this model.")] = None,
    json_: JsonFlag = False,
) -> None:
    """List versions, the latest first."""
    from fairlead.api.tracking import list_versions

    versions = list_versions(name)
    if json_:
        show([version.model_dump(mode="json") for version in versions])
        return
    rows = tuple(
        (
            f"{item.name}:{item.version}",
            ", ".join(item.aliases),
            item.bundle_digest[:19],
            item.run_id or "",
            item.created_at.isoformat(timespec="seconds"),
        )
        for item in versions
    )
    columns = ("version", "aliases", "bundle", "run", "registered")
    _list("Model versions", columns, rows, "no model is registered yet")


@registry_app.command("show")
def registry_show(reference: Reference, json_: JsonFlag = False) -> None:
    """Show a version and its lineage, after checking every stored byte."""
    from fairlead.api.tracking import show_version

    finish(show_version(reference), as_json=json_)


@registry_app.command("resolve")
def registry_resolve(reference: Reference, json_: JsonFlag = False) -> None:
    """Print the folder of the stored bundle, for other commands to use."""
    from fairlead.api.tracking import resolve

    bundle = resolve(reference)
    if json_:
        show({"reference": reference, "path": str(bundle.path), "digest": bundle.digest})
    else:
        typer.echo(bundle.path)


@registry_app.command("alias")
def registry_alias(
    name: Annotated[str, typer.Argument(help="Name of the registered model.")],
    version: Annotated[int, typer.Argument(min=1, help="Version the alias points to.")],
    alias: Annotated[str, typer.Argument(help="For example champion.")],
    json_: JsonFlag = False,
) -> None:
    """Point an alias at a version; readers see the old one or the new one, never none."""
    from fairlead.api.tracking import set_alias

    finish(set_alias(name, version, alias), as_json=json_)


@registry_app.command("delete-alias")
def registry_delete_alias(
    name: Annotated[str, typer.Argument(help="Name of the registered model.")],
    alias: Annotated[str, typer.Argument(help="The alias to remove.")],
    json_: JsonFlag = False,
) -> None:
    """Remove an alias; the version it points to stays."""
    from fairlead.api.tracking import delete_alias

    present(delete_alias(name, alias), as_json=json_)


@pipeline_app.command("list")
def pipeline_list(limit: Limit = 50, json_: JsonFlag = False) -> None:
    """List the runs of plans, the latest first."""
    from fairlead.api.pipelines import list_plan_runs

    runs = list_plan_runs(limit=limit)
    if json_:
        show([run.model_dump(mode="json") for run in runs])
        return
    rows = tuple(
        (
            run.id,
            run.status,
            f"{len(run.results)} of {run.n_steps}",
            run.attempts,
            run.started_at.isoformat(timespec="seconds") if run.started_at else "",
            run.title,
        )
        for run in runs
    )
    columns = ("run", "status", "steps", "attempts", "started", "title")
    _list("Runs of plans", columns, rows, "no plan was run yet; `fairlead run plan.toml` runs one")


@pipeline_app.command("show")
def pipeline_show(
    run: Annotated[str, typer.Argument(help="Id of the run.")], json_: JsonFlag = False
) -> None:
    """Show the steps of a run and what they left."""
    from fairlead.api.pipelines import report_plan_run

    present(report_plan_run(run), as_json=json_)


def _list(
    title: str, columns: tuple[str, ...], rows: tuple[tuple[Any, ...], ...], nothing: str
) -> None:
    summary = f"{len(rows)} shown." if rows else nothing
    tables = (Table(title=title, columns=columns, rows=rows),) if rows else ()
    report = Report(skill="mlops", title=title, summary=summary, tables=tables)
    present(report, as_json=False)
