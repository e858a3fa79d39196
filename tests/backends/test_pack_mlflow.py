"""Bundles in MLflow, and MLflow's own models in bundles; with the real MLflow."""

import http.client
import json
import os
import socket
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from fairlead.backends.runners import open_runner
from fairlead.core.bundle import Bundle
from fairlead.core.errors import ModelError, UntrustedError
from fairlead.measure.quality import predict
from tests.backends.pack_models import (
    IRIS_NAMES,
    iris,
    iris_data,
    iris_onnx,
    net,
    packed,
    people,
    people_data,
    people_frame,
)

pytestmark = pytest.mark.filterwarnings("ignore")

pandas = pytest.importorskip("pandas")


@pytest.fixture(scope="session")
def mlflow_():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import mlflow.pyfunc
        import mlflow.sklearn
    return mlflow


@pytest.fixture(scope="module")
def iris_bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("iris")
    (folder / "model.onnx").write_bytes(iris_onnx())
    return packed(folder, folder / "model.onnx", iris_data()).noun


@pytest.fixture(scope="module")
def people_model():
    numbers = make_pipeline(SimpleImputer(), StandardScaler())
    text = OneHotEncoder(handle_unknown="ignore")
    steps = [("n", numbers, ["age", "income"]), ("t", text, ["city", "plan"])]
    pipeline = Pipeline([("c", ColumnTransformer(steps)), ("m", LogisticRegression())])
    return pipeline.fit(people_frame(), people()["label"])


@pytest.fixture(scope="module")
def people_bundle(tmp_path_factory, people_model):
    import skops.io

    folder = tmp_path_factory.mktemp("people")
    skops.io.dump(people_model, folder / "model.skops")
    return packed(folder, folder / "model.skops", people_data()).noun


def frame():
    return pandas.DataFrame(iris()[0].astype(float), columns=IRIS_NAMES)


def test_mlflow_loads_a_classifier_and_gives_labels_and_scores(mlflow_, iris_bundle):
    model = mlflow_.pyfunc.load_model(str(iris_bundle.path))
    answer = model.predict(frame().assign(day=pandas.Timestamp("2024-01-01"), name="x"))
    assert list(answer.columns) == [
        "label",
        "probabilities[0]",
        "probabilities[1]",
        "probabilities[2]",
    ]
    outputs = predict(open_runner(iris_bundle), iris_bundle.manifest, iris_data())
    assert np.array_equal(answer["label"], outputs["label"])
    assert np.allclose(answer["probabilities[2]"], outputs["probabilities"][:, 2], atol=1e-6)


def test_loading_with_mlflow_does_not_change_the_bundle(mlflow_, iris_bundle):
    mlflow_.pyfunc.load_model(str(iris_bundle.path)).predict(frame())
    assert Bundle.open(iris_bundle.path).digest == iris_bundle.digest


def test_mlflow_loads_the_onnx_flavor(mlflow_, iris_bundle):
    import mlflow.onnx

    assert mlflow.onnx.load_model(str(iris_bundle.path)).graph.output


def test_mlflow_takes_text_and_gaps(mlflow_, people_bundle, people_model):
    model = mlflow_.pyfunc.load_model(str(people_bundle.path))
    rows = people_frame().assign(age=people()["age"])
    answer = model.predict(rows)
    assert np.array_equal(answer.iloc[:, 0], people_model.predict(people_frame()))


def test_the_input_example_is_one_that_the_model_takes(mlflow_, people_bundle):
    model = mlflow_.pyfunc.load_model(str(people_bundle.path))
    example = model.input_example
    assert len(model.predict(example)) == len(example) == 5
    assert model.metadata.signature.inputs.input_names() == ["age", "income", "city", "plan"]


