"""Models and rows for the tests of packing: small, fitted once per session, fixed seeds."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from fairlead.api.context import Context
from fairlead.api.packing import pack
from fairlead.core.bundle import Bundle
from fairlead.core.dataset import Dataset
from fairlead.core.report import Outcome
from fairlead.core.settings import Settings
from fairlead.core.workspace import Workspace


class ForgetfulStore:
    """An evidence store that remembers only for the test."""

    def __init__(self) -> None:
        self.kept: list[Any] = []

    def append(self, evidence: Any) -> None:
        self.kept.extend(evidence)

    def query(self, **_: Any) -> list[Any]:
        return self.kept


def open_context(folder: Path) -> Context:
    settings = Settings.load(environ={}, home=folder / ".fairlead")
    return Context(Workspace.open(settings), settings)


def packed(folder: Path, model: Any, data: Any, **options: Any) -> Outcome[Bundle]:
    """Pack into `folder/bundle` in a workspace of its own."""
    out = options.pop("out", folder / "bundle")
    return pack(model, data=data, out=out, context=open_context(folder), **options)


@lru_cache(maxsize=1)
def people(n_rows: int = 300) -> dict[str, Any]:
    """Columns of text, whole numbers, reals with gaps, dates; and an outcome of text."""
    rng = np.random.default_rng(7)
    city = rng.choice(np.array(["Oslo", "Rome", "Bonn"], dtype=object), n_rows)
    city[::11] = None
    age = rng.integers(18, 80, n_rows)
    income = rng.normal(50, 9, n_rows)
    income[::13] = np.nan
    plan = rng.choice(np.array(["a", "b"], dtype=object), n_rows)
    score = age + rng.normal(0, 6, n_rows) + 12 * (plan == "a") - 8 * (city == "Oslo")
    return {
        "age": age,
        "income": income,
        "city": city,
        "plan": plan,
        "row_id": np.arange(n_rows),
        "joined": np.datetime64("2024-01-01", "us") + np.arange(n_rows),
        "label": np.where(score > np.median(score), "yes", "no").astype(object),
        "spend": score,
    }


def people_data(label: str | None = "label") -> Dataset:
    columns = {n: a for n, a in people().items() if n not in {"label", "spend"}}
    return Dataset(columns, people()[label] if label else None, label, "people")


def people_frame() -> Any:
    import pandas as pd

    return pd.DataFrame({name: people()[name] for name in ("age", "income", "city", "plan")})


@lru_cache(maxsize=1)
def iris() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_iris

    table, target = load_iris(return_X_y=True)
    return table.astype(np.float32), target


IRIS_NAMES = ("sepal_length", "sepal_width", "petal_length", "petal_width")


def iris_data(labels: Any = None, **more: Any) -> Dataset:
    table, target = iris()
    columns = {name: table[:, index] for index, name in enumerate(IRIS_NAMES)}
    return Dataset({**columns, **more}, target if labels is None else labels, "label", "iris")


@lru_cache(maxsize=1)
def iris_onnx() -> bytes:
    import skl2onnx
    from sklearn.linear_model import LogisticRegression

    table, target = iris()
    model = LogisticRegression(max_iter=1000).fit(table, target)
    proto = skl2onnx.to_onnx(model, table[:1], options={"zipmap": False}, target_opset=18)
    return proto.SerializeToString()


def net(
    *,
    n_inputs: int = 4,
    n_outputs: int = 3,
    batch: int | None = None,
    last: str | None = "Softmax",
    seed: int = 0,
) -> Any:
    """A one-layer ONNX net with one float output."""
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(seed)
    weights = rng.normal(size=(n_inputs, n_outputs)).astype(np.float32)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["out" if last is None else "z"])]
    if last is not None:
        nodes.append(helper.make_node(last, ["z"], ["out"]))
    dim: Any = "n" if batch is None else batch
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [dim, n_inputs])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [dim, n_outputs])],
        [numpy_helper.from_array(weights, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
