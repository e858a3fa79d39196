"""What every method works on: the prepared graph, the calibration set, what it showed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fairlead.backends.onnx_block_weights import blockable_layers
from fairlead.backends.onnx_graph import hoist_constants, read_large, upgrade_opset
from fairlead.backends.onnx_layers import (
    Layer,
    control_flow,
    layers_of,
    name_nodes,
    run_taps,
    unknown_operators,
)
from fairlead.backends.onnx_qdq import observed_tensors
from fairlead.backends.onnx_quantization import QuantizableWeights, prepare_quantization
from fairlead.backends.onnx_ranges import TensorStatistics, collect_statistics, ranges_of
from fairlead.backends.openvino import OPENVINO, has_openvino
from fairlead.core.bundle import RuntimeSettings
from fairlead.core.errors import DataError, ModelError
from fairlead.core.ports import Feeds, first_dimension
from fairlead.optimize.quantization.config import QuantizationConfig

__all__ = ["Workbench"]

_BATCH_ROWS = 16
_GPTQ_ROWS = 2048
_CHANNEL_OPSET = 13


@dataclass(frozen=True)
class Workbench:
    """A model on the bench.

    Attributes:
        graph: The prepared graph, every node named.
        weights: What can be quantized in it.
        calibration: Rows that ranges are taken from, one array per input; None when there are none.
        config: The settings.
        runtime: Settings the original runs with.
        folder: Where the weights lie that were left outside the graph; None when none were.
    """

    graph: Any
    weights: QuantizableWeights
    calibration: Feeds | None
    config: QuantizationConfig
    runtime: RuntimeSettings
    folder: Path | None = None

    @classmethod
    def open(
        cls,
        path: Path,
        calibration: Feeds | None,
        config: QuantizationConfig,
        runtime: RuntimeSettings,
        *,
        is_large: bool = False,
    ) -> Workbench:
        """Read a model and prepare it.

        Args:
            path: The model.
            calibration: Rows that ranges are taken from; None when there are none.
            config: The settings.
            runtime: Settings the original runs with.
            is_large: Whether it is too large for one file: then its matrices stay where they are,
                to be read one by one later.

        Raises:
            ModelError: It cannot be read, its opset is too old, or, if large, it has no large
                matrices.
        """
        if is_large:
            graph, weights = _read_large(path, config.block_size)
            return cls(graph, weights, calibration, config, runtime, path.parent)
        graph, weights = prepare_quantization(path)
        return cls(name_nodes(graph), weights, calibration, config, runtime)

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """Matrix products and convolutions of the main graph that the settings allow."""
        return self.layers_in(self.static_graph)

    def layers_in(self, graph: Any) -> tuple[Layer, ...]:  # noqa: ANN401 (untyped library)
        """Return the layers of a rewritten graph that the settings allow."""
        wanted = self.config.operators
        return tuple(layer for layer in layers_of(graph) if not wanted or layer.operator in wanted)

    @cached_property
    def static_graph(self) -> Any:  # noqa: ANN401 (untyped library)
        """The graph in an opset that has scales per channel."""
        if _opset(self.graph) >= _CHANNEL_OPSET:
            return self.graph
        return name_nodes(hoist_constants(upgrade_opset(self.graph, oldest=_CHANNEL_OPSET)))

    @cached_property
    def statistics(self) -> dict[str, TensorStatistics]:
        """What the calibration set showed of the activations in front of the layers."""
        tensors = observed_tensors(self.static_graph)
        return collect_statistics(self.static_graph, tensors, self.rows(), batch_rows=_BATCH_ROWS)

    def rows(self) -> Feeds:
        """Return the calibration set.

        Raises:
            DataError: There is none.
        """
        if self.calibration is None:
            raise DataError(
                f"{self.config.method} needs rows to calibrate on, and there are too few",
                hint="give more rows, name some with --calibration, or use dynamic-int8",
            )
        return self.calibration

    def ranges(self, seen: Mapping[str, TensorStatistics]) -> dict[str, tuple[float, float]]:
        """Return the range of every activation, by the method of the settings."""
        return ranges_of(seen, self.config.calibration_method, self.config.percentile)

    def flow_into(self, layers: tuple[Layer, ...]) -> dict[str, NDArray[np.float32]]:
        """Return what flows into layers on the calibration set, shape (n, n_in), at most 2,048."""
        sources = list(dict.fromkeys(layer.source for layer in layers))
        found: dict[str, list[NDArray[np.float32]]] = {}
        counts: dict[str, int] = {}
        for values in run_taps(self.graph, sources, self.rows(), batch_rows=_BATCH_ROWS):
            for name, array in values.items():
                if counts.get(name, 0) < _GPTQ_ROWS:
                    table = np.asarray(array, np.float32).reshape(-1, array.shape[-1])
                    found.setdefault(name, []).append(table)
                    counts[name] = counts.get(name, 0) + len(table)
        tables = {name: np.concatenate(parts)[:_GPTQ_ROWS] for name, parts in found.items()}
        return {layer.name: tables[layer.source] for layer in layers if layer.source in tables}

    def few_rows(self, n_rows: int) -> Feeds:
        """Return the first calibration rows."""
        rows = self.rows()
        return {name: array[: min(n_rows, first_dimension(rows))] for name, array in rows.items()}

    @property
    def control_flow(self) -> tuple[str, ...]:
        """Operators that hold graphs of their own, which stay in float."""
        return control_flow(self.graph)

    @property
    def unknown_operators(self) -> tuple[str, ...]:
        """Operators that neither ONNX nor ONNX Runtime brings."""
        return unknown_operators(self.graph)

    @property
    def openvino(self) -> tuple[RuntimeSettings, ...]:
        """Settings for OpenVINO, in fp32 and bf16; none when it is not installed or not wanted."""
        if self.config.runtime == "onnxruntime" or not has_openvino():
            return ()
        return tuple(
            self.runtime.model_copy(
                update={"execution_provider": OPENVINO, "float_precision": precision}
            )
            for precision in ("fp32", "bf16")
        )


def _read_large(path: Path, block: int) -> tuple[Any, QuantizableWeights]:
    """Read a graph without the matrices that can be rounded in blocks; say what these are."""
    left: list[Layer] = []

    def leave(model: Any) -> list[str]:  # noqa: ANN401 (untyped library)
        left.extend(blockable_layers(name_nodes(model), block=block))
        return [layer.weight for layer in left]

    graph = name_nodes(read_large(path, leave=leave))
    opset = _opset(graph)
    if opset < _CHANNEL_OPSET:
        raise ModelError(
            f"opset {opset} is too old for a model of this size",
            hint=f"export it again with opset {_CHANNEL_OPSET} or newer",
        )
    n_weights = sum(layer.n_weights for layer in left)
    counts = Counter(layer.operator for layer in left)
    return graph, QuantizableWeights(tensors_by_operator=dict(counts), n_weights=n_weights)


def _opset(graph: Any) -> int:  # noqa: ANN401 (untyped library)
    return next((i.version for i in graph.opset_import if i.domain in ("", "ai.onnx")), 0)
