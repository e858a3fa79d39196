"""scikit-learn estimators and pipelines on their way into a bundle."""

import functools
import importlib
import sys

import numpy as np
import pandas as pd
import pytest
import skops.io
import threadpoolctl
from sklearn.cluster import KMeans
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import (
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
)
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.gaussian_process import GaussianProcessClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, OrdinalEncoder, StandardScaler
from sklearn.svm import LinearSVC

from fairlead.backends.native_models import EstimatorRunner
from fairlead.backends.runners import open_runner
from fairlead.backends.skops import load_skops
from fairlead.core.bundle import Bundle
from fairlead.core.dataset import Dataset
from fairlead.core.errors import DataError, ModelError, NotFoundError, UntrustedError
from fairlead.core.signature import Signature, TensorSpec
from fairlead.measure.quality import predict
from tests.backends.pack_models import (
    IRIS_NAMES,
    iris,
    iris_data,
    packed,
    people,
    people_data,
    people_frame,
)

NUMBERS = make_pipeline(SimpleImputer(), StandardScaler())


def columns(text) -> ColumnTransformer:
    return ColumnTransformer([("n", NUMBERS, ["age", "income"]), ("t", text, ["city", "plan"])])


def dumped(folder, estimator):
    path = folder / "model.skops"
    skops.io.dump(estimator, path)
    return path


def test_a_pipeline_over_text_numbers_and_gaps_becomes_onnx(tmp_path):
    pipeline = Pipeline(
        [("c", columns(OneHotEncoder(handle_unknown="ignore"))), ("m", LogisticRegression())]
    ).fit(people_frame(), people()["label"])
    outcome = packed(tmp_path, dumped(tmp_path, pipeline), people_data())
    bundle = outcome.noun
    assert bundle.manifest.kind == "onnx"
    assert [spec.name for spec in bundle.signature.inputs] == ["age", "income", "city", "plan"]
    assert bundle.manifest.classes == ("no", "yes")
    assert bundle.scores.primary.value == pytest.approx(
        pipeline.score(people_frame(), people()["label"])
    )
    assert any(item.metric == "conversion_max_difference" for item in outcome.evidence)


@pytest.mark.parametrize("strategy", ["most_frequent", "constant"])
def test_imputed_text_before_a_forest_becomes_onnx(tmp_path, strategy):
    fill = SimpleImputer(strategy=strategy, fill_value="none" if strategy == "constant" else None)
    pipeline = Pipeline(
        [
            ("c", columns(make_pipeline(fill, OneHotEncoder(handle_unknown="ignore")))),
            ("m", RandomForestClassifier(10, random_state=0)),
        ]
    ).fit(people_frame(), people()["label"])
    bundle = packed(tmp_path, dumped(tmp_path, pipeline), people_data()).noun
    assert bundle.manifest.kind == "onnx"


@pytest.mark.parametrize("unknown", ["error", "use_encoded_value"])
def test_missing_text_keeps_its_own_code_before_trees(tmp_path, unknown):
    value = -1 if unknown == "use_encoded_value" else None
    codes = OrdinalEncoder(handle_unknown=unknown, unknown_value=value)
    steps = [("n", "passthrough", ["age", "income"]), ("t", codes, ["city", "plan"])]
    trees = HistGradientBoostingClassifier(max_iter=10, random_state=0)
    pipeline = Pipeline([("c", ColumnTransformer(steps)), ("m", trees)])
    pipeline.fit(people_frame(), people()["label"])
    bundle = packed(tmp_path, dumped(tmp_path, pipeline), people_data()).noun
    assert bundle.manifest.kind == "onnx"


def test_a_regression_pipeline_ignores_dates_and_identifiers(tmp_path):
    pipeline = Pipeline(
        [("c", columns(OneHotEncoder(handle_unknown="ignore"))), ("m", Ridge())]
    ).fit(people_frame(), people()["spend"])
    bundle = packed(tmp_path, dumped(tmp_path, pipeline), people_data("spend")).noun
    names = {c.name for c in bundle.profile().columns if c.role == "input"}
    assert (bundle.manifest.task, names) == ("regression", {"age", "income", "city", "plan"})


