"""The durable executor: a finished step is never executed again, whatever kills the process."""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from fairlead.core.errors import ConflictError, DataError, NotFoundError, UsageError, WorkspaceError
from fairlead.core.plan import PlanRun, StepResult
from fairlead.core.report import Outcome
from fairlead.mlops.pipelines import (
    PipelineConfig,
    PipelineStep,
    list_runs,
    read_run,
    report_run,
    run_pipeline,
)
from tests import processes
from tests.mlops.pipeline_driver import STEPS, drive, executions, step_of


def url_of(folder: Path) -> str:
    return f"sqlite:///{folder / 'state.db'}"


def go(
    folder: Path, run_id: str = "r1", *, attempts: int = 1, **behaviour: str
) -> Outcome[PlanRun]:
    return run_pipeline(
        run_id,
        [step_of(name, folder, behaviour) for name in STEPS],
        PipelineConfig(attempts=attempts, backoff_s=0.01),
        database_url=url_of(folder),
        title="my model is slow",
    )


def test_steps_run_in_order_and_see_the_results_before_them(tmp_path: Path) -> None:
    outcome = go(tmp_path)
    run = outcome.noun
    assert (run.status, run.n_executed, run.n_steps) == ("done", 3, 3)
    assert [result.report["before"] for result in run.results] == [
        [], ["pack"], ["pack", "quantize"],
    ]  # fmt: skip
    assert executions(tmp_path) == list(STEPS)
    assert [item.labels["step"] for item in outcome.evidence] == list(STEPS)


def test_a_run_that_is_done_executes_nothing_again(tmp_path: Path) -> None:
    first = go(tmp_path).noun
    again = go(tmp_path)
    assert executions(tmp_path) == list(STEPS)
    assert again.noun.n_executed == 0
    assert [r.model_dump_json() for r in again.noun.results] == [
        r.model_dump_json() for r in first.results
    ]
    assert again.evidence == ()


@pytest.mark.parametrize("step", STEPS)
def test_kill_9_in_a_step_repeats_only_that_step(tmp_path: Path, step: str) -> None:
    assert processes.run(drive, str(tmp_path), "r1", {step: "kill"}) == -9
    before = read_run("r1", database_url=url_of(tmp_path))
    assert before.status == "interrupted"
    assert [result.step for result in before.results] == list(STEPS[: STEPS.index(step)])
    assert go(tmp_path).noun.status == "done"
    assert executions(tmp_path) == sorted([*STEPS, step], key=STEPS.index)


@pytest.mark.parametrize("step", STEPS)
def test_kill_9_between_steps_repeats_nothing(tmp_path: Path, step: str) -> None:
    assert processes.run(drive, str(tmp_path), "r1", {}, step) == -9
    assert executions(tmp_path) == list(STEPS[: STEPS.index(step)])
    assert go(tmp_path).noun.status == "done"
    assert executions(tmp_path) == list(STEPS)


def test_kill_9_at_any_moment_never_repeats_a_stored_step(tmp_path: Path) -> None:
    chance = random.Random(7)
    slow = dict.fromkeys(STEPS, "slow")
    for number in range(8):
        run_id = f"run-{number}"
        process = processes.start(drive, str(tmp_path), run_id, slow)
        time.sleep(chance.uniform(0.1, 0.6))
        process.kill()
        processes.finish(process)
        stored = {run.id: run for run in list_runs(database_url=url_of(tmp_path))}
        kept = len(stored[run_id].results) if run_id in stored else 0
        n_before = len(executions(tmp_path))
        assert go(tmp_path, run_id).noun.status == "done"
        assert executions(tmp_path)[n_before:] == list(STEPS[kept:])


def test_a_run_killed_again_and_again_still_ends(tmp_path: Path) -> None:
    for step in STEPS:
        assert processes.run(drive, str(tmp_path), "r1", {step: "kill"}) == -9
    assert go(tmp_path).noun.status == "done"
    assert executions(tmp_path) == ["pack", "pack", "quantize", "quantize", "tune", "tune"]


def test_a_refusal_stops_the_run_and_the_next_call_begins_there(tmp_path: Path) -> None:
    outcome = go(tmp_path, quantize="refuse")
    assert outcome.is_refused
    assert outcome.noun.status == "refused"
    assert "quantize" in outcome.noun.error
    assert executions(tmp_path) == ["pack", "quantize"]
    again = go(tmp_path)
    assert (again.noun.status, again.noun.attempts) == ("done", 2)
    assert executions(tmp_path) == ["pack", "quantize", "quantize", "tune"]


