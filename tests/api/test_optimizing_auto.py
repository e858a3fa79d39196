import json
import shutil
import time

import numpy as np
import pytest

from fairlead.api.auto_measuring import measure_full_batch
from fairlead.api.auto_plan import ModelProfile, plan_trials, profile_model
from fairlead.api.context import Context
from fairlead.api.optimizing_auto import optimize_auto
from fairlead.core.bundle import Bundle
from fairlead.core.dataset import bind
from fairlead.core.errors import ConfigError, DataError
from fairlead.entrypoints.cli.optimize_auto import _with_page
from fairlead.measure.roofline import MachinePeaks, OperatorCost, Roofline
from tests.optimize import zoo
from tests.optimize.conftest import digits_bundle, forest_bundle, pack_bundle  # noqa: F401

QUICK = {"time_limit_s": 0.3, "max_drop": 0.02}


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return zoo.save_rows(zoo.digits_dataset(), tmp_path_factory.mktemp("rows") / "rows.parquet")


@pytest.fixture(scope="module")
def found(digits_bundle, rows, tmp_path_factory):  # noqa: F811
    """One search, and the same again after its result was lost."""
    folder = tmp_path_factory.mktemp("auto")
    context = Context.open(home=folder / "home")
    first = optimize_auto(
        digits_bundle.path, rows, out=folder / "best",
        settings={**QUICK, "target": "size"}, context=context,
    )  # fmt: skip
    shutil.copytree(folder / "best", folder / "kept")
    shutil.rmtree(folder / "best")
    again = optimize_auto(
        digits_bundle.path, rows, out=folder / "best",
        settings={**QUICK, "target": "size"}, context=context,
    )  # fmt: skip
    return folder, first, again


def test_the_smallest_version_within_the_budget_is_written(found, digits_bundle) -> None:  # noqa: F811
    folder, first, _ = found
    made, details = Bundle.open(folder / "kept"), first.report.details
    assert first.report.verdict == "done"
    assert made.size_bytes <= 0.6 * digits_bundle.size_bytes
    assert made.runtime.is_tuned
    assert details["winner"] in details["pareto_front"]
    sizes = {name: one["size_bytes"] for name, one in details["candidates"].items()}
    within = {row[0] for row in first.report.tables[2].rows if row[5]}
    assert sizes[details["winner"]] <= 1.05 * min(sizes[name] for name in within)


def test_the_bundle_carries_its_comparison_with_the_original(found, digits_bundle) -> None:  # noqa: F811
    comparison = Bundle.open(found[0] / "kept").comparison()
    assert comparison.parent_digest == digits_bundle.digest
    assert comparison.drop <= comparison.budget == QUICK["max_drop"]
    assert comparison.edges
    assert not any(edge.is_lost for edge in comparison.edges)


def test_at_most_four_full_evaluations_and_all_versions_in_one_run(found) -> None:
    details = found[1].report.details
    assert details["full_evaluations"] <= 4
    assert details["passes"] <= 4
    assert len({one["rows_per_call"] for one in details["batches"].values()}) == 1
    assert details["candidates"]["original"]["peak_memory_bytes"] > 0


def test_a_second_run_reads_what_the_first_one_did(found) -> None:
    _, first, again = found
    assert first.report.details["reused_steps"] == 0
    assert again.report.details["reused_steps"] >= 1
    assert again.report.details["winner"] == first.report.details["winner"]


def test_the_page_shows_the_pareto_plot(found) -> None:
    outcome = _with_page(found[2])
    page = (found[0] / "best.search" / "report.html").read_text()
    assert page.count("<svg") == 2
    assert "(written)" in page
    assert json.loads((found[0] / "best.search" / "report.json").read_text())["verdict"] == "done"
    assert "report" in outcome.report.files


def test_a_budget_that_nothing_keeps_leaves_the_original(tmp_path, forest_bundle, rows) -> None:  # noqa: F811
    outcome = optimize_auto(
        forest_bundle.path, rows, out=tmp_path / "out", settings={**QUICK, "max_drop": 0},
        context=Context.open(home=tmp_path / "home"),
    )  # fmt: skip
    tried = {row[0]: row[1] for row in outcome.report.tables[0].rows}
    assert not tried["quantized"]
    if outcome.report.verdict == "kept":
        assert Bundle.open(tmp_path / "out").digest == forest_bundle.digest
        assert "no gain" in outcome.report.summary or "breaks" in outcome.report.summary
    else:
        assert outcome.noun.comparison().drop <= 0


def nan_metric(outputs, labels):
    return float("nan")


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"metric": f"{__name__}:nan_metric"}, DataError, "metric gives nan"),
        ({"metric": "beauty"}, ConfigError, "no metric"),
        ({"device": "cuda"}, ConfigError, "CUDAExecutionProvider"),
        ({"target": "beauty"}, ConfigError, "target"),
    ],
)
def test_wrong_questions(tmp_path, digits_bundle, rows, settings, error, words) -> None:  # noqa: F811
    with pytest.raises(error, match=words):
        optimize_auto(
            digits_bundle.path, rows, out=tmp_path / "out", settings={**QUICK, **settings},
            context=Context.open(home=tmp_path / "home"),
        )  # fmt: skip
    assert not (tmp_path / "out").exists()


