import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from fairlead.backends.onnx_low_rank import factorise, find_factorisations, replace_matrices
from fairlead.backends.onnxruntime import OnnxRunner
from fairlead.core.bundle import Bundle
from fairlead.core.errors import DataError
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
        digits_bundle, zoo.digits_dataset(), config(max_drop=0.03, method="low-rank"), out=tmp_path / "c"
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
    outcome = compress(digits_bundle, data, config(max_drop=0.03, method="low-rank"), out=tmp_path / "c")
    _, confirmed = data.split(0.5, seed=0)
    assert outcome.report.details["data_digest"] == confirmed.digest


def test_few_evaluations_are_enough(digits_bundle, tmp_path) -> None:
    outcome = compress(
        digits_bundle, zoo.digits_dataset(), config(max_evaluations=2, method="low-rank"), out=tmp_path / "c"
    )
    evaluations = next(m for m in outcome.report.measures if m.name == "evaluations")
    assert evaluations.value <= 2


def test_a_forest_is_kept(forest_bundle, tmp_path) -> None:
    outcome = compress(forest_bundle, zoo.digits_dataset(), config(method="low-rank"), out=tmp_path / "c")
    assert outcome.report.verdict == "kept"
    assert Bundle.open(tmp_path / "c").digest == forest_bundle.digest


def test_a_quantized_model_is_sent_back_to_its_floats(bundles, tmp_path) -> None:
    quantized = Bundle.open(bundles / "candidate")
    outcome = compress(quantized, zoo.digits_dataset(), config(method="low-rank"), out=tmp_path / "c")
    assert outcome.report.verdict == "kept"
    assert "quantized to integers" in outcome.report.summary
    assert "compress the original first" in (outcome.report.findings[0].advice or "")


def test_small_matrices_are_left_alone(digits_bundle, tmp_path) -> None:
    outcome = compress(
        digits_bundle, zoo.digits_dataset(), config(min_weights=10**6, method="low-rank"), out=tmp_path / "c"
    )
    assert outcome.report.verdict == "kept"
    assert "1,000,000 or more weights" in outcome.report.summary


def test_full_rank_matrices_are_refused_under_a_tight_budget(pack_bundle, tmp_path) -> None:
    data = zoo.rows_for_dense()
    bundle = pack_bundle(zoo.dense(last=None), data)
    outcome = compress(bundle, data, config(max_drop=0.0001, min_weights=64, method="low-rank"), out=tmp_path / "c")
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
