import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from fairlead.backends.dense_student import fit_student, munge, student_model
from fairlead.backends.onnx_low_rank import factorise, find_factorisations, replace_matrices
from fairlead.backends.onnx_trees import (
    choose_trees,
    find_ensemble,
    fitted_weights,
    keep_trees,
    tree_answers,
)
from fairlead.backends.onnxruntime import OnnxRunner
from fairlead.core.bundle import Bundle
from fairlead.core.dataset import Dataset
from fairlead.core.errors import ConfigError, DataError, UntrustedError, UsageError
from fairlead.core.signature import Signature, TensorSpec
from fairlead.optimize.compression import CompressionConfig, compress
from tests.optimize import zoo


def config(**changes) -> CompressionConfig:
    return CompressionConfig.parse({"time_limit_s": 0.2, **changes})


def low_rank_dense(operator: str = "Gemm", dtype: type = np.float32) -> onnx.ModelProto:
    """Return a dense network whose middle matrix has rank 3."""
    model = zoo.dense(sizes=(16, 40, 40, 4), operator=operator, last=None, dtype=dtype)
    rng = np.random.default_rng(5)
    matrix = (rng.normal(size=(40, 3)) @ rng.normal(size=(3, 40)) / 8).astype(dtype)
    for tensor in model.graph.initializer:
        if tensor.name == "w1":
            tensor.CopyFrom(numpy_helper.from_array(matrix, "w1"))
    return model


def feeds(dtype: type = np.float32) -> dict[str, np.ndarray]:
    return {"x": np.stack(list(zoo.rows_for_dense().columns.values()), axis=1).astype(dtype)}


def test_a_classifier_gets_fewer_weights_within_the_budget(digits_bundle, tmp_path) -> None:
    outcome = compress(
        digits_bundle,
        zoo.digits_dataset(),
        config(max_drop=0.03, method="low-rank"),
        out=tmp_path / "c",
    )
    assert outcome.report.verdict == "done"
    derived = Bundle.open(tmp_path / "c")
    assert derived.size_bytes < 0.8 * digits_bundle.size_bytes
    weights = next(m for m in outcome.report.measures if m.name == "matrix_weights")
    assert weights.value < 0.8 * weights.baseline
    assert outcome.report.details["budget"]["value"] <= 0.03
    assert derived.scores.primary is not None
    assert derived.scores.primary.sample_size == 299


def test_the_decision_is_made_on_rows_that_the_search_has_not_seen(digits_bundle, tmp_path) -> None:
    data = zoo.digits_dataset()
    outcome = compress(
        digits_bundle, data, config(max_drop=0.03, method="low-rank"), out=tmp_path / "c"
    )
    _, confirmed = data.split(0.5, seed=0)
    assert outcome.report.details["data_digest"] == confirmed.digest


def test_few_evaluations_are_enough(digits_bundle, tmp_path) -> None:
    outcome = compress(
        digits_bundle,
        zoo.digits_dataset(),
        config(max_evaluations=2, method="low-rank"),
        out=tmp_path / "c",
    )
    evaluations = next(m for m in outcome.report.measures if m.name == "evaluations")
    assert evaluations.value <= 2


def test_a_forest_is_kept(forest_bundle, tmp_path) -> None:
    outcome = compress(
        forest_bundle, zoo.digits_dataset(), config(method="low-rank"), out=tmp_path / "c"
    )
    assert outcome.report.verdict == "kept"
    assert Bundle.open(tmp_path / "c").digest == forest_bundle.digest


def test_a_quantized_model_is_sent_back_to_its_floats(bundles, tmp_path) -> None:
    quantized = Bundle.open(bundles / "candidate")
    outcome = compress(
        quantized, zoo.digits_dataset(), config(method="low-rank"), out=tmp_path / "c"
    )
    assert outcome.report.verdict == "kept"
    assert "quantized to integers" in outcome.report.summary
    assert "compress the original first" in (outcome.report.findings[0].advice or "")


def test_small_matrices_are_left_alone(digits_bundle, tmp_path) -> None:
    outcome = compress(
        digits_bundle,
        zoo.digits_dataset(),
        config(min_weights=10**6, method="low-rank"),
        out=tmp_path / "c",
    )
    assert outcome.report.verdict == "kept"
    assert "1,000,000 or more weights" in outcome.report.summary