@pytest.mark.parametrize(
    "estimator",
    [
        HistGradientBoostingClassifier(max_iter=5, random_state=0),
        LinearSVC(),
        make_pipeline(StandardScaler(), RandomForestClassifier(5, random_state=0)),
    ],
    ids=lambda e: type(e).__name__,
)
def test_classifiers_become_onnx_and_keep_their_labels(tmp_path, estimator):
    table, target = iris()
    names = np.array(["a", "b", "c"], dtype=object)[target]
    estimator.fit(table.astype(np.float64), names)
    data = Dataset({n: table[:, i].astype(float) for i, n in enumerate(IRIS_NAMES)}, names, "y")
    bundle = packed(tmp_path, dumped(tmp_path, estimator), data).noun
    assert (bundle.manifest.kind, bundle.manifest.classes) == ("onnx", ("a", "b", "c"))
    assert bundle.scores.primary.value == pytest.approx(estimator.score(table, names))


@pytest.mark.parametrize(
    "estimator",
    [GradientBoostingRegressor(n_estimators=5), HistGradientBoostingRegressor(max_iter=5)],
    ids=lambda e: type(e).__name__,
)
def test_regressors_become_onnx(tmp_path, estimator):
    table = iris()[0].astype(np.float64)
    estimator.fit(table[:, :3], table[:, 3])
    data = Dataset({n: table[:, i] for i, n in enumerate(IRIS_NAMES[:3])}, table[:, 3], "y")
    bundle = packed(tmp_path, dumped(tmp_path, estimator), data).noun
    assert (bundle.manifest.kind, bundle.manifest.task) == ("onnx", "regression")
    assert bundle.scores.primary.value == pytest.approx(
        estimator.score(table[:, :3], table[:, 3]), abs=1e-4
    )


def test_a_clusterer_has_another_task(tmp_path):
    model = KMeans(3, n_init=2, random_state=0).fit(iris()[0])
    bundle = packed(tmp_path, dumped(tmp_path, model), Dataset(iris_data().columns)).noun
    assert bundle.manifest.task == "other"


def test_what_onnx_cannot_express_is_kept_and_runs_without_trust(tmp_path):
    model = GaussianProcessClassifier().fit(*iris())
    outcome = packed(tmp_path, dumped(tmp_path, model), iris_data())
    bundle = Bundle.open(outcome.noun.path)
    assert (bundle.manifest.kind, bundle.manifest.needs_trust) == ("pyfunc", False)
    assert any("cannot be expressed in ONNX" in finding.text for finding in outcome.report.findings)
    outputs = predict(open_runner(bundle), bundle.manifest, iris_data())
    assert np.array_equal(outputs["prediction"], model.predict(iris()[0]))


def test_a_missing_feature_is_named(tmp_path):
    import pandas as pd

    model = LogisticRegression(max_iter=500).fit(
        pd.DataFrame(iris()[0], columns=IRIS_NAMES), iris()[1]
    )
    data = Dataset({n: a for n, a in iris_data().columns.items() if n != "petal_width"})
    with pytest.raises(DataError, match="lacks 1 of the model's 4 features: `petal_width`"):
        packed(tmp_path, dumped(tmp_path, model), data)


def test_boosting_over_text_categories_needs_no_trust(tmp_path):
    frame = people_frame()[["age", "income", "city"]].astype({"city": "category"})
    model = HistGradientBoostingClassifier(max_iter=10, categorical_features="from_dtype")
    outcome = packed(tmp_path, dumped(tmp_path, model.fit(frame, people()["label"])), people_data())
    assert not outcome.noun.manifest.needs_trust
    assert outcome.noun.scores.primary.value > 0.6


def test_what_a_partial_function_wraps_is_audited(tmp_path):
    wrapped = FunctionTransformer(functools.partial(_twice))
    with pytest.raises(UntrustedError, match=r"test_pack_sklearn\._twice"):
        load_skops(dumped(tmp_path, make_pipeline(wrapped, LogisticRegression())))


def test_unknown_types_need_trust(tmp_path):
    path = dumped(tmp_path, make_pipeline(FunctionTransformer(_twice), LogisticRegression()))
    with pytest.raises(UntrustedError, match=r"test_pack_sklearn\._twice"):
        load_skops(path)
    assert load_skops(path, trust=True).steps[0][1].func is _twice


def _twice(table):
    return table * 2


