"""Kill -9 after every step of a plan: the same end, and no finished step repeated."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys

import pytest

from fairlead.core.settings import Settings
from fairlead.core.workspace import Workspace
from fairlead.mlops.pipelines import list_runs

pytestmark = [pytest.mark.journey, pytest.mark.timeout(400)]


@pytest.fixture
def plan(material, cli, tmp_path):
    shutil.copy(material / "holdout.parquet", tmp_path / "rows.parquet")
    cli(
        "plan", "Quantize my model, deploy it and monitor it", "--model", material / "model.onnx",
        "--data", tmp_path / "rows.parquet", "--labels", "label", "-o", "plan.toml", check=0,
    )  # fmt: skip
    return tmp_path / "plan.toml"


def _results(workspace):
    runs = list_runs(database_url=workspace.database_url)
    return {result.step: result for result in runs[0].results} if runs else {}


def _is_alive(process):
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(0.05)
    return process.poll() is None


def test_a_plan_that_is_killed_after_every_step_ends_the_same(plan, cli, tmp_path):
    workspace = Workspace.open(Settings.load(home=tmp_path / ".fairlead"))
    env = {"FAIRLEAD_HOME": str(workspace.root)}
    finished = {}
    for _ in range(20):
        process = subprocess.Popen(
            [sys.executable, "-m", "fairlead", "run", str(plan)],
            cwd=tmp_path, env={**os.environ, **env},
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        while _is_alive(process) and len(_results(workspace)) <= len(finished):
            pass
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.wait()
        now = _results(workspace)
        assert {name: now[name] for name in finished} == finished
        if len(now) == len(finished):
            break
        finished = now
    done = cli("run", plan, "--json", env=env)
    assert done.returncode == 0, done.stderr
    assert done.json["details"]["n_executed"] == 0
    assert {result["step"] for result in done.json["details"]["results"]} == set(finished)


def test_a_setting_that_nobody_knows_is_refused_before_anything_runs(plan, cli):
    plan.write_text(plan.read_text().replace("requests = 200", "requests = 200\nno_such = 1"))
    done = cli("run", plan)
    assert done.returncode == 2
    assert "no_such" in done.stderr
    assert "hint:" in done.stderr


def _impossible(text):
    """Edit the plan by hand: tune for a latency that no machine keeps, instead of quantizing."""
    quantize = text[text.index('id = "quantize"') : text.index('id = "serve"')]
    tune = quantize.replace('"quantize"', '"tune"').replace(
        "quantization-for-inference", "hardware-optimization-strategies"
    )
    settings = "[steps.settings]\n"
    head = tune[: tune.index(settings)] + settings + "latency_budget_ms = 1e-6\n\n[[steps]]\n"
    return text.replace(quantize, head)


def test_a_failed_gate_stops_the_plan_with_exit_1_and_says_why(plan, cli):
    good = plan.read_text()
    plan.write_text(_impossible(good))
    done = cli("run", plan, "--json")
    assert done.returncode == 1, done.stderr
    assert done.json["verdict"] == "refused"
    results = done.json["details"]["results"]
    assert [(r["step"], r["verdict"]) for r in results] == [("pack", "done"), ("tune", "refused")]
    assert results[-1]["summary"] in done.json["summary"]
    plan.write_text(good)
    again = cli("run", plan, "--json", check=0)
    assert again.json["details"]["n_executed"] == 3


def test_an_edited_step_runs_again_and_the_ones_before_do_not(plan, cli):
    first = cli("run", plan, "--json", check=0)
    plan.write_text(plan.read_text().replace("requests = 200", "requests = 50"))
    second = cli("run", plan, "--json", check=0)
    assert first.json["details"]["n_executed"] == first.json["details"]["n_steps"]
    assert 0 < second.json["details"]["n_executed"] < second.json["details"]["n_steps"]
    before = json.dumps(first.json["details"]["results"][0])
    assert json.dumps(second.json["details"]["results"][0]) == before
