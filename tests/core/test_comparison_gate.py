"""What a stored comparison must say before a changed bundle goes any further."""

import math

import pytest

from fairlead.core.comparison import ComparisonGate, EdgeOutcome, ModelComparison
from fairlead.core.errors import ConfigError

QUANTIZED = "quantization-for-inference"


def stored(**changes):
    values = {
        "parent_digest": "sha256:a", "data_digest": "sha256:b", "metric": "accuracy_drop",
        "drop": 0.004, "drop_upper": 0.02, "budget": 0.01, "verdict": "unproven", "n_rows": 400,
        "lost_rows": 0,
    }  # fmt: skip
    return ModelComparison.model_validate({**values, **changes})


def refusals(found, made_by=QUANTIZED, **settings):
    return ComparisonGate.parse(settings).refusals(found, made_by=made_by)


def test_a_comparison_within_its_budget_passes():
    assert refusals(stored()) == ()


@pytest.mark.parametrize(
    ("changes", "settings", "words"),
    [
        ({"drop": 0.02, "verdict": "broken"}, {}, "more than 0.01"),
        ({"verdict": "broken"}, {}, "broke the budget"),
        ({"drop": math.nan}, {}, "more than 0.01"),
        ({"lost_rows": 3}, {}, "3 rows became NaN"),
        ({"edges": (EdgeOutcome(kind="maxima", is_lost=True),)}, {}, "maxima"),
        ({}, {"max_stored_drop": 0.001}, "more than 0.001"),
        ({}, {"max_stored_upper": 0.01}, "95 % bound"),
        ({"drop_upper": math.inf}, {"max_stored_upper": 0.5}, "unknown"),
    ],
)
def test_what_breaks_a_limit_is_refused_with_the_number(changes, settings, words):
    (reason,) = refusals(stored(**changes), **settings)
    assert words in reason


def test_a_limit_of_its_own_replaces_the_budget_of_the_change():
    assert refusals(stored(drop=0.02, verdict="broken"), max_stored_drop=0.05) == ()


def test_a_rewritten_bundle_must_carry_a_comparison_and_a_packed_one_need_not():
    assert "carries no comparison" in refusals(None)[0]
    assert refusals(None, made_by="pack") == ()
    assert refusals(None, made_by="pack", comparison="required") != ()


def test_nobody_looks_when_it_is_ignored():
    assert refusals(stored(lost_rows=9), comparison="ignored") == ()
    assert refusals(None, comparison="ignored") == ()


def test_a_limit_outside_its_range_is_refused():
    with pytest.raises(ConfigError, match="max_stored_drop"):
        ComparisonGate.parse({"max_stored_drop": 2})
