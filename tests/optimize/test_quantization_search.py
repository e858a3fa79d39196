"""Traps and promises of the search: each ends in the right decision or a clear error."""

import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from fairlead.backends.onnxruntime import OnnxRunner
from fairlead.core.bundle import Bundle
from fairlead.core.dataset import Dataset
from fairlead.core.errors import ConfigError, DataError, NotFoundError
from fairlead.core.ports import Array
from fairlead.optimize.quantization import QuantizationConfig, quantize
from tests.optimize import zoo

QUICK = {"time_limit_s": 0.3, "runtime": "onnxruntime"}
METHODS = ("dynamic-int8", "static-int8", "smoothquant", "weight-int8", "weight-int4")


def config(**settings) -> QuantizationConfig:
    return QuantizationConfig.parse({**QUICK, **settings})


def measure(outcome, name: str):
    return next(item for item in outcome.report.measures if item.name == name)


def operators(bundle: Bundle) -> list[str]:
    return [node.op_type for node in onnx.load(bundle.model_path).graph.node]


@pytest.fixture(scope="module")
def fragile(pack_bundle) -> tuple[Bundle, Dataset]:
    """A network with one layer that must stay float: a huge number stands beside small ones."""
    rng = np.random.default_rng(0)
    wide = rng.normal(0, 1 / 16, (256, 256)).astype(np.float32)
    weights = {
        "a": rng.normal(0, 0.25, (16, 256)).astype(np.float32),
        "b": wide,
        "c": rng.normal(0, 1 / 16, (256, 256)).astype(np.float32),
        "d": rng.normal(0, 1 / 16, (256, 256)).astype(np.float32),
        "offset": np.r_[np.full(1, 4000.0), np.zeros(255)].astype(np.float32),
        "e": np.concatenate([np.full((1, 16), 1e-6), rng.normal(0, 0.06, (255, 16))]).astype(
            np.float32
        ),
    }
    nodes, current = [], "x"
    for name in "abcd":
        nodes.append(helper.make_node("MatMul", [current, name], [f"m{name}"], f"dense-{name}"))
        nodes.append(helper.make_node("Tanh", [f"m{name}"], [f"t{name}"]))
        current = f"t{name}"
    nodes.append(helper.make_node("Add", [current, "offset"], ["huge"]))
    nodes.append(helper.make_node("MatMul", ["huge", "e"], ["y"], "fragile"))
    model = zoo.network(
        nodes,
        weights,
        inputs=[("x", TensorProto.FLOAT, ["n", 16])],
        outputs=[("y", TensorProto.FLOAT, ["n", 16])],
    )
    data = zoo.rows_for_dense(400)
    return pack_bundle(model, data), data


@pytest.mark.parametrize("method", ["static-int8", "auto"])
def test_one_layer_that_must_stay_float_stays_float(fragile, method, tmp_path) -> None:
    bundle, data = fragile
    settings = {"method": method, "max_drop": 0.005, "goal": "size"}
    whole = quantize(
        bundle, data, config(method="static-int8", max_drop=0.005, allow_mixed=False),
        out=tmp_path / "whole",
    )  # fmt: skip
    assert whole.is_refused
    outcome = quantize(bundle, data, config(**settings), out=tmp_path / "q")
    assert outcome.report.verdict == "done"
    assert measure(outcome, "output_deviation_ratio").value <= 0.005
    assert measure(outcome, "evaluations").value <= 4
    if method == "static-int8":
        assert "fragile" in outcome.report.details["float_layers"]
        assert len(outcome.report.details["float_layers"]) < 5
        assert "QuantizeLinear" in operators(outcome.noun)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_keeps_a_dense_classifier_good(digits_bundle, method, tmp_path) -> None:
    settings = config(method=method, max_drop=0.03, goal="size")
    outcome = quantize(digits_bundle, zoo.digits_dataset(), settings, out=tmp_path / "q")
    assert outcome.report.verdict == "done", outcome.report.summary
    assert outcome.report.details["method"] == method
    assert outcome.noun.size_bytes < 0.6 * digits_bundle.size_bytes
    runner = OnnxRunner(outcome.noun.model_path)
    rows, labels = zoo.digits()
    name = digits_bundle.manifest.prediction_output
    answers = runner.run({runner.signature.inputs[0].name: rows[1200:]})[name]
    assert (answers == labels[1200:]).mean() > 0.9