@pytest.mark.parametrize("content", [b"\x80\x04garbage", b"PK\x03\x04 no zip", b"text"])
def test_garbage_in_a_skops_file_is_an_error(tmp_path, content):
    path = tmp_path / "model.skops"
    path.write_bytes(content)
    with pytest.raises(ModelError, match="not a skops file"):
        packed(tmp_path, path, iris_data())


def test_an_estimator_that_is_not_fitted_is_an_error(tmp_path):
    with pytest.raises(ModelError, match="not fitted"):
        packed(tmp_path, dumped(tmp_path, LogisticRegression()), iris_data())


def test_a_tree_whose_nodes_point_outside_is_refused(tmp_path):
    model = RandomForestClassifier(1, max_depth=2, random_state=0).fit(*iris())
    model.estimators_[0].tree_.children_left[0] = 4000
    with pytest.raises(ModelError, match="point outside"):
        load_skops(dumped(tmp_path, model))


def test_an_import_string_names_an_object_or_a_factory(tmp_path, monkeypatch):
    (tmp_path / "my_models_of_a.py").write_text(
        "from sklearn.linear_model import LogisticRegression\n"
        "from sklearn.datasets import load_iris\n"
        "def make():\n"
        "    return LogisticRegression(max_iter=500).fit(*load_iris(return_X_y=True))\n"
        "model = make()\n"
        "number = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    for name in ("make", "model"):
        reference = f"my_models_of_a:{name}"
        bundle = packed(tmp_path, reference, iris_data(), out=tmp_path / name).noun
        assert bundle.manifest.kind == "onnx"
    with pytest.raises(ModelError, match="neither an estimator nor a torch module"):
        packed(tmp_path, "my_models_of_a:number", iris_data())
    with pytest.raises(NotFoundError, match="does not exist"):
        packed(tmp_path, "my_models_of_a:missing", iris_data())
    assert str(tmp_path) not in sys.path
    assert importlib.util.find_spec("sklearn")


def test_text_as_the_only_column_is_vectorised(tmp_path):
    from sklearn.feature_extraction.text import CountVectorizer

    texts = np.array(["good day", "bad day", "good night", "bad luck"] * 10, dtype=object)
    labels = np.array([1, 0, 1, 0] * 10)
    model = make_pipeline(CountVectorizer(), LogisticRegression()).fit(texts, labels)
    data = Dataset({"text": texts}, labels, "label", "texts")
    bundle = packed(tmp_path, dumped(tmp_path, model), data).noun
    assert bundle.scores.primary.value == 1.0


def test_few_rows_are_predicted_by_one_thread(tmp_path):
    seen = []

    class Watching(LogisticRegression):
        def predict(self, X):  # noqa: N803 (scikit-learn's name)
            seen.append(max(pool["num_threads"] for pool in threadpoolctl.threadpool_info()))
            return super().predict(X)

    model = Watching().fit(*iris())
    spec = TensorSpec(name="input", dtype="float64", shape=(-1, 4))
    runner = EstimatorRunner(model, Signature(inputs=(spec,), outputs=()))
    with threadpoolctl.threadpool_limits(limits=3):
        runner.run({"input": np.ones((5, 4))})
        runner.run({"input": np.ones((20_000, 4))})
    assert seen == [1, 3]


def test_one_column_of_text_taken_by_name_becomes_onnx(tmp_path):
    texts = np.array(["Good day", "bad WEATHER", "good LUCK", "Bad luck"] * 10, dtype=object)
    labels = np.array([1, 0, 1, 0] * 10)
    vectors = ColumnTransformer([("words", TfidfVectorizer(), "text")])
    model = make_pipeline(vectors, LogisticRegression())
    with_name = pd.DataFrame({"text": texts})
    skops.io.dump(model.fit(with_name, labels), tmp_path / "model.skops")
    data = Dataset({"text": texts}, labels, "label")
    bundle = packed(tmp_path, tmp_path / "model.skops", data).noun
    assert bundle.manifest.kind == "onnx"
    assert bundle.signature.inputs[0].name == "text"
    runner = open_runner(bundle)
    found = predict(runner, bundle.manifest, data)[bundle.manifest.prediction_output]
    runner.close()
    assert list(found.ravel()) == list(model.predict(with_name))