def profile(family: str, matrix_ms: float, other_ms: float) -> ModelProfile:
    costs = (
        OperatorCost("a", "MatMul", matrix_ms, 1e6, 1e5),
        OperatorCost("b", "Add", other_ms, 1e3, 1e4),
    )
    roofline = Roofline(MachinePeaks(100, 400, 20), costs, 1)
    return ModelProfile(family, matrix_ms / (matrix_ms + other_ms), roofline)


@pytest.mark.parametrize(
    ("family", "matrix_ms", "target", "quantizes", "compresses"),
    [
        ("transformer", 9.0, "latency", True, False),
        ("dense", 9.0, "latency", True, True),
        ("dense", 0.1, "latency", False, True),
        ("dense", 0.1, "size", True, True),
        ("trees", 0.0, "latency", False, True),
        ("recurrent", 9.0, "latency", True, False),
        ("other", 0.0, "latency", False, True),
    ],
)
def test_what_is_tried_follows_from_the_profile(
    family, matrix_ms, target, quantizes, compresses
) -> None:
    plan = plan_trials(profile(family, matrix_ms, 10.0), target=target, device="cpu", limits={})
    assert plan[0].id == "tuned"
    assert (plan[1].is_tried, plan[2].is_tried) == (quantizes, compresses)
    assert all(trial.why for trial in plan)


@pytest.mark.parametrize(
    ("max_drop", "has_labels", "tried"),
    [
        (0.01, True, [True, True, True, True]),
        (0.01, False, [True, False, True, True]),
        (0.0, True, [True, False, False, False]),
    ],
)
def test_trees_get_harmless_versions_beside_the_daring_ones(max_drop, has_labels, tried) -> None:
    plan = plan_trials(
        ModelProfile("trees"), target="throughput", device="cpu", limits={"max_drop": max_drop},
        has_labels=has_labels,
    )  # fmt: skip
    names = ["leaner trees", "fewer trees", "fewest trees", "distilled"]
    assert [one.id for one in plan[2:]] == names
    assert [one.is_tried for one in plan[2:]] == tried
    assert plan[2].settings["max_drop"] == 0
    assert [one.by_agreement for one in plan] == [False, False, False, True, False, False]


def test_at_most_four_versions_of_a_forest_are_judged(forest_bundle, rows, tmp_path) -> None:  # noqa: F811
    outcome = optimize_auto(
        forest_bundle.path, rows, out=tmp_path / "out",
        settings={**QUICK, "max_drop": 0.05, "target": "size"},
        context=Context.open(home=tmp_path / "home"),
    )  # fmt: skip
    details = outcome.report.details
    assert details["full_evaluations"] <= 4
    assert details["passes"] <= 4
    assert outcome.report.verdict == "done"
    assert outcome.noun.size_bytes < 0.8 * forest_bundle.size_bytes
    assert details["trials"]["leaner trees"]["verdict"] == "done"
    assert outcome.noun.comparison().drop <= 0.05


def test_a_full_batch_is_no_larger_than_a_quarter_of_a_second(digits_bundle, monkeypatch) -> None:  # noqa: F811
    class Slow:
        signature = digits_bundle.signature

        def run(self, feeds):
            until = time.process_time() + 0.045
            while time.process_time() < until:
                pass
            return {}

        def close(self):
            pass

    quick = measure_full_batch(digits_bundle, zoo.digits_dataset(), trust=False)
    monkeypatch.setattr("fairlead.api.auto_measuring.open_runner", lambda *_, **__: Slow())
    slow = measure_full_batch(digits_bundle, zoo.digits_dataset(), trust=False)
    assert (quick.rows, slow.rows) == (32, 4)


def test_the_profile_of_a_network(digits_bundle) -> None:  # noqa: F811
    manifest = digits_bundle.manifest
    feeds = bind(zoo.digits_dataset(), manifest.signature, feature_columns=manifest.feature_columns)
    one = {name: np.asarray(array[:1]) for name, array in feeds.items()}
    known = profile_model(digits_bundle, one)
    assert known.family == "dense"
    products = [
        i for i in known.roofline.operators if i.operator in ("MatMul", "Gemm", "FusedGemm")
    ]
    assert sum(i.flops for i in products) == 2 * (64 * 128 + 128 * 64 + 64 * 10)
    assert sum(known.roofline.shares.values()) == pytest.approx(1)


def test_what_ships_was_measured_with_its_own_settings(found) -> None:
    folder, first, _ = found
    details, made = first.report.details, Bundle.open(folder / "kept")
    if details["winner"] == "tuned":
        assert details["shipped"] is None
        return
    assert details["shipped"]["why"]
    assert details["shipped"]["speedup_ratio"] == made.comparison().speedup_ratio
    measured = {one.name: one.value for one in first.report.measures}
    assert measured["speedup_ratio"] == details["shipped"]["speedup_ratio"]
    assert details["runtime"] == made.runtime.model_dump(mode="json")
