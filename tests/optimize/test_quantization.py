import numpy as np
import pytest

from fairlead.backends.onnxruntime import OnnxRunner
from fairlead.core.bundle import Bundle, Scores
from fairlead.core.dataset import Dataset
from fairlead.core.errors import ConfigError, ConflictError, DataError
from fairlead.optimize.quantization import CARD, QuantizationConfig, quantize
from tests.optimize import zoo

QUICK = {"time_limit_s": 0.2, "method": "dynamic-int8"}


def config(**settings) -> QuantizationConfig:
    return QuantizationConfig.parse({**QUICK, **settings})


def measure(outcome, name: str):
    return next(item for item in outcome.report.measures if item.name == name)


def test_a_dense_classifier_becomes_smaller_and_stays_as_good(digits_bundle, tmp_path) -> None:
    outcome = quantize(digits_bundle, zoo.digits_dataset(), config(), out=tmp_path / "q")
    assert outcome.report.verdict == "done"
    derived = Bundle.open(tmp_path / "q")
    assert derived.digest == outcome.noun.digest != digits_bundle.digest
    assert derived.size_bytes < 0.5 * digits_bundle.size_bytes
    assert derived.provenance.parent_digest == digits_bundle.digest
    assert "dynamic-int8" in derived.provenance.changes[-1]
    assert "onnxruntime" in derived.provenance.packages
    assert measure(outcome, "accuracy_drop_ratio").value <= 0.01
    assert derived.scores.primary is not None
    assert derived.scores.primary.metric == "accuracy"
    assert derived.scores.primary.value > 0.9
    assert derived.scores.data_digest == zoo.digits_dataset().digest


def test_the_numbers_are_those_of_the_models(digits_bundle, tmp_path) -> None:
    data = zoo.digits_dataset()
    outcome = quantize(digits_bundle, data, config(), out=tmp_path / "q")
    rows = zoo.digits()[0][1200:]
    answers = []
    for path in (digits_bundle.model_path, outcome.noun.model_path):
        runner = OnnxRunner(path)
        name = digits_bundle.manifest.prediction_output
        parts = [
            runner.run({runner.signature.inputs[0].name: rows[i : i + 32]})[name]
            for i in range(0, len(rows), 32)
        ]
        answers.append(np.concatenate(parts) == data.labels)
    expected = answers[0].mean() - answers[1].mean()
    assert measure(outcome, "accuracy_drop_ratio").value == pytest.approx(expected)
    assert measure(outcome, "size_bytes").value == outcome.noun.model_path.stat().st_size
    metrics = {item.metric: item for item in outcome.evidence}
    assert {
        "size_bytes", "speedup_ratio", "latency_p50_ms", "latency_p99_ms", "throughput_rps",
        "accuracy_drop_ratio",
    } == set(metrics)  # fmt: skip
    assert metrics["size_bytes"].subject == outcome.noun.digest
    assert metrics["speedup_ratio"].skill == CARD.id
    low, high = metrics["speedup_ratio"].ci_low, metrics["speedup_ratio"].ci_high
    assert low is not None
    assert high is not None
    assert 0 < low <= metrics["speedup_ratio"].value <= high


def test_a_forest_has_nothing_to_quantize_and_is_kept(forest_bundle, tmp_path) -> None:
    outcome = quantize(forest_bundle, zoo.digits_dataset(), config(), out=tmp_path / "q")
    assert outcome.report.verdict == "kept"
    assert "no fp32 weights" in outcome.report.summary
    assert Bundle.open(tmp_path / "q").digest == forest_bundle.digest


def test_a_model_that_eight_bits_destroy_is_refused(outlier_bundle, tmp_path) -> None:
    outcome = quantize(outlier_bundle, zoo.digits_dataset(), config(), out=tmp_path / "q")
    assert outcome.is_refused
    assert outcome.noun is outlier_bundle
    assert list(tmp_path.iterdir()) == []
    assert "above the budget of 0.01" in outcome.report.summary
    assert measure(outcome, "accuracy_drop_ratio").value > 0.5
    assert all(item.labels["shipped"] == "no" for item in outcome.evidence)


def test_the_budget_is_the_users(outlier_bundle, tmp_path) -> None:
    outcome = quantize(
        outlier_bundle, zoo.digits_dataset(), config(max_drop=1.0), out=tmp_path / "q"
    )
    assert outcome.report.verdict != "refused"


def test_proof_can_be_demanded(digits_bundle, tmp_path) -> None:
    few = zoo.digits_dataset(1200, 1230)
    loose = quantize(digits_bundle, few, config(), out=tmp_path / "loose")
    strict = quantize(digits_bundle, few, config(allow_unproven=False), out=tmp_path / "strict")
    assert loose.report.verdict == "done"
    assert any(finding.level == "warning" for finding in loose.report.findings)
    assert strict.is_refused
    assert "cannot be ruled out" in strict.report.summary