def test_a_gate_error_refuses_with_its_own_hint(tmp_path: Path) -> None:
    run = go(tmp_path, quantize="gate").noun
    assert (run.status, run.error, run.hint) == ("refused", "accuracy fell", "raise the budget")
    assert read_run("r1", database_url=url_of(tmp_path)).hint == "raise the budget"
    assert [result.verdict for result in run.results] == ["done", "refused"]


def test_a_refusal_that_may_pass_lets_the_run_go_on(tmp_path: Path) -> None:
    steps = [
        PipelineStep(step.id, step.run, gate="keep")
        for step in (step_of(name, tmp_path, {"quantize": "refuse"}) for name in STEPS)
    ]
    outcome = run_pipeline("r1", steps, PipelineConfig(), database_url=url_of(tmp_path))
    assert outcome.noun.status == "done"
    assert [result.verdict for result in outcome.noun.results] == ["done", "refused", "done"]


def test_an_error_comes_back_as_itself_and_is_kept(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="`age` is missing"):
        go(tmp_path, quantize="fail")
    run = read_run("r1", database_url=url_of(tmp_path))
    assert (run.status, run.error, run.hint) == (
        "failed", "the column `age` is missing", "add the column",
    )  # fmt: skip
    assert "Failed after 1 of 3 steps" in report_run(run).summary
    assert go(tmp_path).noun.status == "done"
    assert executions(tmp_path) == ["pack", "quantize", "quantize", "tune"]


