"""ONNX files on their way into a bundle."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fairlead.backends.datasets import save_dataset
from fairlead.backends.runners import open_runner
from fairlead.core.bundle import Bundle
from fairlead.core.dataset import Dataset
from fairlead.core.errors import DataError, ModelError
from fairlead.measure.quality import predict
from tests.backends.pack_models import IRIS_NAMES, iris, iris_data, iris_onnx, net, packed


def write(folder, model, name="model.onnx"):
    path = folder / name
    path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    return path


def test_a_classifier_with_labels_and_scores_is_recognised(tmp_path):
    outcome = packed(tmp_path, write(tmp_path, iris_onnx()), iris_data())
    manifest = outcome.noun.manifest
    assert (manifest.task, manifest.classes, manifest.kind) == ("classification", (0, 1, 2), "onnx")
    assert (manifest.prediction_output, manifest.score_output) == ("label", "probabilities")
    assert manifest.feature_columns == IRIS_NAMES
    assert outcome.noun.scores.primary.metric == "accuracy"
    assert outcome.noun.scores.primary.value > 0.9


def test_an_unchanged_file_keeps_its_bytes(tmp_path):
    path = write(tmp_path, iris_onnx())
    assert packed(tmp_path, path, iris_data()).noun.model_path.read_bytes() == path.read_bytes()


def test_the_bundle_opens_verified_and_predicts_the_same(tmp_path):
    bundle = Bundle.open(packed(tmp_path, write(tmp_path, iris_onnx()), iris_data()).noun.path)
    outputs = predict(open_runner(bundle), bundle.manifest, iris_data())
    assert np.mean(outputs["label"] == iris()[1]) == bundle.scores.primary.value


def test_evidence_is_stored_under_the_digest_of_the_bundle(tmp_path):
    outcome = packed(tmp_path, write(tmp_path, iris_onnx()), iris_data())
    assert {item.metric for item in outcome.evidence} >= {"accuracy", "macro_f1", "size_bytes"}
    assert {item.subject for item in outcome.evidence} == {outcome.noun.digest}


def test_zipmap_is_removed_and_its_classes_are_kept(tmp_path):
    import skl2onnx
    from sklearn.linear_model import LogisticRegression

    table, target = iris()
    names = np.array(["setosa", "versicolor", "virginica"])[target]
    model = LogisticRegression(max_iter=1000).fit(table, names)
    path = write(tmp_path, skl2onnx.to_onnx(model, table[:1]))
    bundle = packed(tmp_path, path, iris_data(labels=names.astype(object))).noun
    assert bundle.manifest.classes == ("setosa", "versicolor", "virginica")
    assert bundle.scores.primary.value > 0.9
    assert "ZipMap" in bundle.provenance.changes[0]


def test_a_net_with_one_table_of_scores_is_a_classifier(tmp_path):
    bundle = packed(tmp_path, write(tmp_path, net()), iris_data()).noun
    assert bundle.manifest.task == "classification"
    assert bundle.manifest.prediction_output == bundle.manifest.score_output == "out"


def test_a_net_with_one_number_is_a_regression_for_real_labels(tmp_path):
    path = write(tmp_path, net(n_outputs=1, last=None))
    bundle = packed(tmp_path, path, iris_data(labels=iris()[0][:, 0].astype(float))).noun
    assert bundle.manifest.task == "regression"
    assert [score.metric for score in bundle.scores.scores] == ["r2", "rmse", "mae"]


def test_a_sigmoid_with_labels_0_and_1_is_a_classifier(tmp_path):
    path = write(tmp_path, net(n_outputs=1, last="Sigmoid"))
    bundle = packed(tmp_path, path, iris_data(labels=(iris()[1] == 1).astype(int))).noun
    assert bundle.manifest.classes == (0, 1)
    assert "roc_auc" in {score.metric for score in bundle.scores.scores}


def test_without_labels_there_are_no_scores_and_a_warning(tmp_path):
    data = Dataset(iris_data().columns, source="rows")
    outcome = packed(tmp_path, write(tmp_path, iris_onnx()), data)
    assert outcome.noun.scores.primary is None
    assert any(finding.level == "warning" for finding in outcome.report.findings)


def test_external_data_is_taken_in(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    path = source / "big.onnx"
    onnx.save_model(
        net(), str(path), save_as_external_data=True, location="weights.bin", size_threshold=0
    )
    bundle = packed(tmp_path, path, iris_data()).noun
    (source / "weights.bin").unlink()
    assert open_runner(bundle).run({"x": iris()[0][:2]})["out"].shape == (2, 3)


def test_lost_external_data_is_an_error(tmp_path):
    path = tmp_path / "big.onnx"
    onnx.save_model(
        net(), str(path), save_as_external_data=True, location="weights.bin", size_threshold=0
    )
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(ModelError, match="not a valid ONNX model"):
        packed(tmp_path, path, iris_data())


@pytest.mark.parametrize("content", [b"\x00\x01garbage" * 40, b"PK\x03\x04", b"hello world"])
def test_garbage_is_an_error_and_leaves_nothing(tmp_path, content):
    with pytest.raises(ModelError):
        packed(tmp_path, write(tmp_path, content), iris_data())
    assert not (tmp_path / "bundle").exists()


def test_a_truncated_model_is_an_error(tmp_path):
    with pytest.raises(ModelError):
        packed(tmp_path, write(tmp_path, iris_onnx()[:-200]), iris_data())


def test_a_fixed_batch_is_freed_when_the_graph_allows_it(tmp_path):
    bundle = packed(tmp_path, write(tmp_path, net(batch=1)), iris_data()).noun
    assert bundle.signature.inputs[0].shape == (-1, 4)
    assert open_runner(bundle).run({"x": iris()[0][:5]})["out"].shape == (5, 3)


def test_a_fixed_batch_that_the_graph_needs_is_kept(tmp_path):
    shape = numpy_helper.from_array(np.array([1, 4], np.int64), "shape")
    graph = helper.make_graph(
        [
            helper.make_node("Reshape", ["x", "shape"], ["y"]),
            helper.make_node("Softmax", ["y"], ["out"]),
        ],
        "fixed",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [1, 4])],
        [shape],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    bundle = packed(tmp_path, write(tmp_path, model), iris_data()).noun
    assert bundle.signature.inputs[0].shape == (1, 4)
    assert bundle.scores.primary.sample_size == 150


def test_too_many_numeric_columns_say_how_many(tmp_path):
    data = iris_data(weight=np.ones(150), height=np.ones(150))
    with pytest.raises(DataError, match=r"6 values per row in 6 numeric columns.*takes 4"):
        packed(tmp_path, write(tmp_path, iris_onnx()), data)


def test_named_features_leave_the_other_columns_out(tmp_path):
    data = iris_data(weight=np.ones(150), height=np.ones(150))
    bundle = packed(tmp_path, write(tmp_path, iris_onnx()), data, features=IRIS_NAMES).noun
    assert bundle.manifest.feature_columns == IRIS_NAMES


def test_identifiers_dates_and_text_are_left_out(tmp_path):
    more = {
        "customer_id": np.arange(150),
        "day": np.arange(150).astype("datetime64[D]").astype("datetime64[us]"),
        "note": np.array(["x", None, "z"] * 50, dtype=object),
    }
    outcome = packed(tmp_path, write(tmp_path, iris_onnx()), iris_data(**more))
    assert outcome.noun.manifest.feature_columns == IRIS_NAMES
    assert any("customer_id" in finding.text for finding in outcome.report.findings)


def test_missing_values_are_told(tmp_path):
    columns = dict(iris_data().columns)
    columns["petal_width"] = columns["petal_width"].copy()
    columns["petal_width"][:4] = np.nan
    data = Dataset(columns, iris()[0][:, 0].astype(float), "y", "rows")
    outcome = packed(tmp_path, write(tmp_path, net(n_outputs=1, last=None)), data)
    assert any("4 of 150 rows" in finding.text for finding in outcome.report.findings)
    assert np.isfinite(outcome.noun.scores.primary.value)
    assert outcome.noun.scores.primary.sample_size == 146


def test_labels_of_another_kind_are_refused(tmp_path):
    labels = np.array(["True", "False", "True"] * 50, dtype=object)
    with pytest.raises(DataError, match=r"'True'.*has 3 scores per row"):
        packed(tmp_path, write(tmp_path, iris_onnx()), iris_data(labels=labels))


def test_labels_that_the_model_does_not_know_are_refused(tmp_path):
    with pytest.raises(DataError, match="-1"):
        packed(tmp_path, write(tmp_path, iris_onnx()), iris_data(labels=iris()[1] - 1))


def test_a_bundle_is_packed_again_with_new_rows(tmp_path):
    first = packed(tmp_path, write(tmp_path, iris_onnx()), iris_data()).noun
    rows = save_dataset(iris_data().take(slice(0, 60)), tmp_path / "new.parquet")
    second = packed(tmp_path, first.path, rows, labels="label", out=tmp_path / "second").noun
    assert second.provenance.parent_digest == first.digest
    assert second.scores.primary.sample_size == 60
    assert second.manifest.feature_columns == IRIS_NAMES


def test_an_image_model_takes_flat_columns(tmp_path):
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["x"], ["z"]),
            helper.make_node("Softmax", ["z"], ["out"]),
        ],
        "image",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1, 2, 2])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["n", 4])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    bundle = packed(tmp_path, write(tmp_path, model), iris_data()).noun
    assert bundle.manifest.feature_columns == IRIS_NAMES
    assert {c.name for c in bundle.profile().columns if c.role == "input"} == set(IRIS_NAMES)
