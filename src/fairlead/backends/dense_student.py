"""A small dense network that learns what another model answers, and its ONNX graph.

Training needs numpy only. The rows to learn on may be multiplied by MUNGE (Bucilă, Caruana &
Niculescu-Mizil, Model compression, KDD 2006): new rows between a row and its nearest neighbour,
labelled by the teacher.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fairlead.core.dataset import Array
from fairlead.core.ports import Feeds
from fairlead.core.signature import STRING, Signature

__all__ = ["DenseStudent", "Loss", "feeds_of", "fit_student", "munge", "student_model", "table_of"]

Loss = Literal["cross-entropy", "squared"]

_BATCH = 64
_CHUNK = 512
_FLOOR = 1e-3


@dataclass(frozen=True)
class DenseStudent:
    """A dense network with ReLU between its layers, on standardised features.

    Attributes:
        mean: Shape (n_features,).
        scale: Shape (n_features,), above 0.
        missing: Features that have an indicator of being missing.
        layers: (weights of shape (n_in, n_out), bias of shape (n_out,)) per layer.
        loss: What it learnt; `cross-entropy` means that a softmax comes last.
        out_mean: Mean of the targets for `squared`, shape (n_outputs,).
        out_scale: Their scale.
    """

    mean: NDArray[np.float32]
    scale: NDArray[np.float32]
    missing: NDArray[np.int64]
    layers: tuple[tuple[NDArray[np.float32], NDArray[np.float32]], ...]
    loss: Loss
    out_mean: NDArray[np.float32]
    out_scale: NDArray[np.float32]

    @property
    def n_weights(self) -> int:
        """Weights and biases."""
        return sum(matrix.size + bias.size for matrix, bias in self.layers)

    def features(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Standardise rows and mark what is missing."""
        is_missing = np.isnan(rows)
        filled = np.where(is_missing, 0.0, (rows - self.mean) / self.scale)
        marks = is_missing[:, self.missing].astype(np.float32)
        return np.concatenate([filled, marks], axis=1, dtype=np.float32)


def table_of(feeds: Feeds) -> NDArray[np.float32] | None:
    """Return all inputs side by side, shape (n_rows, n_features); None when one is no number."""
    if any(array.dtype.kind not in "biuf" for array in feeds.values()):
        return None
    parts = [array.reshape(len(array), -1).astype(np.float32) for array in feeds.values()]
    return np.concatenate(parts, axis=1)


def feeds_of(table: NDArray[np.float32], like: Feeds) -> dict[str, Array]:
    """Cut a table into the tensors it was put together from, in their shapes and dtypes."""
    found, start = {}, 0
    for name, array in like.items():
        width = int(np.prod(array.shape[1:], dtype=int))
        part = table[:, start : start + width]
        found[name] = part.reshape(len(table), *array.shape[1:]).astype(array.dtype)
        start += width
    return found


def munge(
    rows: NDArray[np.float32], copies: int, *, seed: int, swap: float = 0.5
) -> NDArray[np.float32]:
    """Make rows that are like the given ones: each value may be its nearest neighbour's.

    Args:
        rows: Shape (n_rows, n_features).
        copies: New rows per row.
        seed: Seed of what is swapped.
        swap: Share of the values that are swapped.

    Returns:
        Shape (copies * n_rows, n_features).
    """
    rng = np.random.default_rng(seed)
    spread = np.nanstd(rows, axis=0)
    plain = np.nan_to_num(rows / np.where(spread > 0, spread, 1.0))
    squares = (plain**2).sum(axis=1)
    near = np.zeros((len(rows), 3), np.int64)
    k = min(3, len(rows) - 1)
    if k < 1:
        return np.repeat(rows, copies, axis=0)
    for start in range(0, len(rows), _CHUNK):
        part = slice(start, start + _CHUNK)
        far = squares[part, None] + squares - 2 * plain[part] @ plain.T
        far[np.arange(len(far)), np.arange(start, start + len(far))] = np.inf
        near[part, :k] = np.argpartition(far, k - 1, axis=1)[:, :k]
    made = []
    for _ in range(copies):
        other = rows[near[np.arange(len(rows)), rng.integers(0, k, len(rows))]]
        made.append(np.where(rng.random(rows.shape) < swap, other, rows))
    return np.concatenate(made) if made else rows[:0]