def test_full_rank_matrices_are_refused_under_a_tight_budget(pack_bundle, tmp_path) -> None:
    data = zoo.rows_for_dense()
    bundle = pack_bundle(zoo.dense(last=None), data)
    outcome = compress(
        bundle, data, config(max_drop=0.0001, min_weights=64, method="low-rank"), out=tmp_path / "c"
    )
    assert outcome.is_refused
    assert list(tmp_path.iterdir()) == []


def test_one_row_cannot_be_split(digits_bundle, tmp_path) -> None:
    with pytest.raises(DataError, match="cannot be cut"):
        compress(digits_bundle, zoo.digits_dataset(1200, 1201), config(), out=tmp_path / "c")


@pytest.mark.parametrize("operator", ["Gemm", "MatMul"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_matrix_of_low_rank_is_replaced_without_loss(operator: str, dtype: type) -> None:
    model = low_rank_dense(operator, dtype)
    found = find_factorisations(model, feeds(dtype), min_weights=1000)
    middle = next(item for item in found if item.name == "w1")
    assert middle.rank_for(1e-6) == 3
    before, after = (
        OnnxRunner(model.SerializeToString()),
        OnnxRunner(replace_matrices(model, found, {"w1": 3})),
    )
    one, two = before.run(feeds(dtype))["y"], after.run(feeds(dtype))["y"]
    np.testing.assert_allclose(one, two, atol=1e-4)


def test_a_matrix_that_something_else_needs_stays() -> None:
    model = low_rank_dense("MatMul")
    model.graph.output.append(
        onnx.helper.make_tensor_value_info("w1", onnx.TensorProto.FLOAT, [40, 40])
    )
    names = {item.name for item in find_factorisations(model, feeds(), min_weights=600)}
    assert names == {"w0"}


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 12), st.integers(2, 12), st.booleans(), st.integers(0, 10_000))
def test_all_ranks_together_give_the_matrix_back(
    n_in: int, n_out: int, is_transposed: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    matrix = rng.normal(size=(n_out, n_in) if is_transposed else (n_in, n_out))
    rows = rng.normal(size=(100, n_in))
    found = factorise("w", matrix, is_transposed, rows.T @ rows / 100)
    whole = found.left @ found.right
    np.testing.assert_allclose(whole, matrix.T if is_transposed else matrix, atol=1e-8)
    assert np.all(np.diff(found.lost) <= 1e-12)
    assert found.lost[0] == pytest.approx(1)


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 9), st.integers(0, 10_000))
def test_the_stated_loss_is_the_loss_on_the_rows(rank: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    matrix, rows = rng.normal(size=(10, 14)), rng.normal(size=(300, 10)) @ rng.normal(size=(10, 10))
    found = factorise("w", matrix, False, rows.T @ rows / 300)
    cut = found.left[:, :rank] @ found.right[:rank]
    exact = rows @ matrix
    lost = np.sum((exact - rows @ cut) ** 2) / np.sum(exact**2)
    assert lost == pytest.approx(found.lost[rank], rel=0.3, abs=0.01)


def test_inputs_that_were_seen_count_more_than_inputs_that_were_not() -> None:
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(20, 20))
    rows = rng.normal(size=(200, 2)) @ rng.normal(size=(2, 20))
    found = factorise("w", matrix, False, rows.T @ rows / 200)
    assert found.rank_for(0.05) == 2
    arbitrary = factorise("w", matrix, False, np.eye(20))
    assert arbitrary.rank_for(0.05) is None


def test_what_trains_needs_a_module(digits_bundle, tmp_path) -> None:
    with pytest.raises(ConfigError, match="none was given"):
        compress(digits_bundle, zoo.digits_dataset(), config(method="sparsity"), out=tmp_path / "c")


