"""The watching step of a plan on rows that a drill could choke on."""

from __future__ import annotations

import numpy as np
import pytest

from fairlead.api import Context, follow
from fairlead.core.plan import Plan, PlanStep

pd = pytest.importorskip("pandas")
pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A pipeline that refuses categories it does not know, and rows with text and nulls."""
    from sklearn.compose import ColumnTransformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder
    from skops.io import dump

    folder = tmp_path_factory.mktemp("strict")
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "city": rng.choice(["Paris", "Lyon", "Nice"], 400),
            "visits": rng.integers(0, 9, 400),
            "signup": pd.Timestamp("2024-01-01") + pd.to_timedelta(rng.integers(0, 90, 400), "D"),
        }
    )
    frame["churn"] = np.where(frame.visits + 3 * (frame.city == "Nice") > 5, "yes", "no")
    encode = ColumnTransformer(
        [("city", OneHotEncoder(handle_unknown="error"), ["city"])], remainder="passthrough"
    )
    model = make_pipeline(encode, LogisticRegression())
    dump(model.fit(frame[["city", "visits"]][:200], frame.churn[:200]), folder / "churn.skops")
    frame[200:].to_parquet(folder / "rows.parquet", index=False)
    frame[200:220].to_parquet(folder / "few.parquet", index=False)
    return folder


def watched(folder, rows, tmp_path):
    steps = [
        PlanStep(id="pack", uses="pack", why="", gate="stop", gives="", settings={}),
        PlanStep(
            id="monitor", uses="production-monitoring-and-alerting", why="", gate="stop", gives="",
            settings={},
        ),
    ]  # fmt: skip
    plan = Plan(
        problem="watch", answers=(), route=("production-monitoring-and-alerting",),
        model=str(folder / "churn.skops"), data=str(folder / rows), labels="churn", steps=steps,
    )  # fmt: skip
    run = follow(plan, context=Context.open(home=tmp_path / ".fairlead")).noun
    return run.results[-1]


@pytest.fixture(scope="module")
def result(folder, tmp_path_factory):
    return watched(folder, "rows.parquet", tmp_path_factory.mktemp("watched"))


def test_the_drill_asks_nothing_that_the_pipeline_refuses(result):
    assert result.verdict == "done"
    assert result.report["details"]["control"] == "quiet"


def test_what_the_drill_found_is_never_told_as_observed(result):
    findings = result.report["findings"]
    told = [item for item in findings if item["level"] != "info"]
    assert [item["level"] for item in told] == ["good", "good"]
    assert told[1]["text"].startswith("drill, not observed")
    assert all("drill" in item["text"] for item in findings[1:])


def test_too_few_rows_for_a_drill_are_said_and_stop_nothing(folder, tmp_path):
    found = watched(folder, "few.parquet", tmp_path)
    assert found.verdict == "kept"
    assert "too few rows" in found.summary
