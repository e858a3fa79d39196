import pytest

from fairlead.api.context import Context
from fairlead.api.optimizing import tune
from fairlead.backends.endpoint import spawn_server
from fairlead.core.errors import DataError
from tests.optimize import zoo

QUICK = {"time_limit_s": 0.5, "max_batch_size": 2}


def test_a_real_service_tells_where_its_time_goes(digits_bundle, tmp_path) -> None:
    """First asked directly, then by the prediction log that the same requests left."""
    context = Context.open(home=tmp_path / "home")
    rows = zoo.save_rows(zoo.digits_dataset(1200, 1300), tmp_path / "rows.parquet")
    with spawn_server(digits_bundle.path, workspace=context.workspace, name="digits"):
        asked = tune(
            digits_bundle.path, rows, out=tmp_path / "asked", service="digits", settings=QUICK,
            context=context,
        )  # fmt: skip
    numbers = asked.report.details["bottleneck"]["numbers"]
    assert numbers[0]["name"] == "outside / client"
    assert 0 < numbers[0]["value"] < 1
    assert "200 requests sent to `digits`" in asked.report.findings[0].text
    logged = tune(
        digits_bundle.path, rows, out=tmp_path / "logged", logged="digits", settings=QUICK,
        context=context,
    )  # fmt: skip
    names = [item["name"] for item in logged.report.details["bottleneck"]["numbers"]]
    assert "outside / client" not in names
    assert "in the log of `digits`" in logged.report.findings[0].text
    stored = context.evidence.query(metric="model_time_share")
    assert {item.subject for item in stored} == {asked.noun.digest, logged.noun.digest}


def test_a_log_without_requests(digits_bundle, tmp_path) -> None:
    context = Context.open(home=tmp_path / "home")
    rows = zoo.save_rows(zoo.digits_dataset(1200, 1300), tmp_path / "rows.parquet")
    with pytest.raises(DataError, match="0 answered requests"):
        tune(digits_bundle.path, rows, out=tmp_path / "t", logged="digits", context=context)