def test_only_speed_or_size_can_be_asked_for(digits_bundle, tmp_path) -> None:
    sized = quantize(
        digits_bundle, zoo.digits_dataset(), config(goal="size"), out=tmp_path / "size"
    )
    assert sized.report.verdict == "done"
    fast = quantize(
        digits_bundle, zoo.digits_dataset(), config(goal="speed"), out=tmp_path / "speed"
    )
    is_faster = measure(fast, "speedup_ratio").ci_low > 1
    assert fast.report.verdict == ("done" if is_faster else "kept")


def test_a_regression_is_judged_by_the_growth_of_its_error(pack_bundle, tmp_path) -> None:
    model, data = zoo.diabetes_mlp()
    outcome = quantize(pack_bundle(model, data), data, config(max_drop=0.05), out=tmp_path / "q")
    assert outcome.report.verdict == "done"
    assert abs(measure(outcome, "error_increase_ratio").value) < 0.05


@pytest.mark.parametrize(
    "model",
    [
        zoo.dense(last=None),
        zoo.dense(operator="MatMul", last=None),
        zoo.dense(opset=9, ir_version=4, last=None),
        zoo.dense(opset=21, ir_version=10, last=None),
        zoo.dense(batch=1, last=None),
        zoo.dense(batch=7, last=None),
    ],
    ids=["gemm", "matmul", "opset-9", "opset-21", "batch-1", "batch-7"],
)
def test_dense_models_of_all_kinds_without_labels(model, pack_bundle, tmp_path) -> None:
    data = zoo.rows_for_dense()
    outcome = quantize(pack_bundle(model, data), data, config(max_drop=0.02), out=tmp_path / "q")
    assert outcome.report.verdict == "done"
    assert measure(outcome, "output_deviation_ratio").value < 0.02
    assert Bundle.open(tmp_path / "q").scores == Scores()


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_precisions_are_kept(dtype, pack_bundle, tmp_path) -> None:
    data = zoo.rows_for_dense()
    bundle = pack_bundle(zoo.dense(dtype=dtype, last=None), data)
    outcome = quantize(bundle, data, config(), out=tmp_path / "q")
    assert outcome.report.verdict == "kept"


def test_external_data_ends_up_inside(pack_bundle, tmp_path) -> None:
    data = zoo.rows_for_dense()
    bundle = pack_bundle(zoo.dense(last=None), data, external=True)
    outcome = quantize(bundle, data, config(max_drop=0.02), out=tmp_path / "q")
    assert outcome.report.verdict == "done"
    assert not list(outcome.noun.path.rglob("*.data"))
    assert outcome.noun.size_bytes < bundle.size_bytes


def test_an_embedding_without_labels_is_compared_with_itself(pack_bundle, tmp_path) -> None:
    data = zoo.token_rows()
    outcome = quantize(
        pack_bundle(zoo.embedding(), data), data, config(max_drop=0.05), out=tmp_path / "q"
    )
    assert outcome.report.verdict == "done"
    assert outcome.report.details["budget"]["metric"] == "output_deviation"


def test_a_convolutional_model(pack_bundle, tmp_path) -> None:
    data = zoo.digits_dataset(1200, 1400)
    outcome = quantize(
        pack_bundle(zoo.convolution(), data), data, config(max_drop=0.05), out=tmp_path / "q"
    )
    assert outcome.report.verdict == "done"
    assert "onv" in outcome.report.details["change"]


def test_missing_labels_are_an_error(digits_bundle, tmp_path) -> None:
    rows = zoo.digits_dataset()
    labels = rows.labels.astype(np.float64)
    labels[3] = np.nan
    data = Dataset(rows.columns, labels, "label", "rows")
    with pytest.raises(DataError, match="1 of 597 labels are missing"):
        quantize(digits_bundle, data, config(), out=tmp_path / "q")
    assert list(tmp_path.iterdir()) == []


def test_a_taken_place_and_a_wrong_setting(digits_bundle, tmp_path) -> None:
    (tmp_path / "q").mkdir()
    (tmp_path / "q" / "mine").touch()
    with pytest.raises(ConflictError):
        quantize(digits_bundle, zoo.digits_dataset(), config(), out=tmp_path / "q")
    assert (tmp_path / "q" / "mine").exists()
    with pytest.raises(ConfigError, match="max_drop"):
        QuantizationConfig.parse({"max_drop": 2})
    with pytest.raises(ConfigError, match="precision"):
        QuantizationConfig.parse({"precision": "int4"})


def test_the_rows_that_are_judged_can_be_limited(digits_bundle, tmp_path) -> None:
    outcome = quantize(
        digits_bundle, zoo.digits_dataset(), config(max_rows=100), out=tmp_path / "q"
    )
    assert outcome.report.details["budget"]["n_rows"] == 100