def fit_student(
    rows: NDArray[np.float32],
    targets: NDArray[np.float32],
    hidden: Sequence[int],
    *,
    loss: Loss,
    epochs: int,
    learning_rate: float,
    seed: int,
    on_epoch: Callable[[], None] = lambda: None,
) -> DenseStudent:
    """Train a dense network on a teacher's answers with Adam (Kingma & Ba, 2015).

    Args:
        rows: Shape (n_rows, n_features); NaN is a missing value.
        targets: Probabilities for `cross-entropy`, numbers for `squared`; (n_rows, n_outputs).
        hidden: Width of every hidden layer.
        loss: What is made small.
        epochs: Times that every row is seen; the step falls to zero along a cosine.
        learning_rate: Largest step.
        seed: Seed of the first weights and of the order.
        on_epoch: Called after every epoch.
    """
    rng = np.random.default_rng(seed)
    blank = _blank(rows, targets, loss)
    x = blank.features(rows)
    y = targets if loss == "cross-entropy" else (targets - blank.out_mean) / blank.out_scale
    sizes = [x.shape[1], *hidden, y.shape[1]]
    layers = [
        (rng.normal(0, np.sqrt(2 / n), (n, m)).astype(np.float32), np.zeros(m, np.float32))
        for n, m in itertools.pairwise(sizes)
    ]
    flat = [array for layer in layers for array in layer]
    first = [np.zeros_like(array) for array in flat]
    second = [np.zeros_like(array) for array in flat]
    batches = max(1, -(-len(x) // _BATCH))
    step = 0
    for _ in range(epochs):
        order = rng.permutation(len(x))
        for start in range(0, len(x), _BATCH):
            part = order[start : start + _BATCH]
            step += 1
            rate = learning_rate * 0.5 * (1 + np.cos(np.pi * step / (batches * epochs)))
            gradients = _gradients(layers, x[part], y[part], loss)
            for array, gradient, m, v in zip(flat, gradients, first, second, strict=True):
                m += 0.1 * (gradient - m)
                v += 0.001 * (gradient**2 - v)
                unbiased = m / (1 - 0.9**step)
                array -= rate * unbiased / (np.sqrt(v / (1 - 0.999**step)) + 1e-8)
        on_epoch()
    return replace(blank, layers=tuple(layers))


def _blank(rows: NDArray[np.float32], targets: NDArray[np.float32], loss: Loss) -> DenseStudent:
    known = ~np.isnan(rows)
    counts = np.maximum(known.sum(axis=0), 1)
    filled = np.where(known, rows, 0).astype(np.float64)
    mean = filled.sum(axis=0) / counts
    spread = np.sqrt((np.where(known, filled - mean, 0) ** 2).sum(axis=0) / counts)
    out_mean = targets.mean(axis=0) if loss == "squared" else np.zeros(targets.shape[1])
    out_spread = targets.std(axis=0) if loss == "squared" else np.ones(targets.shape[1])
    return DenseStudent(
        mean=mean.astype(np.float32),
        # A feature that never changed says nothing; what it does later must not count.
        scale=np.where(spread > _FLOOR * np.abs(mean) + 1e-12, spread, 1e6).astype(np.float32),
        missing=np.flatnonzero(~known.all(axis=0)),
        layers=(),
        loss=loss,
        out_mean=out_mean.astype(np.float32),
        out_scale=np.where(out_spread > 0, out_spread, 1.0).astype(np.float32),
    )


def _gradients(
    layers: list[tuple[NDArray[np.float32], NDArray[np.float32]]],
    x: NDArray[np.float32],
    y: NDArray[np.float32],
    loss: Loss,
) -> list[NDArray[np.float32]]:
    flows = [x]
    for place, (matrix, bias) in enumerate(layers):
        out = flows[-1] @ matrix + bias
        flows.append(np.maximum(out, 0) if place < len(layers) - 1 else out)
    answer = flows[-1]
    if loss == "cross-entropy":
        shifted = np.exp(answer - answer.max(axis=1, keepdims=True))
        answer = shifted / shifted.sum(axis=1, keepdims=True)
    back = (answer - y) / np.float32(len(x))
    found: list[NDArray[np.float32]] = []
    for place in range(len(layers) - 1, -1, -1):
        found[:0] = [flows[place].T @ back, back.sum(axis=0)]
        if place:
            back = (back @ layers[place][0].T) * (flows[place] > 0)
    return found


def student_model(
    student: DenseStudent,
    signature: Signature,
    *,
    score_output: str | None,
    label_output: str | None,
    classes: Array | None,
    handles_missing: bool,
) -> bytes:
    """Return an ONNX model with the inputs and outputs of the teacher.

    Args:
        student: The network.
        signature: What the teacher takes and gives.
        score_output: Output with the network's numbers; None when there are only labels.
        label_output: Output with the predicted label, when it is another one.
        classes: The labels in the order of the network's outputs.
        handles_missing: Whether NaN is a missing value, and not passed on.
    """
    from onnx import TensorProto, checker, helper, numpy_helper

    graph = _StudentGraph(student, signature, handles_missing)
    scores = graph.network()
    if label_output is not None and classes is not None:
        graph.labels(scores, label_output, classes)
    if score_output is not None:
        graph.shaped(scores, score_output)
    kinds = {STRING: TensorProto.STRING}

    def info(spec: Any) -> Any:  # noqa: ANN401 (a TensorSpec; untyped library)
        kind = kinds.get(spec.dtype) or helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype))
        shape = ["n" if size == -1 else size for size in spec.shape]
        return helper.make_tensor_value_info(spec.name, kind, shape)

    made = helper.make_graph(
        graph.nodes,
        "student",
        [info(spec) for spec in signature.inputs],
        [info(spec) for spec in signature.outputs],
        [numpy_helper.from_array(value, name) for name, value in graph.constants.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    checker.check_model(model)
    return bytes(model.SerializeToString())


class _StudentGraph:
    """Writes the nodes of a student."""

    def __init__(self, student: DenseStudent, signature: Signature, handles_missing: bool) -> None:
        self.student, self.signature = student, signature
        self.handles_missing = handles_missing
        self.nodes: list[Any] = []
        self.constants: dict[str, Array] = {}

    def network(self) -> str:
        """Write everything up to the scores; return their name."""
        student = self.student
        current = self._features()
        for place, (matrix, bias) in enumerate(student.layers):
            weight, offset = self._folded(matrix, bias) if place == 0 else (matrix, bias)
            if place == len(student.layers) - 1 and student.loss == "squared":
                weight = weight * student.out_scale
                offset = offset * student.out_scale + student.out_mean
            ends = [current, self._constant(f"w{place}", weight.astype(np.float32)),
                    self._constant(f"b{place}", offset.astype(np.float32))]  # fmt: skip
            current = self._node("Gemm", ends, f"dense{place}")
            if place < len(student.layers) - 1:
                current = self._node("Relu", [current], f"relu{place}")
        if student.loss == "cross-entropy":
            current = self._node("Softmax", [current], "probabilities", axis=1)
        return current

    def _folded(
        self, matrix: NDArray[np.float32], bias: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Take the standardisation of the features into the first layer."""
        student = self.student
        factor = np.ones(len(matrix))
        factor[: len(student.scale)] = 1 / student.scale
        centre = np.zeros(len(matrix))
        centre[: len(student.mean)] = student.mean
        weight = matrix * factor[:, None]
        return weight.astype(np.float32), (bias - centre @ weight).astype(np.float32)

    def _features(self) -> str:
        from onnx import TensorProto

        flat = []
        for place, spec in enumerate(self.signature.inputs):
            name = spec.name
            if spec.dtype != "float32":
                name = self._node("Cast", [name], f"float{place}", to=TensorProto.FLOAT)
            if len(spec.shape) != 2:
                shape = self._constant("row_shape", np.array([0, -1] if len(spec.shape) > 1
                                                             else [-1, 1], np.int64))  # fmt: skip
                name = self._node("Reshape", [name, shape], f"flat{place}")
            flat.append(name)
        rows = flat[0] if len(flat) == 1 else self._node("Concat", flat, "rows", axis=1)
        if not self.handles_missing:
            return rows
        student = self.student
        gap = self._node("IsNaN", [rows], "is_missing")
        filled = self._node("Where", [gap, self._constant("mean", student.mean), rows], "filled")
        if not len(student.missing):
            return filled
        marks = self._node("Cast", [gap], "marks", to=TensorProto.FLOAT)
        which = self._constant("with_marks", student.missing.astype(np.int64))
        marked = self._node("Gather", [marks, which], "chosen_marks", axis=1)
        return self._node("Concat", [filled, marked], "features", axis=1)

    def labels(self, scores: str, name: str, classes: Array) -> None:
        """Write the label of the largest score."""
        spec = next(item for item in self.signature.outputs if item.name == name)
        best = self._node("ArgMax", [scores], "best", axis=1, keepdims=int(len(spec.shape) > 1))
        values = classes.astype(object if spec.dtype == STRING else spec.dtype)
        self._node("Gather", [self._constant("classes", values), best], name, axis=0, is_last=True)

    def shaped(self, scores: str, name: str) -> None:
        """Write the scores in dtype and shape of the teacher's."""
        from onnx import helper

        spec = next(item for item in self.signature.outputs if item.name == name)
        if len(spec.shape) != 2:
            rest = list(spec.shape[1:])
            shape = self._constant("out_shape", np.array([-1, *rest], np.int64))
            scores = self._node("Reshape", [scores, shape], "shaped")
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype))
        self._node("Cast", [scores], name, to=kind, is_last=True)

    def _constant(self, name: str, value: Array) -> str:
        self.constants[f"student_{name}" if name != "row_shape" else f"row_{value[-1]}"] = value
        return f"student_{name}" if name != "row_shape" else f"row_{value[-1]}"

    def _node(
        self,
        operator: str,
        ends: list[str],
        out: str,
        *,
        is_last: bool = False,
        **more: Any,  # noqa: ANN401
    ) -> str:
        from onnx import helper

        name = out if is_last else f"student_{out}"
        self.nodes.append(
            helper.make_node(operator, ends, [name], name=f"student_node_{len(self.nodes)}", **more)
        )
        return name
