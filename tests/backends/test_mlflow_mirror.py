"""The mirror: what a run logged is found again through MLflow's own client."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from fairlead.api.context import Context
from fairlead.api.tracking import track, tracked
from fairlead.core.settings import Settings
from fairlead.core.workspace import Workspace

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:mlflow"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def open_context(folder: Path, uri: str) -> Context:
    settings = Settings(home=folder / "home", mlflow_tracking_uri=uri)
    return Context(Workspace.open(settings), settings)


def test_a_run_is_mirrored_whole(tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    context = open_context(tmp_path, uri)
    with tracked(params={"lr": 0.1}, settings={"experiment": "e"}, context=context) as log:
        for step in range(1200):
            log.log_metric("loss", 1 / (step + 1), step=step)
    client = mlflow.tracking.MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("e")
    runs = client.search_runs([experiment.experiment_id])
    assert len(runs) == 1
    assert runs[0].data.params == {"lr": "0.1"}
    assert runs[0].info.status == "FINISHED"
    assert len(client.get_metric_history(runs[0].info.run_id, "loss")) == 1200


def test_a_server_that_is_not_there_does_not_undo_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    pytest.importorskip("mlflow")
    context = open_context(tmp_path, "http://127.0.0.1:9")
    outcome = track([sys.executable, "-c", "pass"], context=context, folder=tmp_path)
    assert outcome.noun.status == "done"
    assert "not mirrored" in outcome.report.findings[-1].text
