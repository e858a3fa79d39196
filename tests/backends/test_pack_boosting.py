"""XGBoost and LightGBM files on their way into a bundle."""

import numpy as np
import pytest

from fairlead.backends.runners import open_runner
from fairlead.core.bundle import Bundle
from fairlead.core.dataset import Dataset
from fairlead.core.errors import DataError, ModelError
from fairlead.measure.quality import predict
from tests.backends.pack_models import IRIS_NAMES, iris, iris_data, packed

lightgbm = pytest.importorskip("lightgbm")
xgboost = pytest.importorskip("xgboost")


def rows() -> np.ndarray:
    table = iris()[0].copy()
    table[::7, 2] = np.nan
    return table


def data(labels) -> Dataset:
    return Dataset({n: rows()[:, i] for i, n in enumerate(IRIS_NAMES)}, labels, "y", "iris")


def xgb_file(folder, objective, labels, *, suffix=".ubj", names=IRIS_NAMES, **more):
    settings = {"objective": objective, "max_depth": 3, "nthread": 1, **more}
    booster = xgboost.train(
        settings, xgboost.DMatrix(rows(), labels, feature_names=list(names) if names else None), 5
    )
    path = folder / f"model{suffix}"
    booster.save_model(path)
    return path


def lgb_file(folder, objective, labels, **more):
    settings = {"objective": objective, "verbose": -1, "num_threads": 1, **more}
    names = list(IRIS_NAMES)
    booster = lightgbm.train(settings, lightgbm.Dataset(rows(), labels, feature_name=names), 5)
    path = folder / "model.txt"
    booster.save_model(path)
    return path


CLASSES = iris()[1]
BINARY = (CLASSES == 1).astype(int)
REAL = iris()[0][:, 0].astype(float) * 3 + 50


@pytest.mark.parametrize(
    ("objective", "labels", "task", "more"),
    [
        ("binary:logistic", BINARY, "classification", {}),
        ("multi:softprob", CLASSES, "classification", {"num_class": 3}),
        ("multi:softmax", CLASSES, "classification", {"num_class": 3}),
        ("reg:squarederror", REAL, "regression", {}),
        ("reg:absoluteerror", REAL, "regression", {}),
        ("count:poisson", CLASSES, "regression", {}),
    ],
)
def test_xgboost_with_missing_values_becomes_onnx(tmp_path, objective, labels, task, more):
    outcome = packed(tmp_path, xgb_file(tmp_path, objective, labels, **more), data(labels))
    manifest = outcome.noun.manifest
    assert (manifest.kind, manifest.task) == ("onnx", task)
    assert manifest.feature_columns == IRIS_NAMES
    assert any(item.metric == "conversion_max_difference" for item in outcome.evidence)


def test_xgboost_as_json_without_names_takes_columns_in_order(tmp_path):
    path = xgb_file(tmp_path, "binary:logistic", BINARY, suffix=".json", names=None)
    bundle = packed(tmp_path, path, data(BINARY)).noun
    assert bundle.manifest.feature_columns == IRIS_NAMES


def test_features_are_found_by_name_in_any_order(tmp_path):
    path = xgb_file(tmp_path, "binary:logistic", BINARY)
    columns = {"extra": np.ones(150), **dict(reversed(data(BINARY).columns.items()))}
    bundle = packed(tmp_path, path, Dataset(columns, BINARY, "y", "rows")).noun
    assert bundle.manifest.feature_columns == IRIS_NAMES


def test_a_missing_feature_is_named(tmp_path):
    path = xgb_file(tmp_path, "binary:logistic", BINARY)
    columns = {n: a for n, a in data(BINARY).columns.items() if n != "petal_width"}
    with pytest.raises(DataError, match="petal_width"):
        packed(tmp_path, path, Dataset(columns, BINARY, "y", "rows"))


@pytest.mark.parametrize(
    ("objective", "labels", "task", "more"),
    [
        ("binary", BINARY, "classification", {}),
        ("multiclass", CLASSES, "classification", {"num_class": 3}),
        ("regression", REAL, "regression", {}),
        ("poisson", CLASSES, "regression", {}),
    ],
)
def test_lightgbm_with_missing_values_becomes_onnx(tmp_path, objective, labels, task, more):
    bundle = packed(tmp_path, lgb_file(tmp_path, objective, labels, **more), data(labels)).noun
    assert (bundle.manifest.kind, bundle.manifest.task) == ("onnx", task)
    assert all(spec.has_free_batch for spec in bundle.signature.outputs)


def test_a_graph_that_disagrees_is_refused_and_the_booster_kept(tmp_path):
    path = xgb_file(tmp_path, "reg:logistic", BINARY * 0.5)
    outcome = packed(tmp_path, path, data(BINARY * 0.5))
    bundle = Bundle.open(outcome.noun.path)
    assert (bundle.manifest.kind, bundle.manifest.needs_trust) == ("pyfunc", False)
    assert any("disagrees" in finding.text for finding in outcome.report.findings)
    outputs = predict(open_runner(bundle), bundle.manifest, data(None))
    booster = xgboost.Booster(model_file=path)
    expected = booster.predict(xgboost.DMatrix(rows(), feature_names=list(IRIS_NAMES)))
    assert np.allclose(outputs["prediction"], expected)


def test_a_lightgbm_objective_without_counterpart_is_kept(tmp_path):
    labels = BINARY * 0.5
    bundle = packed(tmp_path, lgb_file(tmp_path, "cross_entropy", labels), data(labels)).noun
    assert bundle.manifest.kind == "pyfunc"
    assert Bundle.open(bundle.path).manifest.model_file == "model.txt"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("model.ubj", b"\x00garbage" * 300),
        ("model.json", b'{"learner": 3}'),
        ("model.txt", b"tree\nversion=v4\nnothing\n"),
    ],
)
def test_garbage_is_an_error(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ModelError):
        packed(tmp_path, path, iris_data())
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("keep", [0.3, 0.9])
def test_a_truncated_file_is_an_error_and_crashes_nothing(tmp_path, keep):
    path = xgb_file(tmp_path, "binary:logistic", BINARY)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    with pytest.raises(ModelError, match="not an XGBoost model"):
        packed(tmp_path, path, data(BINARY))