def test_the_users_code_runs_only_when_trusted(digits_bundle, tmp_path) -> None:
    from fairlead.api.optimizing import compress as by_name

    words = {"data": "rows.npz", "out": tmp_path / "c"}
    with pytest.raises(UntrustedError, match="runs your own code"):
        by_name(None, model_factory="a:b", train_data="a:c", **words)
    with pytest.raises(UsageError, match="neither was given"):
        by_name(None, **words)
    with pytest.raises(UsageError, match="both"):
        by_name(digits_bundle.path, model_factory="a:b", **words)
    with pytest.raises(UsageError, match="--train-data"):
        by_name(None, model_factory="a:b", trust=True, **words)


def test_a_metric_that_gives_nan_is_a_clear_error(digits_bundle, tmp_path) -> None:
    import sys
    import types

    sys.modules["nan_metrics"] = types.ModuleType("nan_metrics")
    sys.modules["nan_metrics"].score = lambda outputs, labels: float("nan")
    with pytest.raises(DataError, match="gives nan"):
        compress(
            digits_bundle, zoo.digits_dataset(), config(metric="nan_metrics:score"),
            out=tmp_path / "c",
        )  # fmt: skip
    del sys.modules["nan_metrics"]


def test_a_budget_of_nothing_lets_no_row_get_worse(digits_bundle, tmp_path) -> None:
    outcome = compress(digits_bundle, zoo.digits_dataset(), config(max_drop=0), out=tmp_path / "c")
    assert outcome.report.verdict in {"refused", "kept", "done"}
    if outcome.report.verdict == "done":
        assert outcome.report.details["budget"]["n_worse"] == 0


def test_a_forest_keeps_the_trees_that_stand_for_all(forest_bundle, tmp_path) -> None:
    outcome = compress(
        forest_bundle, zoo.digits_dataset(), config(max_drop=0.05, method="tree-selection"),
        out=tmp_path / "c",
    )  # fmt: skip
    assert outcome.report.verdict == "done"
    trees = next(m for m in outcome.report.measures if m.name == "trees")
    assert trees.value < trees.baseline == 20
    assert outcome.noun.size_bytes < forest_bundle.size_bytes
    scores = next(iter(outcome.noun.signature.outputs))
    assert scores.name == next(iter(forest_bundle.signature.outputs)).name


def test_a_budget_of_nothing_keeps_all_trees_and_every_answer(forest_bundle, tmp_path) -> None:
    rows = zoo.digits_dataset()
    outcome = compress(
        forest_bundle, rows, config(max_drop=0, method="tree-selection"), out=tmp_path / "c"
    )
    assert outcome.report.verdict == "done"
    trees = next(m for m in outcome.report.measures if m.name == "trees")
    assert trees.value == trees.baseline
    assert outcome.noun.size_bytes < 0.8 * forest_bundle.size_bytes
    table = np.stack(list(rows.columns.values()), 1).astype(np.float32)
    before, after = (OnnxRunner(one.model_path) for one in (forest_bundle, outcome.noun))
    name = before.signature.inputs[0].name
    for old, new in zip(
        before.run({name: table}).values(), after.run({name: table}).values(), strict=True
    ):
        np.testing.assert_array_equal(old, new)


def test_leaves_that_are_lean_already_leave_nothing_to_do(pack_bundle, tmp_path) -> None:
    model, rows = _boosted("regressor")
    data = Dataset({f"f{i}": rows[:, i] for i in range(6)}, None, None, "made")
    bundle = pack_bundle(model, data)
    outcome = compress(
        bundle, data, config(max_drop=0, method="tree-selection"), out=tmp_path / "c"
    )
    assert outcome.report.verdict == "kept"
    assert "lean already" in outcome.report.summary


