"""Which layers stay in float: as few evaluations as possible, as much 8-bit work as possible.

1. Sensitivity: every layer alone in 8 bits, on a few calibration rows, by one session in which an
   extra input turns layers on and off.
2. Gain: CPU milliseconds that 8 bits save in each kind of layer, measured.
3. Choice: the layers that save most time while the sum of their errors stays below a limit, as an
   integer programme (HiGHS through `scipy.optimize.milp`).
4. Limit: the one number that is searched. Each full evaluation says how the sum of errors turns
   into a drop of quality, and the secant gives the next limit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fairlead.backends.onnx_graph import write_graph
from fairlead.backends.onnx_layer_timing import saved_ms_per_layer
from fairlead.backends.onnx_qdq import SWITCHES
from fairlead.backends.onnx_quantization import quantize_dynamic_int8
from fairlead.backends.onnxruntime import OnnxRunner
from fairlead.core.errors import ModelError
from fairlead.core.extras import requires
from fairlead.core.ports import Array, Feeds
from fairlead.measure.budget import QualityDrop
from fairlead.measure.comparison import rows_for
from fairlead.optimize.quantization.recipe import Recipe
from fairlead.optimize.quantization.workbench import Workbench

__all__ = ["LayerCosts", "MixedPrecision", "choose_layers", "measure_layers", "search_layers"]

_ROWS = 8
_AIM = 0.85
"""Part of the budget that the next limit aims at: the last test has other rows."""
_SMALLEST = 1e-12


@dataclass(frozen=True)
class LayerCosts:
    """What is known of the layers of one recipe.

    Attributes:
        names: The layers.
        errors: What each alone does to the outputs, as a share of their power, shape (n,).
        saved_ms: CPU milliseconds per call that 8 bits save, shape (n,).
        gains: What the goal counts: milliseconds, or weights, shape (n,).
    """

    names: tuple[str, ...]
    errors: NDArray[np.float64]
    saved_ms: NDArray[np.float64]
    gains: NDArray[np.float64]


@dataclass(frozen=True)
class MixedPrecision:
    """A choice of layers that was evaluated.

    Attributes:
        model: The model with some layers in float.
        float_layers: Those layers.
        drop: What it cost on the search rows.
        costs: What was known of the layers.
        saved_ms: Share of the saving of all layers in 8 bits that is left, in ms.
    """

    model: bytes = field(repr=False)
    float_layers: tuple[str, ...]
    drop: QualityDrop
    costs: LayerCosts
    saved_ms: float


def measure_layers(work: Workbench, recipe: Recipe) -> LayerCosts:
    """Measure error and gain of every layer of a recipe.

    Raises:
        DataError: There is no calibration set.
        ModelError: The model cannot be run.
    """
    if recipe.simulate is None:
        raise ModelError(
            f"the layers of {recipe.title} cannot be chosen", hint="choose another method"
        )
    rows = work.few_rows(_ROWS)
    runner = OnnxRunner(write_graph(recipe.simulate()))
    try:
        errors = _errors(runner, rows, len(recipe.layers))
    finally:
        runner.close()
    original = OnnxRunner(write_graph(work.graph))
    try:
        batch = rows_for(original, rows, work.config.batch_rows)
    finally:
        original.close()
    runtime = recipe.runtime or work.runtime.model_copy(update={"intra_op_threads": 1})
    saved = saved_ms_per_layer(
        work.static_graph,
        recipe.layers,
        batch,
        runtime,
        quantize=quantize_dynamic_int8 if recipe.method == "dynamic-int8" else None,
    )
    saved_ms = np.array([saved.get(name, 0.0) for name in recipe.layers])
    weights = {layer.name: layer.n_weights for layer in work.layers}
    n_weights = np.array([float(weights.get(name, 0)) for name in recipe.layers])
    gains = _gains(saved_ms, n_weights, work.config.goal)
    return LayerCosts(recipe.layers, errors, saved_ms, gains)


def _gains(
    saved_ms: NDArray[np.float64], n_weights: NDArray[np.float64], goal: str
) -> NDArray[np.float64]:
    """Return what the goal counts per layer; without a goal, bytes count where time is lost."""
    if goal == "size":
        return n_weights
    if goal == "speed":
        return saved_ms
    share = n_weights / max(float(n_weights.sum()), 1.0)
    bonus = 0.1 * max(float(saved_ms.max(initial=0.0)), 1e-6) * share
    return np.where(saved_ms > 0, saved_ms, 0.0) + bonus


def _errors(runner: OnnxRunner, rows: Feeds, n_layers: int) -> NDArray[np.float64]:
    size = _fixed_batch(runner)
    feeds = {name: array[np.arange(size) % len(array)] if size else array
             for name, array in rows.items()}  # fmt: skip

    def outputs(is_on: NDArray[np.bool_]) -> dict[str, Array]:
        return runner.run({**feeds, SWITCHES: is_on})

    base = outputs(np.zeros(n_layers, bool))
    found = []
    for place in range(n_layers):
        is_on = np.zeros(n_layers, bool)
        is_on[place] = True
        found.append(_distance(base, outputs(is_on)))
    return np.array(found)


def _fixed_batch(runner: OnnxRunner) -> int | None:
    specs = (spec for spec in runner.signature.inputs if spec.name != SWITCHES)
    return next((spec.shape[0] for spec in specs if spec.shape and spec.shape[0] > 0), None)


def _distance(base: Mapping[str, Array], other: Mapping[str, Array]) -> float:
    """Return the power of the difference over that of the outputs, the worst output counting."""
    worst = 0.0
    for name, old in base.items():
        if old.dtype.kind != "f":
            continue
        first, second = old.astype(np.float64), other[name].astype(np.float64)
        if not np.isfinite(second[np.isfinite(first)]).all():
            return 1e6
        first, second = np.nan_to_num(first), np.nan_to_num(second)
        power = float(np.sum(first**2)) or 1.0
        worst = max(worst, float(np.sum((first - second) ** 2)) / power)
    return worst


def choose_layers(costs: LayerCosts, limit: float) -> frozenset[str]:
    """Return the layers that stay in float so that the errors of the others sum up to the limit.

    Args:
        costs: Error and gain of every layer.
        limit: Largest sum of errors.
    """
    with requires("optimize", needed_by="choosing layers"):
        from scipy.optimize import Bounds, LinearConstraint, milp
    gains = costs.gains
    scale = max(float(costs.errors.max(initial=0.0)), _SMALLEST)
    found = milp(
        -gains / max(float(np.abs(gains).max(initial=0.0)), _SMALLEST),
        constraints=LinearConstraint(costs.errors[None, :] / scale, -np.inf, limit / scale),
        bounds=Bounds(0, 1),
        integrality=np.ones(len(gains), dtype=np.int64),
        options={"time_limit": 5.0},
    )
    if found.x is None:
        return frozenset(costs.names)
    return frozenset(name for name, value in zip(costs.names, found.x, strict=True) if value < 0.5)


def search_layers(
    recipe: Recipe,
    costs: LayerCosts,
    first: QualityDrop,
    evaluate: Callable[[bytes], QualityDrop],
    *,
    evaluations: int,
    is_within: Callable[[QualityDrop], bool],
) -> MixedPrecision | None:
    """Search the limit on the sum of errors whose choice of layers just keeps the budget.

    Args:
        recipe: What is rebuilt with some layers in float.
        costs: Error and gain of every layer.
        first: What all layers in 8 bits cost; above the budget.
        evaluate: Judges a model on the search rows.
        evaluations: Most models to judge.
        is_within: Whether a drop keeps the budget.

    Returns:
        The best choice that keeps the budget, or None when there was none.
    """
    if recipe.rebuild is None:
        return None
    low, high = 0.0, float(costs.errors.sum())
    limit = _next_limit(low, high, high, first)
    tried: set[frozenset[str]] = {frozenset()}
    best: MixedPrecision | None = None
    for _ in range(evaluations):
        chosen = choose_layers(costs, limit)
        while chosen in tried and limit > high * 1e-4 and best is None:
            high, limit = limit, limit / 2
            chosen = choose_layers(costs, limit)
        if chosen in tried or len(chosen) == len(costs.names):
            break
        tried.add(chosen)
        model = recipe.rebuild(chosen)
        drop = evaluate(model)
        if is_within(drop):
            saved = sum(
                gain
                for name, gain in zip(costs.names, costs.saved_ms, strict=True)
                if name not in chosen
            )
            best = MixedPrecision(model, tuple(sorted(chosen)), drop, costs, float(saved))
            low = limit
        else:
            high = limit
        limit = _next_limit(low, high, limit, drop)
    return best


def _next_limit(low: float, high: float, limit: float, drop: QualityDrop) -> float:
    """Return where the secant through this drop and zero meets the budget, between the ends."""
    aim = _AIM * drop.budget
    usable = np.isfinite(drop.value) and drop.value > 0
    guess = limit * aim / drop.value if usable else (low + high) / 2
    if not np.isfinite(drop.value):
        guess = limit / 10
    floor, ceiling = low + 0.05 * (high - low), high - 0.05 * (high - low)
    if low == 0:
        floor = 0.0
    return float(np.clip(guess, floor, ceiling))
