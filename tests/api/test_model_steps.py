"""Steps of a plan on a model that runs code of its own."""

from __future__ import annotations

import numpy as np
import pytest

from fairlead.api import Context, follow
from fairlead.api.releasing import release
from fairlead.api.tracking import list_versions, register
from fairlead.backends.datasets import load_dataset
from fairlead.core.bundle import Bundle, derive_bundle
from fairlead.core.comparison import ComparisonGate
from fairlead.core.dataset import Dataset
from fairlead.core.errors import UntrustedError
from fairlead.core.plan import Plan, PlanStep

pytestmark = pytest.mark.timeout(120)


def _halved(table):
    return table / 2


@pytest.fixture
def plan_for(tmp_path):
    """A plan that packs and tunes a pipeline with a function of this module."""
    from sklearn.linear_model import LinearRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer
    from skops.io import dump

    from fairlead.backends.datasets import save_dataset

    table = np.random.default_rng(0).normal(size=(80, 2))
    target = table.sum(axis=1)
    model = make_pipeline(FunctionTransformer(_halved), LinearRegression()).fit(table, target)
    dump(model, tmp_path / "model.skops")
    rows = {"a": table[:, 0], "b": table[:, 1], "y": target}
    save_dataset(Dataset(rows), tmp_path / "rows.parquet")

    def made(**packing):
        uses = {"pack": packing, "hardware-optimization-strategies": {"time_limit_s": 1.0}}
        steps = [
            PlanStep(id=uses, uses=uses, why="", gate="stop", gives="", settings=settings)
            for uses, settings in uses.items()
        ]
        return Plan(
            problem="tune", answers=(), route=("hardware-optimization-strategies",),
            model=str(tmp_path / "model.skops"), data=str(tmp_path / "rows.parquet"), labels="y",
            steps=steps,
        )  # fmt: skip

    return made


def test_what_was_packed_as_trusted_is_trusted_by_the_steps_after(plan_for, tmp_path):
    outcome = follow(plan_for(trust=True), context=Context.open(home=tmp_path / ".fairlead"))
    assert [result.verdict for result in outcome.noun.results] == ["done", "done"]


def test_a_model_that_is_not_trusted_says_where_a_plan_says_so(plan_for, tmp_path):
    with pytest.raises(UntrustedError) as caught:
        follow(plan_for(), context=Context.open(home=tmp_path / ".fairlead"))
    assert "trust = true" in caught.value.hint


def test_a_bundle_that_is_registered_is_released_as_the_version_it_has(bundles, tmp_path):
    ctx = Context.open(home=tmp_path / ".fairlead")
    register(bundles / "baseline", name="digits", alias="baseline", context=ctx)
    rows = load_dataset(bundles / "holdout.parquet", labels="label")
    outcome = release(bundles / "baseline", rows, name="digits", context=ctx)
    assert outcome.report.verdict == "done"
    (version,) = list_versions("digits", context=ctx)
    assert set(version.aliases) == {"baseline", "champion"}


def test_a_bundle_whose_own_comparison_is_broken_is_not_released(bundles, tmp_path):
    ctx = Context.open(home=tmp_path / ".fairlead")
    candidate = Bundle.open(bundles / "candidate")
    stored = candidate.comparison().model_copy(update={"drop": 0.5, "verdict": "broken"})
    broken = derive_bundle(
        candidate, tmp_path / "broken", made_by="quantization-for-inference", change="test",
        comparison=stored,
    )  # fmt: skip
    rows = load_dataset(bundles / "holdout.parquet", labels="label")
    refused = release(broken.path, rows, name="digits", context=ctx)
    assert refused.is_refused
    assert "accuracy drop of 0.5" in refused.report.summary
    gate = ComparisonGate(comparison="ignored")
    assert not release(broken.path, rows, name="digits", gate=gate, context=ctx).is_refused