def test_a_model_of_tensors_takes_arrays(mlflow_, tmp_path):
    from onnx import TensorProto, helper

    graph = helper.make_graph(
        [helper.make_node("GlobalAveragePool", ["x"], ["p"]),
         helper.make_node("Flatten", ["p"], ["out"])],
        "image",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 2, 2])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["n", 3])],
    )  # fmt: skip
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    (tmp_path / "image.onnx").write_bytes(proto.SerializeToString())
    images = np.random.default_rng(0).normal(size=(12, 3, 2, 2)).astype(np.float32)
    np.savez(tmp_path / "images.npz", x=images, y=np.arange(12) % 3)
    path = tmp_path / "images.npz"
    bundle = packed(tmp_path, tmp_path / "image.onnx", path, labels="y").noun
    model = mlflow_.pyfunc.load_model(str(bundle.path))
    assert model.predict({"x": images})["out"].shape == (12, 3)


def test_a_kept_estimator_is_loaded_by_mlflow_too(mlflow_, tmp_path):
    import skops.io
    from sklearn.gaussian_process import GaussianProcessClassifier

    model = GaussianProcessClassifier().fit(*iris())
    skops.io.dump(model, tmp_path / "model.skops")
    bundle = packed(tmp_path, tmp_path / "model.skops", iris_data()).noun
    answer = mlflow_.pyfunc.load_model(str(bundle.path)).predict(frame())
    assert np.array_equal(answer, model.predict(iris()[0]))


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def ask(port, body, kind):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("POST", "/invocations", body, {"Content-Type": kind})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def is_up(port):
    try:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
        connection.request("GET", "/ping")
        return connection.getresponse().status == 200
    except OSError:
        return False


@pytest.fixture(scope="module")
def scoring_server(people_bundle):
    """MLflow's scoring server on a bundle, as `mlflow models serve` starts it."""
    port = free_port()
    program = (
        "import os, sys\n"
        "os.environ['__pyfunc_model_path__'] = sys.argv[1]\n"
        "import uvicorn\n"
        "from mlflow.pyfunc.scoring_server.app import app\n"
        "uvicorn.run(app, host='127.0.0.1', port=int(sys.argv[2]), log_level='error')\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(people_bundle.path), str(port)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    deadline = time.monotonic() + 60
    while not is_up(port):
        assert process.poll() is None, process.stdout.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.2)
    yield port
    process.terminate()
    process.wait(20)


def test_mlflow_serves_csv_and_json_alike(scoring_server, people_model):
    rows = people_frame().head(12)
    csv = ask(scoring_server, rows.to_csv(index=False), "text/csv")
    split = json.loads(rows.to_json(orient="split"))
    body = json.dumps({"dataframe_split": {k: split[k] for k in ("columns", "data")}})
    answers = [csv, ask(scoring_server, body, "application/json")]
    for status, text in answers:
        assert status == 200, text
        found = [row["label" if "label" in row else "output_label"] for row in
                 json.loads(text)["predictions"]]  # fmt: skip
        assert found == people_model.predict(rows).tolist()


