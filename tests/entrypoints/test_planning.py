"""From a route to steps: what is added, in which order, with which gates."""

from __future__ import annotations

import pytest

from fairlead.api import plan
from fairlead.core.errors import DataError, ModelError, NotFoundError, PlanError, RefusedError


@pytest.fixture
def make(material):
    def run(text, **extra):
        given = {
            "model": str(material / "model.onnx"),
            "data": str(material / "holdout.parquet"),
            "labels": "label",
            **extra,
        }
        return plan(text, **given)

    return run


def test_a_rollout_gets_a_candidate_that_nobody_has_to_ask_for(make):
    made = make("I trained a model, now I need to put it in production", answers=["cloud"])
    assert [step.id for step in made.steps] == [
        "pack", "quantize", "tune", "serve", "roll-out", "monitor",
    ]  # fmt: skip
    gates = {step.id: step.gate for step in made.steps}
    assert (gates["quantize"], gates["tune"]) == ("keep", "keep")
    assert gates["roll-out"] == "stop"
    assert made.route == (
        "model-serving-patterns", "deployment-strategies", "production-monitoring-and-alerting",
    )  # fmt: skip


def test_what_the_route_names_stops_the_plan_when_it_is_refused(make):
    made = make("quantize my model and deploy it with a canary")
    gates = {step.id: step.gate for step in made.steps}
    assert gates["quantize"] == "stop"
    assert "tune" not in gates


def test_the_release_stands_after_every_step_that_changes_the_bundle(make):
    made = make("track experiments and automate retraining with ci/cd, then quantize my model")
    ids = [step.id for step in made.steps]
    assert ids.index("release") > ids.index("quantize")


def test_an_open_question_is_named_with_its_options(make):
    with pytest.raises(PlanError, match="one question is open") as caught:
        make("my model is too slow in production")
    assert "inference" in caught.value.hint


def test_a_neighbours_problem_makes_no_plan(make):
    with pytest.raises(RefusedError, match="training-optimization"):
        make("my training loss does not converge, which learning rate should I use")


def test_every_step_says_why_and_what_it_gives(make):
    made = make("deploy and monitor my model")
    assert all(step.why and step.gives for step in made.steps)


def test_a_missing_model_or_column_is_found_while_planning(make):
    with pytest.raises(NotFoundError):
        make("quantize my model", model="nowhere.onnx")
    with pytest.raises(DataError, match="no_such"):
        make("quantize my model", labels="no_such")


def test_trust_is_written_down_only_when_it_is_given(make):
    assert make("quantize my model", trust=True).steps[0].settings["trust"] is True
    assert "trust" not in make("quantize my model").steps[0].settings


def test_the_stream_reaches_the_monitoring_step(make, material):
    stream = str(material / "shifted.parquet")
    made = make("deploy and monitor my model", stream=stream)
    assert made.steps[-1].settings["stream"] == stream


@pytest.mark.parametrize(
    ("words", "rate"),
    [
        ("500 requests per second", 500.0),
        ("2k rps", 2000.0),
        ("1,500 req/s", 1500.0),
        ("12.5 queries a second", 12.5),
        ("3 replicas and 2 regions", 100.0),
    ],
)
def test_the_rate_in_the_words_is_the_rate_that_is_planned_for(make, words, rate):
    made = make(f"scale my model serving to {words}")
    scale = next(step for step in made.steps if step.id == "scale")
    assert scale.settings["target_rps"] == rate


def test_the_run_is_recorded_before_the_release(make):
    made = make("track experiments and automate retraining with ci/cd")
    assert [step.id for step in made.steps] == ["pack", "track", "release"]


def test_features_reach_the_step_that_packs(make):
    names = [f"pixel_{i}" for i in range(64)]
    made = make("quantize my model", features=names)
    assert made.steps[0].settings["features"] == names


def test_a_model_that_cannot_be_opened_makes_no_plan(make, material, tmp_path):
    broken = tmp_path / "broken.onnx"
    broken.write_bytes((material / "model.onnx").read_bytes()[:3000])

    with pytest.raises(ModelError, match="not a valid ONNX model") as caught:
        make("quantize my model", model=str(broken))

    assert caught.value.hint
