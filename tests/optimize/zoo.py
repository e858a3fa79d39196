"""Models of many kinds, small enough to build in a test."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from fairlead.core.dataset import Dataset

FLOAT = TensorProto.FLOAT


def digits() -> tuple[np.ndarray, np.ndarray]:
    """Return 1,797 images as rows of 64 floats, shuffled, and their labels."""
    from sklearn.datasets import load_digits

    rows, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(rows))
    return rows[order].astype(np.float32), labels[order]


def digits_dataset(first: int = 1200, last: int = 1797) -> Dataset:
    rows, labels = digits()
    columns = {f"pixel_{i}": rows[first:last, i] for i in range(64)}
    return Dataset(columns, labels[first:last], "label", "digits")


@contextmanager
def _unfinished() -> Iterator[None]:
    """Training stops early on purpose, and on one thread: small matrices gain from no more."""
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore", ConvergenceWarning)
        yield


def digits_mlp(hidden: tuple[int, ...] = (128, 64)) -> onnx.ModelProto:
    from skl2onnx import to_onnx
    from sklearn.neural_network import MLPClassifier

    rows, labels = digits()
    model = MLPClassifier(hidden, max_iter=25, random_state=0)
    with _unfinished():
        model.fit(rows[:1200], labels[:1200])
    return to_onnx(model, rows[:1], options={"zipmap": False})


def digits_forest() -> onnx.ModelProto:
    from skl2onnx import to_onnx
    from sklearn.ensemble import RandomForestClassifier

    rows, labels = digits()
    model = RandomForestClassifier(20, random_state=0).fit(rows[:1200], labels[:1200])
    return to_onnx(model, rows[:1], options={"zipmap": False})


def diabetes_mlp() -> tuple[onnx.ModelProto, Dataset]:
    from skl2onnx import to_onnx
    from sklearn.datasets import load_diabetes
    from sklearn.neural_network import MLPRegressor

    rows, labels = load_diabetes(return_X_y=True)
    rows = rows.astype(np.float32) * 10
    model = MLPRegressor(hidden_layer_sizes=(96, 64), max_iter=120, random_state=0)
    with _unfinished():
        model.fit(rows[:300], labels[:300] / 100)
    columns = {f"f{i}": rows[300:, i] for i in range(10)}
    data = Dataset(columns, labels[300:] / 100, "target", "diabetes")
    return to_onnx(model, rows[:1]), data


def network(
    nodes: list[onnx.NodeProto],
    weights: dict[str, np.ndarray],
    *,
    inputs: list[tuple[str, int, list[int | str]]],
    outputs: list[tuple[str, int, list[int | str]]],
    opset: int = 17,
    ir_version: int = 8,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info(*item) for item in inputs],
        [helper.make_tensor_value_info(*item) for item in outputs],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = ir_version
    return model


def dense(
    *,
    sizes: tuple[int, ...] = (16, 64, 32, 4),
    dtype: type = np.float32,
    batch: int | str = "n",
    opset: int = 17,
    ir_version: int = 8,
    operator: str = "Gemm",
    last: str | None = "Softmax",
    scale: float = 1.0,
    seed: int = 0,
) -> onnx.ModelProto:
    """Return a random dense network with ReLU between its layers."""
    rng = np.random.default_rng(seed)
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    weights: dict[str, np.ndarray] = {}
    nodes, current = [], "x"
    for place, (n_in, n_out) in enumerate(pairwise(sizes)):
        matrix = rng.normal(0, scale / np.sqrt(n_in), (n_in, n_out))
        weights[f"b{place}"] = rng.normal(0, 0.1, n_out).astype(dtype)
        out = f"h{place}"
        if operator == "Gemm":
            weights[f"w{place}"] = np.ascontiguousarray(matrix.T).astype(dtype)
            ends = [current, f"w{place}", f"b{place}"]
            nodes.append(helper.make_node("Gemm", ends, [out], transB=1))
        else:
            weights[f"w{place}"] = matrix.astype(dtype)
            nodes.append(helper.make_node("MatMul", [current, f"w{place}"], [f"m{place}"]))
            nodes.append(helper.make_node("Add", [f"m{place}", f"b{place}"], [out]))
        current = out
        if place < len(sizes) - 2:
            nodes.append(helper.make_node("Relu", [out], [f"r{place}"]))
            current = f"r{place}"
    if last:
        nodes.append(helper.make_node(last, [current], ["y"], axis=1))
    else:
        nodes.append(helper.make_node("Identity", [current], ["y"]))
    return network(
        nodes,
        weights,
        inputs=[("x", kind, [batch, sizes[0]])],
        outputs=[("y", kind, [batch, sizes[-1]])],
        opset=opset,
        ir_version=ir_version,
    )


def rows_for_dense(n_rows: int = 200, width: int = 16, *, seed: int = 1) -> Dataset:
    rng = np.random.default_rng(seed)
    values = rng.normal(0, 1, (n_rows, width)).astype(np.float32)
    return Dataset({f"c{i:02d}": values[:, i] for i in range(width)}, source="random rows")


def convolution() -> onnx.ModelProto:
    """Return a small convolutional network on 8 x 8 images of 10 classes."""
    rng = np.random.default_rng(0)
    weights = {
        "k": rng.normal(0, 0.3, (8, 1, 3, 3)).astype(np.float32),
        "w": rng.normal(0, 0.05, (8 * 64, 10)).astype(np.float32),
        "shape": np.array([-1, 1, 8, 8], np.int64),
    }
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["image"]),
        helper.make_node("Conv", ["image", "k"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Flatten", ["r"], ["f"]),
        helper.make_node("MatMul", ["f", "w"], ["m"]),
        helper.make_node("Softmax", ["m"], ["y"], axis=1),
    ]
    return network(
        nodes,
        weights,
        inputs=[("x", FLOAT, ["n", 64])],
        outputs=[("y", FLOAT, ["n", 10])],
    )


def embedding() -> onnx.ModelProto:
    """Return a model from eight token ids to a vector, as a text encoder has it."""
    rng = np.random.default_rng(0)
    weights = {
        "table": rng.normal(0, 1, (100, 32)).astype(np.float32),
        "w": rng.normal(0, 0.2, (32, 48)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["e"]),
        helper.make_node("MatMul", ["e", "w"], ["m"]),
        helper.make_node("ReduceMean", ["m"], ["vector"], axes=[1], keepdims=0),
    ]
    return network(
        nodes,
        weights,
        inputs=[("ids", TensorProto.INT64, ["n", 8])],
        outputs=[("vector", FLOAT, ["n", 48])],
    )


def token_rows(n_rows: int = 120) -> Dataset:
    ids = np.random.default_rng(0).integers(0, 100, (n_rows, 8))
    return Dataset({"ids": ids}, source="tokens")


def outlier_digits() -> onnx.ModelProto:
    """Return a linear classifier of digits whose answers 8 bits cannot tell apart.

    One feature is a huge constant that every class weighs alike; the activations' single scale
    then has no steps left for the pixels.
    """
    from sklearn.linear_model import LogisticRegression

    rows, labels = digits()
    linear = LogisticRegression(max_iter=200).fit(rows[:1200] / 16, labels[:1200])
    matrix = np.concatenate([linear.coef_.T / 16, np.zeros((1, 10))]).astype(np.float32)
    weights = {
        "w": matrix,
        "b": linear.intercept_.astype(np.float32),
        "huge": np.full((1, 1), 1e6, np.float32),
        "axis": np.array([1], np.int64),
    }
    nodes = [
        helper.make_node("ReduceSum", ["x", "axis"], ["sum"], keepdims=1),
        helper.make_node("Sub", ["sum", "sum"], ["zero"]),
        helper.make_node("Add", ["zero", "huge"], ["constant"]),
        helper.make_node("Concat", ["x", "constant"], ["wide"], axis=1),
        helper.make_node("MatMul", ["wide", "w"], ["m"]),
        helper.make_node("Add", ["m", "b"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["y"], axis=1),
    ]
    return network(
        nodes,
        weights,
        inputs=[("x", FLOAT, ["n", 64])],
        outputs=[("y", FLOAT, ["n", 10])],
    )


def save(model: onnx.ModelProto, path: Path, *, external: bool = False) -> Path:
    if external:
        onnx.save(
            model,
            str(path),
            save_as_external_data=True,
            location=path.name + ".data",
            size_threshold=0,
        )
    else:
        onnx.save(model, str(path))
    return path


def save_rows(data: Dataset, path: Path) -> Path:
    from fairlead.backends.datasets import save_dataset

    return save_dataset(data, path)
