import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.measure.budget import QualityDrop
from fairlead.optimize.quantization.mixed_precision import (
    LayerCosts,
    choose_layers,
    search_layers,
)
from fairlead.optimize.quantization.recipe import Recipe


def drop(value: float, budget: float) -> QualityDrop:
    return QualityDrop(
        metric="output_deviation", value=value, upper=value, budget=budget, n_rows=100,
        n_worse=1, n_better=0,
    )  # fmt: skip


def costs(errors: list[float], gains: list[float]) -> LayerCosts:
    names = tuple(f"l{place}" for place in range(len(errors)))
    return LayerCosts(names, np.array(errors), np.array(gains), np.array(gains))


def test_the_dearest_error_per_gain_goes_first() -> None:
    known = costs([1.0, 1.0, 5.0], [3.0, 1.0, 3.0])
    assert choose_layers(known, 1.5) == {"l1", "l2"}
    assert choose_layers(known, 2.5) == {"l2"}
    assert choose_layers(known, 0.5) == {"l0", "l1", "l2"}


def test_a_layer_that_eight_bits_slow_down_stays_in_float() -> None:
    assert choose_layers(costs([0.1, 0.1], [1.0, -1.0]), 10) == {"l1"}


@given(
    st.lists(st.tuples(st.floats(0.01, 10), st.floats(0.01, 10)), min_size=1, max_size=12),
    st.floats(0, 1),
)
def test_the_sum_of_errors_never_exceeds_the_limit(layers, share) -> None:
    known = costs([e for e, _ in layers], [g for _, g in layers])
    limit = share * float(known.errors.sum())
    kept = choose_layers(known, limit)
    total = sum(e for n, e in zip(known.names, known.errors, strict=True) if n not in kept)
    assert total <= limit * (1 + 1e-6) + 1e-9


@pytest.mark.parametrize("budget", [0.5, 0.1, 0.02, 0.004])
@pytest.mark.parametrize("power", [1.0, 1.4])
def test_four_evaluations_meet_the_budget_with_most_of_the_gain(budget, power) -> None:
    rng = np.random.default_rng(3)
    errors = rng.lognormal(-5, 1.5, 48)
    known = costs(errors.tolist(), rng.uniform(0.5, 2, 48).tolist())
    total = float(errors.sum())
    worst = 3 * budget

    def rebuild(kept: frozenset[str]) -> bytes:
        return ",".join(sorted(kept)).encode()

    def evaluate(model: bytes) -> QualityDrop:
        kept = set(model.decode().split(","))
        left = sum(e for n, e in zip(known.names, errors, strict=True) if n not in kept)
        return drop(worst * (left / total) ** power, budget)

    recipe = Recipe("static-int8", "all", b"", 1, layers=known.names, rebuild=rebuild)
    found = search_layers(
        recipe, known, drop(worst, budget), evaluate, evaluations=3,
        is_within=lambda one: one.is_within(),
    )  # fmt: skip
    assert found is not None
    assert found.drop.value <= budget
    assert found.saved_ms > 0.75 * known.saved_ms.sum()