def _boosted(kind: str):
    """Return boosted trees in ONNX and their rows, with missing values among them."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(600, 6)).astype(np.float32)
    rows[rng.random(rows.shape) < 0.1] = np.nan
    signal = np.nansum(rows[:, :3], axis=1)
    if kind == "regressor":
        from sklearn.ensemble import RandomForestRegressor

        model = RandomForestRegressor(30, max_depth=5, random_state=0).fit(rows, signal)
        from skl2onnx import to_onnx

        return to_onnx(model, rows[:1]), rows
    import xgboost
    from onnxmltools import convert_xgboost
    from onnxmltools.convert.common.data_types import FloatTensorType

    labels = (signal > 0).astype(int) + (signal > 1)
    model = xgboost.XGBClassifier(n_estimators=20, max_depth=3, n_jobs=1).fit(rows, labels)
    return convert_xgboost(model, initial_types=[("input", FloatTensorType([None, 6]))]), rows


@pytest.mark.parametrize("kind", ["regressor", "boosted"])
def test_all_trees_together_are_the_ensemble(kind: str) -> None:
    model, rows = _boosted(kind)
    ensemble = find_ensemble(model)
    answers = tree_answers(ensemble, rows)
    order = choose_trees(answers, is_average=ensemble.is_average)
    assert sorted(order.tolist()) == list(range(ensemble.n_trees))
    whole = keep_trees(model, ensemble, np.arange(ensemble.n_trees), np.ones(ensemble.n_trees))
    name = OnnxRunner(whole).signature.inputs[0].name
    before = OnnxRunner(model.SerializeToString()).run({name: rows})
    after = OnnxRunner(whole).run({name: rows})
    for key, values in before.items():
        if values.dtype.kind == "f":
            np.testing.assert_allclose(values, after[key], atol=1e-4)
    half = order[: ensemble.n_trees // 2]
    factors = fitted_weights(answers, half, is_average=ensemble.is_average)
    exact = answers.sum(axis=0)
    error = np.abs((answers[half] * factors[:, None, None]).sum(axis=0) - exact).mean()
    assert error < 0.5 * np.abs(exact - exact.mean(axis=0)).mean()


def test_a_dense_student_stands_in_for_another_model(pack_bundle, tmp_path) -> None:
    model, data = zoo.diabetes_mlp()
    bundle = pack_bundle(model, data)
    outcome = compress(
        bundle, data, config(max_drop=0.1, method="distillation"), out=tmp_path / "c"
    )
    assert outcome.report.verdict == "done"
    assert outcome.noun.size_bytes < 0.5 * bundle.size_bytes
    assert outcome.noun.signature == bundle.signature
    assert any("another model" in f.text for f in outcome.report.findings)


def test_a_student_answers_with_the_labels_of_its_teacher(forest_bundle, tmp_path) -> None:
    rows, labels = zoo.digits()
    columns = {f"pixel_{i}": rows[:1200, i] for i in range(64)}
    transfer = Dataset(columns, labels[:1200], "label", "digits")
    outcome = compress(
        forest_bundle, zoo.digits_dataset(),
        config(max_drop=0.1, method="distillation", epochs=15, hidden=[48]),
        transfer=transfer, out=tmp_path / "c",
    )  # fmt: skip
    assert outcome.report.verdict == "done"
    runner = OnnxRunner(outcome.noun.model_path)
    name = runner.signature.inputs[0].name
    answer = runner.run({name: rows[1200:1500]})
    label, scores = (answer[spec.name] for spec in runner.signature.outputs)
    assert label.dtype == np.int64
    np.testing.assert_allclose(scores.sum(axis=1), 1, atol=1e-4)
    assert np.mean(label == labels[1200:1500]) > 0.85
    runner.close()


def test_missing_values_reach_a_student_as_such() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(400, 3)).astype(np.float32)
    rows[::3, 1] = np.nan
    target = np.where(np.isnan(rows[:, 1]), 2.0, rows[:, 0])[:, None].astype(np.float32)
    student = fit_student(
        rows, target, (16,), loss="squared", epochs=60, learning_rate=0.01, seed=0
    )
    signature = Signature(
        inputs=(TensorSpec(name="x", dtype="float32", shape=(-1, 3)),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=(-1, 1)),),
    )
    model = student_model(
        student, signature, score_output="y", label_output=None, classes=None,
        handles_missing=True,
    )  # fmt: skip
    found = OnnxRunner(model).run({"x": rows})["y"]
    assert np.abs(found - target).mean() < 0.2


def test_made_rows_lie_among_the_given_ones() -> None:
    rows = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
    made = munge(rows, 3, seed=0)
    assert made.shape == (180, 4)
    assert all(set(made[:, i]) <= set(rows[:, i]) for i in range(4))