@pytest.mark.parametrize("rounding", ["rtn", "hqq", "gptq"])
def test_weights_of_four_bits_by_three_roundings(pack_bundle, rounding, tmp_path) -> None:
    data = zoo.rows_for_dense(300)
    bundle = pack_bundle(zoo.dense(sizes=(16, 128, 128, 8), last=None), data)
    settings = config(method="weight-int4", rounding=rounding, block_size=16, max_drop=0.1)
    outcome = quantize(bundle, data, settings, out=tmp_path / "q")
    assert outcome.report.verdict == "done"
    assert "MatMulNBits" in operators(outcome.noun)
    assert rounding in outcome.report.details["change"]


@pytest.mark.parametrize("ranges", ["minmax", "entropy", "percentile", "moving-average"])
def test_static_ranges_by_four_methods_on_convolutions(pack_bundle, ranges, tmp_path) -> None:
    data = zoo.digits_dataset(1200, 1500)
    bundle = pack_bundle(zoo.convolution(), data)
    settings = config(
        method="static-int8", calibration_method=ranges, max_drop=0.2, goal="size",
    )  # fmt: skip
    outcome = quantize(bundle, data, settings, out=tmp_path / "q")
    assert outcome.report.verdict == "done"
    assert ranges in outcome.report.details["change"]
    assert operators(outcome.noun).count("QuantizeLinear") >= 2


def test_dynamic_convolutions_that_are_slower_are_not_taken(pack_bundle, tmp_path) -> None:
    data = zoo.digits_dataset(1200, 1500)
    bundle = pack_bundle(zoo.convolution(), data)
    settings = config(goal="speed", max_drop=0.05)
    outcome = quantize(bundle, data, settings, out=tmp_path / "q")
    if outcome.report.verdict == "done":
        assert measure(outcome, "speedup_ratio").ci_low > 1
    else:
        assert outcome.report.verdict == "kept"
        assert Bundle.open(tmp_path / "q").digest == bundle.digest
        assert measure(outcome, "speedup_ratio").value > 0


def test_a_budget_of_zero_takes_only_what_changes_no_answer(digits_bundle, tmp_path) -> None:
    settings = config(max_drop=0.0)
    outcome = quantize(digits_bundle, zoo.digits_dataset(), settings, out=tmp_path / "q")
    if outcome.report.verdict == "done":
        assert outcome.report.details["budget"]["n_worse"] == 0
    assert outcome.report.details["method"] in ("fp16", "bf16", "weight-int8", "dynamic-int8",
                                                "static-int8", "smoothquant")  # fmt: skip


def test_a_budget_of_zero_refuses_numbers_that_moved(pack_bundle, tmp_path) -> None:
    data = zoo.rows_for_dense()
    bundle = pack_bundle(zoo.dense(last=None), data)
    settings = config(max_drop=0.0, method="static-int8")
    outcome = quantize(bundle, data, settings, out=tmp_path / "q")
    assert outcome.is_refused
    assert list(tmp_path.iterdir()) == []


def test_calibration_on_other_data_warns_and_the_budget_still_holds(
    digits_bundle, tmp_path
) -> None:
    rows = zoo.digits_dataset()
    dark = Dataset(
        {name: array * 0.02 for name, array in rows.columns.items()}, rows.labels, "label", "dark"
    )
    settings = config(method="static-int8", max_drop=0.01, goal="size", allow_mixed=False)
    outcome = quantize(digits_bundle, rows, settings, out=tmp_path / "q", calibration=dark)
    assert any("unlike the judged rows" in item.text for item in outcome.report.findings)
    assert outcome.is_refused
    own = quantize(
        digits_bundle, rows, config(method="static-int8", max_drop=0.03, goal="size"),
        out=tmp_path / "own",
    )  # fmt: skip
    assert own.report.verdict == "done"
    assert not any("unlike" in item.text for item in own.report.findings)


def test_calibration_rows_that_are_judged_too_are_named(digits_bundle, tmp_path) -> None:
    rows = zoo.digits_dataset()
    settings = config(method="static-int8", max_drop=0.05, allow_mixed=False)
    outcome = quantize(digits_bundle, rows, settings, out=tmp_path / "q", calibration=rows)
    assert any("calibration rows too" in item.text for item in outcome.report.findings)


def broken_metric(outputs: dict[str, Array], labels: Array | None) -> float:
    return float("nan")


def failing_metric(outputs: dict[str, Array], labels: Array | None) -> float:
    raise KeyError("logits")


def per_row_metric(outputs: dict[str, Array], labels: Array) -> Array:
    guess = next(array for array in outputs.values() if array.ndim == 1)
    return (guess == labels).astype(float)


def whole_metric(outputs: dict[str, Array], labels: Array) -> float:
    return float(per_row_metric(outputs, labels).mean())


