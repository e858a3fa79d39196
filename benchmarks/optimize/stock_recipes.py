"""What stock tools make of an ONNX model: the recipes their own pages give, nothing tuned by hand.

Each recipe is one call of a tool. What a tool refuses, or dies of, is told and left out.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fairlead.backends.openvino import OPENVINO, has_openvino, load_openvino
from fairlead.core.bundle import RuntimeSettings

__all__ = ["Stock", "stock_versions"]

ONE = RuntimeSettings(intra_op_threads=1)
_CALIBRATION_ROWS = 64


@dataclass(frozen=True)
class Stock:
    """What one recipe made.

    Attributes:
        model: The model.
        runtime: Settings to run it with.
    """

    model: bytes
    runtime: RuntimeSettings


def stock_versions(
    source: Path, rows: Mapping[str, np.ndarray], scratch: Path
) -> tuple[dict[str, Stock], dict[str, str]]:
    """Make every stock version of a model.

    Args:
        source: The ONNX file.
        rows: Calibration rows, one array per input.
        scratch: Folder for the tools' files.

    Returns:
        Name → what was made, and name → why a tool made nothing.
    """
    few = {name: array[:_CALIBRATION_ROWS] for name, array in rows.items()}
    made: dict[str, Stock] = {}
    failed: dict[str, str] = {}
    for name, make in _recipes(source, few, scratch):
        try:
            with _quiet(), contextlib.chdir(scratch):  # some leave files where they run
                made[name] = make()
        except Exception as exc:  # noqa: BLE001 (whatever a tool dies of is its result)
            failed[name] = f"{type(exc).__name__}: {str(exc).splitlines()[0] if str(exc) else ''}"
    return made, failed


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)


def _recipes(
    source: Path, rows: Mapping[str, np.ndarray], scratch: Path
) -> Iterator[tuple[str, Callable[[], Stock]]]:
    from onnxruntime.quantization import CalibrationMethod as How

    yield "ORT, graph fused", lambda: _fused(source, scratch, half=False)
    yield "ORT fp16", lambda: _fused(source, scratch, half=True)
    yield "ORT dynamic INT8, default", lambda: _dynamic(source, scratch, per_channel=False)
    yield "ORT dynamic INT8, per channel", lambda: _dynamic(source, scratch, per_channel=True)
    for word, how in (("min-max", How.MinMax), ("entropy", How.Entropy),
                      ("percentile", How.Percentile)):  # fmt: skip
        yield (
            f"ORT static INT8, {word}",
            lambda how=how: _static(source, rows, scratch, how, ()),
        )
    yield (
        "ORT static INT8, matrices only",
        lambda: _static(source, rows, scratch, How.MinMax, ("MatMul", "Gemm", "Conv")),
    )
    if has_openvino():
        for precision in ("fp32", "bf16"):
            settings = _openvino(precision)
            yield f"OpenVINO {precision}", lambda s=settings: Stock(source.read_bytes(), s)
        yield "NNCF PTQ, OpenVINO", lambda: _nncf(source, rows, "bf16")
        yield "NNCF PTQ, ORT", lambda: _nncf(source, rows, None)


def _openvino(precision: str) -> RuntimeSettings:
    return ONE.model_copy(update={"execution_provider": OPENVINO, "float_precision": precision})


def _fused(source: Path, scratch: Path, *, half: bool) -> Stock:
    from onnxruntime.transformers.optimizer import optimize_model

    model = optimize_model(str(source), model_type="bert", opt_level=0)
    if half:
        model.convert_float_to_float16(keep_io_types=True)
    target = scratch / "fused.onnx"
    model.save_model_to_file(str(target))
    return Stock(target.read_bytes(), ONE)


def _dynamic(source: Path, scratch: Path, *, per_channel: bool) -> Stock:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    target = scratch / "dynamic.onnx"
    quantize_dynamic(
        source, target, per_channel=per_channel, extra_options={"DefaultTensorType": 1},
        weight_type=QuantType.QInt8 if per_channel else QuantType.QUInt8,
    )  # fmt: skip
    return Stock(target.read_bytes(), ONE)


def _static(
    source: Path, rows: Mapping[str, np.ndarray], scratch: Path, how: object,
    operators: tuple[str, ...],
) -> Stock:  # fmt: skip
    from onnxruntime import quantization as q

    class Reader(q.CalibrationDataReader):
        def __init__(self) -> None:
            n_rows = len(next(iter(rows.values())))
            self._left = iter([{k: v[i : i + 1] for k, v in rows.items()} for i in range(n_rows)])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self._left, None)

    target = scratch / "static.onnx"
    q.quantize_static(
        source, target, Reader(), quant_format=q.QuantFormat.QDQ, per_channel=True,
        weight_type=q.QuantType.QInt8, calibrate_method=how,
        op_types_to_quantize=list(operators) or None, extra_options={"DefaultTensorType": 1},
    )  # fmt: skip
    return Stock(target.read_bytes(), ONE)


def _nncf(source: Path, rows: Mapping[str, np.ndarray], precision: str | None) -> Stock:
    load_openvino()
    os.environ["NNCF_CI"] = "1"  # its own switch for telemetry
    if "nncf" not in sys.modules:
        logging.getLogger("nncf").setLevel(logging.ERROR)
    import nncf
    import onnx

    graph = onnx.load(source)
    n_rows = len(next(iter(rows.values())))
    items = [{k: v[i : i + 1] for k, v in rows.items()} for i in range(n_rows)]
    is_transformer = any(node.op_type == "Softmax" for node in graph.graph.node)
    kind = nncf.ModelType.TRANSFORMER if is_transformer else None
    made = nncf.quantize(graph, nncf.Dataset(items), model_type=kind, subset_size=n_rows)
    runtime = ONE if precision is None else _openvino(precision)
    return Stock(made.SerializeToString(), runtime)
