"""Run capture: code, environment, files and numbers of a run, and no secret."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.api.context import Context
from fairlead.api.tracking import compare_runs, find_run, list_runs, read_points, track, tracked
from fairlead.backends.artifact_store import ArtifactStore
from fairlead.core.errors import (
    ConfigError,
    DataError,
    IntegrityError,
    NotFoundError,
    UsageError,
    WorkspaceError,
)
from fairlead.core.report import Outcome
from fairlead.core.run import Run, RunFile
from fairlead.mlops.tracking.environment import describe_environment, without_secrets
from fairlead.mlops.tracking.log import RunLog, read_log
from tests import processes
from tests.mlops.tracked_job import log_and_die, log_and_hang


@pytest.fixture
def context(tmp_path: Path) -> Context:
    return Context.open(home=tmp_path / "home")


@pytest.fixture
def work(tmp_path: Path) -> Path:
    folder = tmp_path / "work"
    folder.mkdir()
    return folder


@pytest.fixture
def repository(work: Path) -> Path:
    git(work, "init", "-q", "-b", "main")
    (work / "train.py").write_text("print('one')\n")
    (work / ".gitignore").write_text("ignored.txt\n")
    git(work, "add", ".")
    git(work, "commit", "-q", "-m", "first")
    return work


def git(folder: Path, *words: str) -> str:
    identity = ["-c", "user.name=Ann", "-c", "user.email=ann@example.org"]
    done = subprocess.run(
        ["git", *identity, *words], cwd=folder, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def run_python(code: str, context: Context, folder: Path, **options: Any) -> Outcome[Run]:
    return track([sys.executable, "-c", code], context=context, folder=folder, **options)


def content(file: RunFile | None, context: Context) -> bytes:
    assert file is not None
    return ArtifactStore(context.workspace.artifacts).read(file.digest)


def test_a_command_is_recorded_with_its_end_and_its_words(context: Context, work: Path) -> None:
    code = "import sys; print('hello'); print('oh', file=sys.stderr)"
    outcome = run_python(code, context, work)
    run = outcome.noun
    assert (run.status, run.exit_code, run.folder) == ("done", 0, str(work))
    assert (run.stdout_tail, run.stderr_tail) == ("hello\n", "oh\n")
    assert run.packages["numpy"]
    assert find_run(run.id, context=context) == run
    assert {item.metric for item in outcome.evidence} == {"duration_s", "exit_code"}
    stored = context.evidence.query(subject=f"run:{run.id}")
    assert {item.metric for item in stored} == {"duration_s", "exit_code"}


def test_what_the_command_writes_is_passed_on_as_it_comes(context: Context, work: Path) -> None:
    heard: list[tuple[str, bytes]] = []
    run_python("print('hello')", context, work, output=lambda *piece: heard.append(piece))
    assert {stream for stream, _ in heard} == {"stdout"}
    assert b"".join(piece for _, piece in heard) == b"hello\n"


def test_only_the_end_of_much_output_is_kept(context: Context, work: Path) -> None:
    code = "print('x' * 3_000_000); print('end')"
    run = run_python(code, context, work, settings={"tail_kb": 2}).noun
    assert len(run.stdout_tail) == 2000
    assert run.stdout_tail.endswith("x\nend\n")


@pytest.mark.parametrize(("code", "exit_code"), [("exit(3)", 3), ("import os; os.abort()", -6)])
def test_a_command_that_fails_is_recorded_as_failed(
    context: Context, work: Path, code: str, exit_code: int
) -> None:
    outcome = run_python(code, context, work)
    assert outcome.is_refused
    assert (outcome.noun.status, outcome.noun.exit_code) == ("failed", exit_code)


def test_code_is_captured_whole(context: Context, repository: Path) -> None:
    (repository / "train.py").write_text("print('two')\n")
    (repository / "staged.py").write_text("staged\n")
    git(repository, "add", "staged.py")
    (repository / "new file.py").write_text("never added\n")
    (repository / "ignored.txt").write_text("ignored\n")
    run = run_python("pass", context, repository).noun
    assert run.code.commit == git(repository, "rev-parse", "HEAD")
    assert (run.code.branch, run.code.is_dirty) == ("main", True)
    diff = content(run.code.diff, context)
    assert b"+print('two')" in diff
    assert b"+staged" in diff
    assert [file.path for file in run.code.untracked] == ["new file.py"]
    assert content(run.code.untracked[0], context) == b"never added\n"


def test_the_captured_code_gives_the_tree_back(
    context: Context, repository: Path, tmp_path: Path
) -> None:
    (repository / "train.py").write_text("print('two')\n")
    (repository / "weights.bin").write_bytes(os.urandom(1000))
    git(repository, "add", "weights.bin")
    run = run_python("pass", context, repository).noun
    copy = tmp_path / "copy"
    git(tmp_path, "clone", "-q", str(repository), str(copy))
    git(copy, "checkout", "-q", str(run.code.commit))
    patch = tmp_path / "code.diff"
    patch.write_bytes(content(run.code.diff, context))
    git(copy, "apply", str(patch))
    for name in ("train.py", "weights.bin"):
        assert (copy / name).read_bytes() == (repository / name).read_bytes()


def test_a_clean_tree_has_no_difference(context: Context, repository: Path) -> None:
    code = run_python("pass", context, repository).noun.code
    assert (code.is_dirty, code.diff, code.untracked) == (False, None, ())


def test_a_repository_without_a_commit_is_captured(context: Context, work: Path) -> None:
    git(work, "init", "-q")
    (work / "a.py").write_text("a\n")
    git(work, "add", "a.py")
    run = run_python("pass", context, work).noun
    assert run.code.commit is None
    assert b"+a" in content(run.code.diff, context)


def test_without_git_the_run_says_so(context: Context, work: Path) -> None:
    run = run_python("pass", context, work).noun
    assert "not in a git repository" in run.notes[0]
    assert run.code.root == ""


def test_the_workspace_inside_the_repository_is_not_code(repository: Path) -> None:
    context = Context.open(home=repository / ".fairlead")
    run = run_python("pass", context, repository).noun
    assert run.code.untracked == ()


def test_large_files_and_secrets_are_listed_and_not_stored(
    context: Context, repository: Path
) -> None:
    (repository / "big.bin").write_bytes(b"x" * 20_000)
    (repository / ".env").write_text("PASSWORD=hunter2\n")
    (repository / "small.txt").write_text("y" * 100)
    run = run_python("pass", context, repository, settings={"max_file_mb": 0.01}).noun
    stored = {file.path: file.is_stored for file in run.code.untracked}
    assert stored == {"big.bin": False, ".env": False, "small.txt": True}
    assert any("big.bin was not stored: larger than" in note for note in run.notes)
    assert any("looks like a secret" in note for note in run.notes)
    everything = b"".join(
        path.read_bytes() for path in context.workspace.root.rglob("*") if path.is_file()
    )
    assert b"hunter2" not in everything


def test_the_budget_of_all_files_holds(context: Context, repository: Path) -> None:
    for name in "abc":
        (repository / name).write_text(name * 4000)
    run = run_python("pass", context, repository, settings={"max_total_mb": 0.01}).noun
    assert [file.is_stored for file in run.code.untracked] == [True, True, False]


def test_environment_variables_are_recorded_only_by_name() -> None:
    environ = {"OMP_NUM_THREADS": "2", "AWS_SECRET_ACCESS_KEY": "s", "MINE": "m"}
    found = describe_environment(environ, ("MINE",))
    assert (found["OMP_NUM_THREADS"], found["MINE"]) == ("2", "m")
    assert "AWS_SECRET_ACCESS_KEY" not in found


@given(secret=st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=9))
def test_secrets_in_arguments_never_show(secret: str) -> None:
    words = ["x", "--token", secret, f"--db-password={secret}", f"pg://me:{secret}@h/d"]
    assert secret not in " ".join(without_secrets(words))


def test_the_command_logs_to_the_file_it_is_told(context: Context, work: Path) -> None:
    code = (
        "import json, os\n"
        "with open(os.environ['FAIRLEAD_RUN_FILE'], 'a') as f:\n"
        "    for i in range(3):\n"
        "        f.write(json.dumps({'metric': 'loss', 'value': 3 - i, 'step': i}) + '\\n')\n"
        "    f.write(json.dumps({'param': 'lr', 'value': 0.1}) + '\\n')\n"
        "    f.write('this is no JSON\\n')\n"
        "    f.write(json.dumps({'artifact': 'plot.png'}) + '\\n')\n"
        "    f.write(json.dumps({'artifact': 'missing.png'}) + '\\n')\n"
        "open('plot.png', 'w').write('pixels')\n"
    )
    run = run_python(code, context, work, params={"seed": 7}).noun
    assert run.params == {"seed": "7", "lr": "0.1"}
    assert run.metrics == {"loss": 1.0}
    assert [(p.step, p.value) for p in read_points(run.id, context=context)] == [
        (0, 3.0), (1, 2.0), (2, 1.0),
    ]  # fmt: skip
    artifact = next(file for file in run.files if file.role == "artifact")
    assert content(artifact, context) == b"pixels"
    assert any("line 6 of the run's log" in note for note in run.notes)
    assert any("missing.png" in note for note in run.notes)


def test_a_diverged_metric_is_kept(context: Context) -> None:
    with tracked(context=context) as log:
        log.log_metric("loss", math.nan)
        log.log_metric("gap", math.inf)
    run = list_runs(context=context)[0]
    assert math.isnan(run.metrics["loss"])
    assert run.metrics["gap"] == math.inf
    assert math.isnan(read_points(run.id, metric="loss", context=context)[0].value)


def test_declared_files_are_digested_before_and_after(context: Context, work: Path) -> None:
    (work / "in.csv").write_text("a,b\n")
    code = "open('in.csv', 'a').write('1,2\\n'); open('model.bin', 'w').write('m')"
    run = run_python(code, context, work, inputs=["in.csv"], outputs=["model.bin", "lost"]).noun
    digests = {file.role: file for file in run.files}
    assert digests["input"].size_bytes == 4
    assert digests["output"].path == "model.bin"
    assert any("lost is missing" in note for note in run.notes)


def test_a_missing_input_stops_the_run_before_it_starts(context: Context, work: Path) -> None:
    with pytest.raises(NotFoundError, match=r"data\.csv"):
        run_python("open('ran', 'w')", context, work, inputs=["data.csv"])
    assert list_runs(context=context) == []
    assert not (work / "ran").exists()


def test_an_unknown_program_is_a_failed_run_and_an_error(context: Context, work: Path) -> None:
    with pytest.raises(NotFoundError, match="no-such-program"):
        track(["no-such-program"], context=context, folder=work)
    assert list_runs(context=context)[0].status == "failed"


def test_no_command_is_a_wrong_usage(context: Context) -> None:
    with pytest.raises(UsageError, match="no command"):
        track([], context=context)


def test_an_unknown_setting_names_the_known_ones(context: Context) -> None:
    with pytest.raises(ConfigError) as caught:
        track(["true"], settings={"experimnt": "x"}, context=context)
    assert "experiment" in caught.value.hint


def test_a_block_of_python_is_a_run(context: Context, tmp_path: Path) -> None:
    artifact = tmp_path / "model.bin"
    artifact.write_bytes(b"m")
    with tracked(params={"lr": 0.1}, settings={"experiment": "e"}, context=context) as log:
        log.log_metrics({"loss": 0.3, "accuracy": 0.9}, step=1)
        log.log_artifact(artifact)
    run = list_runs(experiment="e", context=context)[0]
    assert (run.status, run.metrics) == ("done", {"loss": 0.3, "accuracy": 0.9})
    assert run.files[0].is_stored


def test_a_block_that_raises_is_a_failed_run(context: Context) -> None:
    with pytest.raises(ZeroDivisionError), tracked(context=context) as log:
        log.log_metric("loss", 1 / 0)
    run = list_runs(context=context)[0]
    assert run.status == "failed"
    assert "ZeroDivisionError" in run.stderr_tail


def test_a_block_inside_a_tracked_command_joins_its_run(context: Context, work: Path) -> None:
    code = (
        "from fairlead.api.tracking import tracked\n"
        "with tracked(params={'lr': 1}) as log: log.log_metric('loss', 0.5)\n"
    )
    run = run_python(code, context, work).noun
    assert run.stderr_tail == ""
    assert (run.params, run.metrics) == ({"lr": "1"}, {"loss": 0.5})
    assert len(list_runs(context=context)) == 1


def test_a_run_that_was_killed_is_interrupted_and_keeps_what_it_logged(context: Context) -> None:
    assert processes.run(log_and_die, str(context.workspace.root)) == -9
    run = list_runs(context=context)[0]
    assert (run.status, run.params) == ("interrupted", {"lr": "0.1"})
    assert run.metrics == {"loss": 1 / 3}
    assert len(read_points(run.id, context=context)) == 3
    assert list_runs(status="interrupted", context=context) == [run]
    assert list_runs(status="running", context=context) == []


def test_a_run_that_goes_on_is_running(context: Context, tmp_path: Path) -> None:
    started = tmp_path / "started"
    process = processes.start(log_and_hang, str(context.workspace.root), str(started))
    try:
        while not started.exists():
            assert process.is_alive()
            time.sleep(0.01)
        run = list_runs(context=context)[0]
        assert (run.status, run.metrics) == ("running", {"loss": 0.5})
    finally:
        process.kill()
        processes.finish(process)
    assert find_run(run.id, context=context).status == "interrupted"


def test_a_run_is_found_by_the_first_letters_of_its_id(context: Context) -> None:
    for _ in range(2):
        with tracked(context=context):
            pass
    first, second = list_runs(context=context)
    assert find_run(first.id[:-2], context=context) == first
    with pytest.raises(UsageError, match="beginning of several"):
        find_run("2", context=context)
    with pytest.raises(NotFoundError):
        find_run("%", context=context)
    assert first.id != second.id


def test_comparing_names_what_differs(context: Context, repository: Path) -> None:
    first = run_python("pass", context, repository, params={"lr": 1}).noun
    (repository / "train.py").write_text("print('two')\n")
    second = run_python("pass", context, repository, params={"lr": 2}).noun
    report = compare_runs(first.id, second.id, context=context)
    differences: Mapping[str, Any] = report.details["differences"]
    assert differences["Parameters"] == [["lr", "1", "2"]]
    assert "uncommitted changes" in str(differences["Code and command"])
    assert "Packages" not in differences
    same = compare_runs(first.id, first.id, context=context)
    assert same.summary == "Nothing recorded differs."


def test_a_value_that_is_no_number_is_refused(context: Context) -> None:
    with tracked(context=context) as log:
        with pytest.raises(DataError, match="'high'"):
            log.log_metric("loss", "high")  # type: ignore[arg-type]
        with pytest.raises(DataError):
            log.log_param("", 1)


def log_many(path: str, worker: int) -> None:
    with RunLog(Path(path)) as log:
        for step in range(200):
            log.log_metric(f"loss-{worker}", step, step=step)


def test_many_processes_log_to_one_run(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    assert processes.run_all([(log_many, (str(path), worker)) for worker in range(4)]) == [0] * 4
    found = read_log(path)
    assert found.notes == []
    for worker in range(4):
        values = [point.value for point in found.points if point.name == f"loss-{worker}"]
        assert values == list(range(200))


@given(
    points=st.lists(
        st.tuples(st.text("abc/_", min_size=1), st.floats(), st.none() | st.integers(-5, 10**9))
    ),
    params=st.dictionaries(st.text("xyz", min_size=1), st.text(max_size=20)),
)
def test_what_is_logged_is_read_back(
    tmp_path_factory: pytest.TempPathFactory,
    points: list[tuple[str, float, int | None]],
    params: dict[str, str],
) -> None:
    path = tmp_path_factory.mktemp("log") / "log.jsonl"
    with RunLog(path) as log:
        log.log_params(params)
        for point in points:
            log.log_metric(*point)
    found = read_log(path)
    assert found.params == params
    assert [(p.name, str(p.value), p.step) for p in found.points] == [
        (name, str(value), step) for name, value, step in points
    ]


@given(data=st.binary(max_size=300))
def test_any_bytes_in_the_log_are_survived(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    path = tmp_path_factory.mktemp("log") / "log.jsonl"
    path.write_bytes(data + b'\n{"metric": "loss", "value": 1}\n')
    assert read_log(path).metrics.get("loss") == 1.0


def test_a_changed_artifact_is_noticed(context: Context) -> None:
    store = ArtifactStore(context.workspace.artifacts)
    digest = store.put_bytes(b"content")
    assert store.read(digest) == b"content"
    next(path for path in (context.workspace.artifacts / "files").rglob("*") if path.is_file()) \
        .write_bytes(b"poison!")  # fmt: skip
    with pytest.raises(IntegrityError):
        store.read(digest)
    with pytest.raises(NotFoundError):
        store.read("sha256:" + "0" * 64)


def test_a_damaged_database_is_an_error_with_a_hint(context: Context) -> None:
    (context.workspace.root / "state.db").write_bytes(os.urandom(9000))
    with pytest.raises(WorkspaceError) as caught, tracked(context=context):
        raise AssertionError
    assert caught.value.hint


def test_the_log_line_is_json(tmp_path: Path) -> None:
    with RunLog(tmp_path / "log.jsonl") as log:
        log.log_metric("loss", 0.5, step=3)
    line = json.loads((tmp_path / "log.jsonl").read_text())
    assert (line["metric"], line["value"], line["step"]) == ("loss", 0.5, 3)