@pytest.mark.parametrize(
    ("name", "text"), [("broken_metric", "nan"), ("failing_metric", "KeyError")]
)
def test_a_metric_that_cannot_be_computed_is_an_error(digits_bundle, name, text, tmp_path) -> None:
    settings = config(metric=f"{__name__}:{name}")
    with pytest.raises(DataError, match=text):
        quantize(digits_bundle, zoo.digits_dataset(), settings, out=tmp_path / "q")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["per_row_metric", "whole_metric"])
def test_the_users_metric_spends_the_budget(digits_bundle, name, tmp_path) -> None:
    settings = config(metric=f"{__name__}:{name}", max_drop=0.05)
    outcome = quantize(digits_bundle, zoo.digits_dataset(), settings, out=tmp_path / "q")
    assert outcome.report.verdict == "done"
    assert outcome.report.details["budget"]["metric"] == "metric_drop"
    assert measure(outcome, "metric_drop_ratio").value <= 0.05


def test_unknown_metrics_are_errors(digits_bundle, tmp_path) -> None:
    data = zoo.digits_dataset()
    with pytest.raises(ConfigError, match="no metric `auc`"):
        quantize(digits_bundle, data, config(metric="auc"), out=tmp_path / "q")
    assert __name__ in sys.modules
    with pytest.raises(NotFoundError, match="nothing_here"):
        quantize(digits_bundle, data, config(metric=f"{__name__}:nothing_here"), out=tmp_path / "q")


def test_neighbours_can_be_what_is_judged(pack_bundle, tmp_path) -> None:
    data = zoo.token_rows()
    bundle = pack_bundle(zoo.embedding(), data)
    settings = config(metric="neighbours", max_drop=0.2)
    outcome = quantize(bundle, data, settings, out=tmp_path / "q")
    assert outcome.report.details["budget"]["metric"] == "neighbours_changed"
    assert measure(outcome, "neighbours_changed_ratio").value <= 0.2


def test_the_bundle_keeps_the_comparison(digits_bundle, tmp_path) -> None:
    settings = config(method="static-int8", max_drop=0.03, goal="size")
    outcome = quantize(digits_bundle, zoo.digits_dataset(), settings, out=tmp_path / "q")
    kept = Bundle.open(tmp_path / "q").comparison()
    assert kept is not None
    assert kept.parent_digest == digits_bundle.digest
    assert kept.drop == pytest.approx(measure(outcome, "accuracy_drop_ratio").value)
    assert {edge.kind for edge in kept.edges} >= {"zeros", "minima", "maxima"}
    assert kept.layers
    assert kept.layers[0].sqnr_db <= kept.layers[-1].sqnr_db
    assert kept.outputs
    assert digits_bundle.comparison() is None


def test_weights_inside_control_flow_are_left(pack_bundle, tmp_path) -> None:
    data = zoo.rows_for_dense()
    bundle = pack_bundle(branching(), data)
    outcome = quantize(bundle, data, config(max_drop=0.02), out=tmp_path / "q")
    assert outcome.report.verdict == "kept"
    assert "control flow (If)" in outcome.report.summary


def branching() -> onnx.ModelProto:
    weight = onnx.numpy_helper.from_array(np.eye(16, dtype=np.float32) * 2, "w")
    body = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["one"])],
        "then", [], [helper.make_tensor_value_info("one", TensorProto.FLOAT, None)], [weight],
    )  # fmt: skip
    other = helper.make_graph(
        [helper.make_node("Neg", ["x"], ["two"])],
        "else", [], [helper.make_tensor_value_info("two", TensorProto.FLOAT, None)],
    )  # fmt: skip
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
        helper.make_node("Greater", ["sum", "zero"], ["is_positive"]),
        helper.make_node("If", ["is_positive"], ["y"], then_branch=body, else_branch=other),
    ]
    return zoo.network(
        nodes,
        {"zero": np.array(0, np.float32)},
        inputs=[("x", TensorProto.FLOAT, ["n", 16])],
        outputs=[("y", TensorProto.FLOAT, ["n", 16])],
    )


def test_huge_numbers_do_not_become_infinite_in_half_precision(pack_bundle, tmp_path) -> None:
    data = zoo.rows_for_dense(100)
    weights = {"w": (np.eye(16) * 1e5).astype(np.float32)}
    model = zoo.network(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        weights,
        inputs=[("x", TensorProto.FLOAT, ["n", 16])],
        outputs=[("y", TensorProto.FLOAT, ["n", 16])],
    )
    bundle = pack_bundle(model, data)
    outcome = quantize(bundle, data, config(method="fp16"), out=tmp_path / "q")
    assert outcome.report.verdict == "kept"
