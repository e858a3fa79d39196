import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fairlead.core.errors import DataError
from fairlead.measure import budget as module
from fairlead.measure.budget import (
    binomial_lower,
    binomial_upper,
    judge_agreement,
    judge_correctness,
    judge_deviation,
    judge_errors,
)


def correctness(n_rows: int, worse: int, better: int = 0) -> tuple[np.ndarray, np.ndarray]:
    before, after = np.ones(n_rows), np.ones(n_rows)
    after[:worse] = 0
    before[worse : worse + better] = 0
    return before, after


@given(st.integers(1, 3000), st.floats(0, 1))
def test_binomial_limits_are_those_of_clopper_and_pearson(n_rows: int, share: float) -> None:
    events = round(n_rows * share)
    upper = 1.0 if events == n_rows else stats.beta.ppf(0.95, events + 1, n_rows - events)
    lower = 0.0 if events == 0 else stats.beta.ppf(0.05, events, n_rows - events + 1)
    assert binomial_upper(events, n_rows) == pytest.approx(upper, rel=6e-6)
    assert binomial_lower(events, n_rows) == pytest.approx(lower, rel=6e-6, abs=1e-9)


@pytest.mark.parametrize("degrees", [1, 3, 5, 10, 30, 1000])
def test_t_quantile(degrees: int) -> None:
    assert module._t_quantile(degrees) == pytest.approx(stats.t.ppf(0.95, degrees), rel=4e-3)


def test_no_flips_on_360_rows_prove_a_budget_of_one_point() -> None:
    drop = judge_correctness(*correctness(360, 0), budget=0.01)
    assert drop.verdict == "proven"
    assert drop.upper == pytest.approx(0.00829, abs=1e-5)


def test_one_flip_on_360_rows_is_within_but_not_proven() -> None:
    drop = judge_correctness(*correctness(360, 1), budget=0.01)
    assert drop.verdict == "unproven"
    assert drop.is_within()
    assert not drop.is_within(allow_unproven=False)
    assert drop.rows_to_prove is not None
    assert 360 < drop.rows_to_prove < 1000


def test_the_stated_number_of_rows_does_prove_it() -> None:
    drop = judge_correctness(*correctness(300, 1), budget=0.01)
    assert drop.rows_to_prove is not None
    share = 1 / 300
    assert module._difference_upper(share * drop.rows_to_prove, 0, drop.rows_to_prove) <= 0.01


def test_a_measured_drop_above_the_budget_is_broken() -> None:
    drop = judge_correctness(*correctness(100, 2), budget=0.01)
    assert drop.verdict == "broken"
    assert not drop.is_within()
    assert drop.rows_to_prove is None


def test_rows_that_got_better_make_up_for_rows_that_got_worse() -> None:
    drop = judge_correctness(*correctness(1000, 20, 20), budget=0.01)
    assert drop.value == 0
    assert drop.verdict == "unproven"
    assert (drop.n_worse, drop.n_better) == (20, 20)


def test_a_budget_of_zero_allows_no_loss_and_no_more() -> None:
    assert judge_correctness(*correctness(50, 0), budget=0).is_within()
    assert not judge_correctness(*correctness(5000, 1), budget=0).is_within()
    assert judge_correctness(*correctness(1000, 0, 30), budget=0).verdict == "proven"


def test_a_nan_metric_is_an_error_with_numbers() -> None:
    with pytest.raises(DataError, match="not finite on 1 of 3 rows"):
        judge_correctness([1, np.nan, 1], [1, 1, 1], budget=0.01)
    with pytest.raises(DataError, match="not finite"):
        judge_deviation([1.0, np.nan], [1.0, 2.0], budget=0.01)


def test_no_rows_and_unequal_rows_are_errors() -> None:
    with pytest.raises(DataError, match="0 and 0 rows"):
        judge_correctness([], [], budget=0.01)
    with pytest.raises(DataError, match="2 and 1 rows"):
        judge_agreement(["a", "b"], ["a"], budget=0.01)
    with pytest.raises(DataError, match="shapes"):
        judge_deviation(np.ones((2, 3)), np.ones((2, 4)), budget=0.01)