@pytest.mark.parametrize("kind", ["csv", "json"])
def test_mlflow_models_predict(people_bundle, people_model, tmp_path, kind):
    rows = people_frame().head(6)
    source, target = tmp_path / f"rows.{kind}", tmp_path / "answer.json"
    if kind == "csv":
        rows.to_csv(source, index=False)
    else:
        split = json.loads(rows.to_json(orient="split"))
        source.write_text(json.dumps({"dataframe_split": split}))
    done = subprocess.run(
        [sys.executable, "-m", "mlflow", "models", "predict", "-m", str(people_bundle.path), "-i",
         str(source), "-o", str(target), "-t", kind, "--env-manager", "local"],
        capture_output=True, text=True, env={**os.environ, "MLFLOW_TRACKING_URI": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    answer = json.loads(target.read_text())["predictions"]
    assert [next(iter(row.values())) for row in answer] == people_model.predict(rows).tolist()


# MLflow's own models


def test_an_onnx_model_of_mlflow_is_packed_with_the_names_of_its_signature(mlflow_, tmp_path):
    import mlflow.onnx
    import onnx
    from mlflow.models import infer_signature

    signature = infer_signature(frame(), np.zeros(3))
    proto = onnx.load_model_from_string(iris_onnx())
    mlflow.onnx.save_model(proto, str(tmp_path / "saved"), signature=signature)
    data = iris_data(weight=np.ones(150), height=np.ones(150))
    bundle = packed(tmp_path, tmp_path / "saved", data).noun
    assert bundle.manifest.feature_columns == IRIS_NAMES


def test_a_skops_model_of_mlflow_is_packed_without_trust(mlflow_, tmp_path, people_model):
    mlflow_.sklearn.save_model(
        people_model, str(tmp_path / "saved"), serialization_format="skops",
        pip_requirements=[], skops_trusted_types=["numpy.dtype"],
    )  # fmt: skip
    assert packed(tmp_path, tmp_path / "saved", people_data()).noun.manifest.kind == "onnx"


def test_a_pickled_model_of_mlflow_needs_trust_and_becomes_onnx(mlflow_, tmp_path, people_model):
    mlflow_.sklearn.save_model(
        people_model, str(tmp_path / "saved"), serialization_format="cloudpickle",
        pip_requirements=[],
    )  # fmt: skip
    with pytest.raises(UntrustedError):
        packed(tmp_path, tmp_path / "saved", people_data())
    bundle = packed(tmp_path, tmp_path / "saved", people_data(), trust=True).noun
    assert (bundle.manifest.kind, bundle.manifest.needs_trust) == ("onnx", False)


def test_a_booster_of_mlflow_is_read_by_its_own_library(mlflow_, tmp_path):
    import mlflow.xgboost
    import xgboost

    model = xgboost.XGBClassifier(n_estimators=3).fit(frame(), iris()[1])
    mlflow.xgboost.save_model(model, str(tmp_path / "saved"), pip_requirements=[])
    bundle = packed(tmp_path, tmp_path / "saved", iris_data()).noun
    assert (bundle.manifest.kind, bundle.manifest.classes) == ("onnx", (0, 1, 2))


class Doubler:
    """Stands for a model of the user's own; made an MLflow model in the test."""

    @staticmethod
    def predict(context, model_input, params=None):
        return (model_input["petal_width"] > 0.8).astype("int64").to_numpy()


def test_any_other_model_is_kept_unchanged_and_needs_trust(mlflow_, tmp_path):
    from mlflow.models import infer_signature

    kind = type("Own", (mlflow_.pyfunc.PythonModel,), {"predict": lambda s, c, m, params=None:
                Doubler.predict(c, m)})  # fmt: skip
    mlflow_.pyfunc.save_model(
        str(tmp_path / "saved"), python_model=kind(), pip_requirements=[],
        signature=infer_signature(frame(), np.zeros(3, np.int64)),
    )  # fmt: skip
    before = (tmp_path / "saved" / "MLmodel").read_bytes()
    data = iris_data(labels=(iris()[1] > 0).astype(int))
    with pytest.raises(UntrustedError):
        packed(tmp_path, tmp_path / "saved", data)
    bundle = packed(tmp_path, tmp_path / "saved", data, trust=True).noun
    assert (bundle.path / "MLmodel").read_bytes() == before
    assert (bundle.manifest.kind, bundle.manifest.needs_trust) == ("pyfunc", True)
    assert bundle.scores.primary.value > 0.95
    with pytest.raises(UntrustedError):
        open_runner(bundle)
    assert len(predict(open_runner(bundle, trust=True), bundle.manifest, data)["prediction"]) == 150


def test_a_bundle_that_lies_about_trust_still_runs_no_code(mlflow_, tmp_path):
    from fairlead.backends.mlflow import PyfuncRunner

    folder = tmp_path / "evil"
    folder.mkdir()
    (folder / "MLmodel").write_text("flavors:\n  python_function:\n    loader_module: evil\n")
    (folder / "model.pkl").write_bytes(b"\x80\x04.")
    with pytest.raises(UntrustedError):
        PyfuncRunner(folder / "model.pkl", net_signature())


def net_signature():
    from fairlead.backends.onnxruntime import read_signature

    return read_signature(net().SerializeToString())


@pytest.mark.parametrize("text", ["", "flavors: 3", "{{{", "\x00\x01"])
def test_a_broken_mlmodel_is_an_error(tmp_path, text):
    folder = tmp_path / "saved"
    folder.mkdir()
    (folder / "MLmodel").write_text(text)
    with pytest.raises(ModelError):
        packed(tmp_path, folder, iris_data())
