"""Quantize a bundle: smaller, usually faster, and never beyond the budget."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fairlead.backends.onnx_graph import onnx_versions
from fairlead.backends.onnxruntime import OnnxRunner
from fairlead.core.bundle import Bundle
from fairlead.core.dataset import Array, Dataset, bind
from fairlead.core.errors import ModelError
from fairlead.core.ports import Progress, SilentProgress
from fairlead.core.report import Finding, Outcome, Table
from fairlead.measure.acceptance import Candidate, conclude, held_back_rows, keep
from fairlead.measure.comparison import Comparison, compare, decide
from fairlead.optimize.quantization.card import CARD
from fairlead.optimize.quantization.config import QuantizationConfig
from fairlead.optimize.quantization.methods import METHODS, Recipe

__all__ = ["quantize"]

_TITLE = "Quantization"


def quantize(
    bundle: Bundle,
    data: Dataset,
    config: QuantizationConfig,
    *,
    out: Path,
    progress: Progress | None = None,
) -> Outcome[Bundle]:
    """Store the weights of a bundle in 8 bits if the held-back rows allow it.

    Args:
        bundle: What is quantized; it is not changed.
        data: Rows the model was not trained on, with labels where they are known.
        config: The method, the budget and the goal.
        out: Directory to create.
        progress: Hears how far the work is.

    Returns:
        `done` with the derived bundle, `kept` with a copy of the original when there is nothing
        to quantize or nothing to gain, `refused` with the original when the budget is broken and
        nothing was written.

    Raises:
        DataError: The rows do not fit the model, or no metric can be computed on them.
        ModelError: The model cannot be read or run.
        ConflictError: `out` exists.
        WorkspaceError: It cannot be written.
    """
    says = progress or SilentProgress()
    if bundle.manifest.kind != "onnx":
        return _keep(bundle, f"a {bundle.manifest.kind} model has no graph to rewrite", out)
    rows = held_back_rows(data, max_rows=config.max_rows, seed=config.seed)
    feeds = bind(rows, bundle.signature, feature_columns=bundle.manifest.feature_columns)
    says.begin("quantize", 2)
    try:
        recipes = METHODS[config.method](bundle.model_path)
    except ModelError as exc:
        # A model that runs but cannot be rewritten is still good: it stays.
        OnnxRunner(bundle.model_path).close()
        return _keep(bundle, exc.message, out, advice=exc.hint)
    says.advance()
    if not recipes:
        return _keep(bundle, "it has no fp32 weights of layers that can run in 8 bits", out)
    tried = [_try(recipe, bundle, feeds, rows.labels, config) for recipe in recipes]
    says.advance()
    candidate = max((one for one in tried if one is not None), key=_merit(config), default=None)
    if candidate is None:
        return _keep(bundle, "ONNX Runtime cannot run the quantized model", out)
    return conclude(
        bundle,
        candidate,
        rows,
        skill=CARD.id,
        title=_TITLE,
        out=out,
        goal=config.goal,
        allow_unproven=config.allow_unproven,
    )


def _keep(bundle: Bundle, reason: str, out: Path, advice: str = "") -> Outcome[Bundle]:
    hint = advice or "`fairlead optimize tune` may still make it faster on this machine"
    return keep(bundle, reason, skill=CARD.id, title=_TITLE, out=out, advice=hint)


def _try(
    recipe: Recipe,
    bundle: Bundle,
    feeds: dict[str, Array],
    labels: Array | None,
    config: QuantizationConfig,
) -> Candidate | None:
    """Measure one recipe; None when the result cannot be run."""
    before = OnnxRunner(bundle.model_path)
    try:
        after = OnnxRunner(recipe.model)
    except ModelError:
        before.close()
        return None
    try:
        comparison = compare(
            before,
            after,
            manifest=bundle.manifest,
            feeds=feeds,
            labels=labels,
            budget=config.max_drop,
            sizes=(bundle.size_bytes, len(recipe.model)),
            served_rows=bundle.runtime.max_batch_size,
            batch_rows=config.batch_rows,
            time_limit_s=config.time_limit_s,
            seed=config.seed,
        )
    finally:
        before.close()
        after.close()
    return _candidate(recipe, comparison, config)


def _candidate(recipe: Recipe, comparison: Comparison, config: QuantizationConfig) -> Candidate:
    speed = comparison.speed
    return Candidate(
        model=recipe.model,
        change=f"{config.method} ({recipe.name})",
        comparison=comparison,
        packages=onnx_versions(),
        tables=(
            Table(
                title="Original and quantized model, one thread",
                columns=("", "original", "quantized"),
                rows=(
                    ("bytes", comparison.size_before, comparison.size_after),
                    ("CPU ms per call", speed.before.cpu_median_ms, speed.after.cpu_median_ms),
                    ("latency p50 ms", speed.before.latency_p50_ms, speed.after.latency_p50_ms),
                    ("latency p99 ms", speed.before.latency_p99_ms, speed.after.latency_p99_ms),
                    ("rows per s", speed.before.throughput_rps, speed.after.throughput_rps),
                ),
            ),
        ),
        findings=(
            Finding(level="info", text=f"weights in 8 bits: {recipe.name} ({recipe.n_weights:,})"),
        ),
        details={"method": config.method, "n_weights": recipe.n_weights},
    )


def _merit(config: QuantizationConfig) -> Callable[[Candidate], tuple[int, float]]:
    order = {"refused": 0, "kept": 1, "done": 2}

    def merit(candidate: Candidate) -> tuple[int, float]:
        verdict, _ = decide(
            candidate.comparison, goal=config.goal, allow_unproven=config.allow_unproven
        )
        return order[verdict], candidate.comparison.speed.ratio.value

    return merit
