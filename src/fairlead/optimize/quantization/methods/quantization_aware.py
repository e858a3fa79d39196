"""Quantization-aware training of a torch module: it learns with the rounding that it will have.

Where quantization after training breaks the budget, training with simulated 8-bit values (Jacob
et al., CVPR 2018) wins most of it back. The original is the teacher; the result is an ONNX graph
with QDQ pairs in the ranges that training found, judged like every other quantization.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fairlead.backends.converted import versions_of
from fairlead.backends.judges import judge_for
from fairlead.backends.onnx_graph import hoist_constants, parse_graph, upgrade_opset, write_graph
from fairlead.backends.onnx_layers import layers_of, name_nodes
from fairlead.backends.onnx_qdq import QdqPlan, insert_qdq, observed_tensors
from fairlead.backends.onnx_ranges import collect_statistics, ranges_of
from fairlead.backends.onnxruntime import OnnxRunner
from fairlead.backends.torch_material import TorchMaterial, module_outputs
from fairlead.backends.torch_models import module_to_onnx
from fairlead.backends.torch_quantization_aware import FakeQuantized, fold_batch_norms
from fairlead.backends.torch_training import Checkpoints, Trained, TrainingPlan, train
from fairlead.core.bundle import Bundle
from fairlead.core.dataset import Dataset, bind
from fairlead.core.ports import Feeds, Progress, SilentProgress
from fairlead.core.report import Finding, Measure, Outcome
from fairlead.measure.acceptance import Candidate, conclude, held_back_rows
from fairlead.measure.comparison import Comparison, compare
from fairlead.measure.judging import Judge
from fairlead.measure.quality import run_batches
from fairlead.optimize.quantization.config import QuantizationConfig

__all__ = ["train_quantized"]

_SKILL = "quantization-for-inference"
_STAGE = "quantization-aware"
_OPSET = 13


def train_quantized(
    bundle: Bundle,
    data: Dataset,
    config: QuantizationConfig,
    *,
    out: Path,
    training: TorchMaterial,
    plan: TrainingPlan,
    progress: Progress | None = None,
) -> Outcome[Bundle]:
    """Train a module with simulated 8-bit values and write it with QDQ pairs.

    Half of the rows say when to stop, the other half decides.

    Args:
        bundle: Packed from the module; it is not changed.
        data: Rows the module was not trained on.
        config: The budget, the goal and the choice of rows.
        out: Directory to create.
        training: The module and its training data.
        plan: How to train.
        progress: Hears of every epoch.

    Returns:
        `done`, `kept` or `refused`, as for every quantization.

    Raises:
        DataError: The rows do not fit the model.
        ModelError: The module cannot be exported.
        ConflictError: `out` exists.
        WorkspaceError: It cannot be written.
    """
    judge = judge_for(bundle, metric=config.metric, budget=config.max_drop, seed=config.seed)
    rows = held_back_rows(data, max_rows=config.max_rows, seed=config.seed)
    search, last = rows.split(0.5, seed=config.seed)
    columns = bundle.manifest.feature_columns
    feeds = bind(search, bundle.signature, feature_columns=columns)
    original = OnnxRunner(bundle.model_path)
    try:
        score = _score(bundle, original, feeds, search, judge, training.device)
        module, ranges, trained = _train(training, plan, score, progress or SilentProgress())
        model = _with_pairs(bundle, module, ranges, feeds, config)
        comparison = _compare(bundle, original, model, last, config, judge)
    finally:
        original.close()
    candidate = Candidate(
        model=model,
        change="quantization-aware training, int8",
        comparison=comparison,
        packages=versions_of("torch", "onnx", "onnxruntime"),
        measures=(Measure(name="epochs", value=trained.epochs, unit="count"),),
        findings=(
            Finding(
                level="info",
                text=f"{len(ranges)} layers trained with 8-bit values for {trained.epochs} epochs",
            ),
        ),
        details={"method": _STAGE, "layers": sorted(ranges)},
    )
    return conclude(
        bundle,
        candidate,
        last,
        skill=_SKILL,
        title="Quantization-aware training",
        out=out,
        goal=config.goal,
        allow_unproven=config.allow_unproven,
    )


def _score(
    bundle: Bundle,
    original: OnnxRunner,
    feeds: Feeds,
    rows: Dataset,
    judge: Judge,
    device: str,
) -> Callable[[Any], float]:
    """Return what says the drop of a module on the rows that choose."""
    before = run_batches(original, feeds, bundle.runtime.max_batch_size)
    names = [spec.name for spec in bundle.signature.outputs]

    def score(module: Any) -> float:  # noqa: ANN401 (untyped library)
        return judge(before, module_outputs(module, feeds, names, device), rows.labels).value

    return score


def _train(
    training: TorchMaterial,
    plan: TrainingPlan,
    score: Callable[[Any], float],
    progress: Progress,
) -> tuple[Any, dict[str, tuple[float, float]], Trained]:
    module = fold_batch_norms(training.copy())
    wrapped = FakeQuantized.wrap(module)
    # One look at the data gives every range a start, so that the first score means something.
    module(*training.example(64))
    keeper = None if training.checkpoints is None else Checkpoints(training.checkpoints)
    trained = train(
        module,
        training,
        plan,
        teacher=training.copy(),
        score=score,
        stage=_STAGE,
        checkpoints=keeper,
        progress=progress,
    )
    return module, wrapped.release(), trained


def _with_pairs(
    bundle: Bundle,
    module: Any,  # noqa: ANN401 (untyped library)
    ranges: dict[str, tuple[float, float]],
    feeds: Feeds,
    config: QuantizationConfig,
) -> bytes:
    """Export a trained module and lay pairs around its layers, in the ranges that it learnt."""
    few = {name: array[:4] for name, array in feeds.items()}
    names = [spec.name for spec in bundle.signature.outputs]
    graph = parse_graph(module_to_onnx(module, few, names))
    graph = name_nodes(hoist_constants(upgrade_opset(graph, oldest=_OPSET)))
    rows = {name: array[: config.calibration_rows] for name, array in feeds.items()}
    seen = collect_statistics(graph, observed_tensors(graph), rows, batch_rows=16)
    found = ranges_of(seen, "minmax", config.percentile)
    layers = [layer for layer in layers_of(graph) if layer.weight]
    for layer in layers:
        if layer.weight in ranges:
            found[layer.source] = ranges[layer.weight]
    plan = QdqPlan(tuple(layer.name for layer in layers), found)
    return write_graph(insert_qdq(graph, plan))


def _compare(
    bundle: Bundle,
    original: OnnxRunner,
    model: bytes,
    last: Dataset,
    config: QuantizationConfig,
    judge: Judge,
) -> Comparison:
    feeds = bind(last, bundle.signature, feature_columns=bundle.manifest.feature_columns)
    runner = OnnxRunner(model)
    try:
        return compare(
            original,
            runner,
            manifest=bundle.manifest,
            feeds=feeds,
            labels=last.labels,
            budget=config.max_drop,
            sizes=(bundle.size_bytes, len(model)),
            served_rows=bundle.runtime.max_batch_size,
            batch_rows=config.batch_rows,
            time_limit_s=config.time_limit_s,
            seed=config.seed,
            judge=judge,
        )
    finally:
        runner.close()