def test_a_foreign_error_comes_back_as_itself_after_all_attempts(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        go(tmp_path, attempts=3, quantize="odd")
    assert executions(tmp_path) == ["pack", "quantize", "quantize", "quantize"]
    assert "ZeroDivisionError" in read_run("r1", database_url=url_of(tmp_path)).error


def test_an_error_in_the_input_is_not_tried_again(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        go(tmp_path, attempts=3, pack="fail")
    assert executions(tmp_path) == ["pack"]


def test_ctrl_c_reaches_the_step_and_leaves_a_run_that_goes_on(tmp_path: Path) -> None:
    def interrupt(_: Mapping[str, StepResult]) -> StepResult:
        raise KeyboardInterrupt

    steps = [step_of("pack", tmp_path, {}), PipelineStep("quantize", interrupt)]
    with pytest.raises(KeyboardInterrupt):
        run_pipeline("r1", steps, PipelineConfig(), database_url=url_of(tmp_path))
    assert read_run("r1", database_url=url_of(tmp_path)).status == "interrupted"
    assert go(tmp_path).noun.status == "done"
    assert executions(tmp_path) == list(STEPS)


def test_a_changed_step_runs_again_with_all_that_follow(tmp_path: Path) -> None:
    def run(fingerprint: str) -> PlanRun:
        steps = [step_of(name, tmp_path, {}) for name in STEPS]
        steps[1] = PipelineStep("quantize", steps[1].run, fingerprint=fingerprint)
        return run_pipeline("r1", steps, PipelineConfig(), database_url=url_of(tmp_path)).noun

    run("a")
    assert run("a").n_executed == 0
    assert run("b").n_executed == 2
    assert run("b").n_executed == 0
    assert executions(tmp_path) == [*STEPS, "quantize", "tune"]


def test_a_step_that_was_added_runs_alone(tmp_path: Path) -> None:
    go(tmp_path)
    steps = [step_of(name, tmp_path, {}) for name in (*STEPS, "serve")]
    run = run_pipeline("r1", steps, PipelineConfig(), database_url=url_of(tmp_path)).noun
    assert (run.status, run.n_executed, len(run.results)) == ("done", 1, 4)


def test_two_processes_never_work_on_the_same_run(tmp_path: Path) -> None:
    process = processes.start(drive, str(tmp_path), "r1", {"quantize": "hang"})
    try:
        _wait_for(tmp_path, ["pack", "quantize"])
        assert read_run("r1", database_url=url_of(tmp_path)).status == "running"
        with pytest.raises(ConflictError, match=str(process.pid)):
            go(tmp_path)
        assert go(tmp_path, "r2").noun.status == "done"
    finally:
        process.kill()
        processes.finish(process)
    assert executions(tmp_path) == ["pack", "quantize", *STEPS]
    assert go(tmp_path).noun.status == "done"


def _wait_for(folder: Path, steps: list[str]) -> None:
    for _ in range(2000):
        if executions(folder) == steps:
            return
        time.sleep(0.01)
    raise AssertionError(f"found {executions(folder)}, expected {steps}")


def test_four_runs_at_once_in_one_database_keep_apart(tmp_path: Path) -> None:
    folders = [tmp_path / str(number) for number in range(4)]
    for folder in folders:
        folder.mkdir()
    calls = [
        (drive, (str(folder), f"run-{number}", {"tune": "slow"}, "", url_of(tmp_path)))
        for number, folder in enumerate(folders)
    ]
    assert processes.run_all(calls) == [0] * 4
    assert [executions(folder) for folder in folders] == [list(STEPS)] * 4
    assert {run.status for run in list_runs(database_url=url_of(tmp_path))} == {"done"}


def test_several_runs_in_one_process_leave_no_thread(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    for number in range(3):
        go(tmp_path, f"run-{number}")
    assert [thread for thread in threading.enumerate() if thread not in before] == []
    runs = list_runs(database_url=url_of(tmp_path), limit=2)
    assert len(runs) == 2
    assert runs[0].title == "my model is slow"


def test_a_process_ends_quickly_and_silently_after_a_run(tmp_path: Path) -> None:
    code = f"from tests.mlops.pipeline_driver import drive, executions\ndrive({str(tmp_path)!r})\n"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        timeout=60,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_nothing_is_known_before_the_first_run(tmp_path: Path) -> None:
    assert list_runs(database_url=url_of(tmp_path)) == []
    with pytest.raises(NotFoundError, match="r9") as caught:
        read_run("r9", database_url=url_of(tmp_path))
    assert "pipeline list" in caught.value.hint


@pytest.mark.parametrize("run_id", ["", "a b", "../up", "a~2", "x" * 101])
def test_an_id_that_cannot_be_stored_is_refused(tmp_path: Path, run_id: str) -> None:
    with pytest.raises(UsageError):
        go(tmp_path, run_id)
    assert executions(tmp_path) == []


def test_a_pipeline_needs_steps_with_ids_of_their_own(tmp_path: Path) -> None:
    twice = [step_of("pack", tmp_path, {}), step_of("pack", tmp_path, {})]
    for steps, words in (([], "no steps"), (twice, "two steps named `pack`")):
        with pytest.raises(UsageError, match=words):
            run_pipeline("r1", steps, PipelineConfig(), database_url=url_of(tmp_path))


def test_results_are_stored_as_json_and_never_pickled(tmp_path: Path) -> None:
    import sqlite3

    go(tmp_path)
    connection = sqlite3.connect(tmp_path / "state.db")
    try:
        kinds = connection.execute(
            "SELECT serialization FROM workflow_status UNION "
            "SELECT serialization FROM operation_outputs"
        ).fetchall()
    finally:
        connection.close()
    assert set(kinds) == {("fairlead_json",)}


def test_a_damaged_database_is_an_error_with_a_hint(tmp_path: Path) -> None:
    (tmp_path / "state.db").write_bytes(os.urandom(9000))
    with pytest.raises(WorkspaceError) as caught:
        go(tmp_path)
    assert caught.value.hint
    assert executions(tmp_path) == []


def run_on_a_full_disk(folder: str) -> None:
    path = Path(folder)

    def fill(_: Mapping[str, StepResult]) -> StepResult:
        size = (path / "state.db-wal").stat().st_size
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 1000, size + 1000))
        return StepResult(step="quantize", verdict="done", summary="", report={"x": "y" * 500_000})

    steps = [step_of("pack", path, {}), PipelineStep("quantize", fill)]
    try:
        run_pipeline("r1", steps, PipelineConfig(), database_url=url_of(path))
    except WorkspaceError as exc:
        os._exit(3 if exc.hint else 4)


def test_a_full_disk_is_an_error_and_the_run_goes_on_when_there_is_room(tmp_path: Path) -> None:
    assert processes.run(run_on_a_full_disk, str(tmp_path)) == 3
    assert read_run("r1", database_url=url_of(tmp_path)).status == "interrupted"
    assert go(tmp_path).noun.status == "done"
    assert executions(tmp_path) == list(STEPS)
