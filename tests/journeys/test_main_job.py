"""The main job, end to end, as a user runs it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

pytestmark = [pytest.mark.journey, pytest.mark.alone, pytest.mark.timeout(400)]
PROBLEM = "I trained a model, now I need to put it in production"


@pytest.fixture(scope="module")
def finished(tmp_path_factory, module_cli):
    folder = tmp_path_factory.mktemp("main-job")
    done = module_cli("demo", "run", "demo", "--json", cwd=folder, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout)
    saved = json.loads(Path(folder / report["files"]["report as JSON"]).read_text())
    return folder, report, saved["run"]


def _step(run, name):
    return next(result for result in run["results"] if result["step"] == name)


def test_every_step_of_the_route_is_done_in_order(finished):
    _, _, run = finished
    assert [result["step"] for result in run["results"]] == [
        "pack", "quantize", "tune", "serve", "roll-out", "monitor",
    ]  # fmt: skip
    assert run["status"] == "done"


def test_the_answers_of_the_server_equal_the_bundles(finished):
    _, _, run = finished
    measures = {m["name"]: m["value"] for m in _step(run, "serve")["report"]["measures"]}
    assert measures["answers that differ"] == 0


def test_the_optimised_bundle_is_promoted(finished):
    _, _, run = finished
    rollout = _step(run, "roll-out")
    assert rollout["verdict"] == "done"
    assert rollout["bundle"] == _step(run, "tune")["bundle"]


def test_the_shifted_stream_raises_an_alert_that_names_shifted_features(finished):
    _, _, run = finished
    monitor = _step(run, "monitor")["report"]
    assert any(finding["level"] == "alert" for finding in monitor["findings"])
    drifted = monitor["details"]["drifted"]
    dimmed = {f"pixel_{i}" for i in range(32, 56)}
    assert drifted
    assert set(drifted[:5]) <= dimmed


def test_the_stream_as_it_was_raises_none(finished):
    _, _, run = finished
    assert _step(run, "monitor")["report"]["details"]["control"] == "quiet"


def test_the_worst_slice_is_named(finished):
    _, _, run = finished
    assert _step(run, "monitor")["report"]["details"]["worst_slice"]


def test_the_report_is_a_page_that_needs_nothing_beside_itself(finished):
    folder, report, _ = finished
    page = Path(folder / report["files"]["report"]).read_text()
    assert "<svg" in page
    assert "http" not in page.split("</style>")[1].replace("http://www.w3.org", "").replace(
        "http://127.0.0.1", ""
    ).replace("https://matplotlib.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    )


def test_no_process_is_left_behind(finished):
    folder, _, _ = finished
    listing = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
    assert str(folder) not in listing.stdout


def test_running_the_plan_again_repeats_nothing(finished, module_cli):
    folder, _, _ = finished
    done = module_cli(
        "run", "demo/plan.toml", "--json", cwd=folder, env={"FAIRLEAD_HOME": "demo/.fairlead"}
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["details"]["n_executed"] == 0