@pytest.mark.parametrize(
    ("n_rows", "worse", "better"),
    [(60, 0.05, 0.02), (360, 0.012, 0.0), (360, 0.1, 0.09), (2000, 0.3, 0.3)],
)
def test_the_bound_misses_the_true_drop_in_at_most_one_of_twenty(
    n_rows: int, worse: float, better: float
) -> None:
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(n_rows, [worse, better, 1 - worse - better], size=500)
    missed = np.mean([module._difference_upper(w, b, n_rows) < worse - better for w, b, _ in drawn])
    assert missed <= 0.05 + 2.6 * math.sqrt(0.05 * 0.95 / 500)


def test_a_true_drop_of_three_points_is_rarely_shipped_under_a_budget_of_one() -> None:
    rng = np.random.default_rng(1)
    shipped = 0
    for worse in rng.binomial(360, 0.03, size=500):
        shipped += judge_correctness(*correctness(360, int(worse)), budget=0.01).is_within()
    assert shipped / 500 < 0.02


def test_fieller_bound_misses_the_true_increase_in_at_most_one_of_twenty() -> None:
    rng = np.random.default_rng(3)
    missed = 0
    for _ in range(600):
        before = rng.exponential(1.0, 80)
        after = 1.02 * before + rng.normal(0, 0.1, 80)
        missed += judge_errors(before, after, spread=1.0, budget=0.05).upper < 0.02
    assert missed / 600 <= 0.05 + 2.6 * math.sqrt(0.05 * 0.95 / 600)


def test_error_increase_is_relative() -> None:
    before = np.linspace(1, 2, 200)
    drop = judge_errors(before, before * 1.02, spread=10.0, budget=0.05)
    assert drop.value == pytest.approx(0.02)
    assert drop.verdict == "proven"


def test_an_error_far_below_the_spread_of_the_labels_is_judged_against_the_spread() -> None:
    before, after = np.full(100, 1e-7), np.full(100, 1e-5)
    drop = judge_errors(before, after, spread=1.0, budget=0.01)
    assert drop.verdict == "proven"
    assert drop.value == pytest.approx(1e-3, rel=0.02)


def test_a_model_that_gives_no_number_any_more_breaks_every_budget() -> None:
    drop = judge_errors([1.0, 1.0], [1.0, np.nan], spread=1.0, budget=1.0)
    assert drop.value == math.inf
    assert drop.verdict == "broken"
    assert judge_deviation([[1.0, 2.0]] * 3, [[1.0, np.inf]] * 3, budget=1.0).verdict == "broken"
    assert judge_correctness([1, 1], [1, np.nan], budget=0.1).n_worse == 1


def test_deviation_of_vectors_is_one_minus_cosine_and_sees_their_length() -> None:
    rng = np.random.default_rng(0)
    before = rng.normal(size=(50, 16))
    turned = before + 0.02 * rng.normal(size=(50, 16))
    cosine = np.sum(before * turned, axis=1) / (
        np.linalg.norm(before, axis=1) * np.linalg.norm(turned, axis=1)
    )
    drop = judge_deviation(before, turned, budget=0.01)
    assert drop.value == pytest.approx(1 - cosine.mean(), rel=0.15)
    assert judge_deviation(before, 2 * before, budget=0.01).value == pytest.approx(0.2)


def test_deviation_of_single_values_is_one_minus_r2() -> None:
    before = np.random.default_rng(0).normal(5, 2, 300)
    after = before + 0.2
    drop = judge_deviation(before, after, budget=0.05)
    assert drop.value == pytest.approx(0.04 / before.var())
    assert judge_deviation(np.full(9, 3.0), np.full(9, 3.0), budget=0).is_within()


def test_one_row_proves_nothing() -> None:
    drop = judge_deviation([[1.0, 2.0]], [[1.0, 2.0]], budget=0.01)
    assert drop.upper == math.inf
    assert drop.verdict == "unproven"


def test_agreement_counts_changed_classes_of_any_kind() -> None:
    drop = judge_agreement(np.array(["a", "b", "b"], object), ["a", "b", "c"], budget=0.5)
    assert drop.value == pytest.approx(1 / 3)
    assert drop.metric == "disagreement"


@given(st.integers(1, 400), st.integers(0, 50), st.integers(0, 50), st.floats(0, 1))
def test_the_bound_lies_above_the_drop(n_same: int, worse: int, better: int, limit: float) -> None:
    drop = judge_correctness(*correctness(n_same + worse + better, worse, better), budget=limit)
    assert drop.value <= drop.upper
    assert drop.is_within() == (drop.value <= limit)
