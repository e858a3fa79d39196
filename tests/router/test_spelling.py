"""Slips of the finger."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.router import ask
from fairlead.router.scene import observe
from fairlead.router.spelling import repaired
from fairlead.router.surface import surface_of
from fairlead.router.text import stem


@pytest.mark.parametrize(
    ("slip", "word"),
    [
        ("deplyoment", "deployment"),
        ("quantizaton", "quantization"),
        ("monitorng", "monitoring"),
        ("accurracy", "accuracy"),
        ("mdoel", "model"),
        ("moel", "model"),
        ("moddel", "model"),
        ("depoy", "deploy"),
        ("MLpOs", "MLOps"),
        ("lagre", "large"),
        ("kuberntes", "kubernetes"),
    ],
)
def test_a_slip_is_read_as_the_word_it_is_next_to(slip, word):
    assert repaired(stem(slip)) == stem(word)


@pytest.mark.parametrize(
    "word",
    ["latency", "sport", "flurbish", "v2", "lunch", "spit", "silver", "模型", "drift", "mlflow"],
)
def test_words_that_are_known_or_like_no_other_stay(word):
    assert repaired(stem(word)) == stem(word)


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("quantize my model to int8", "quanitze my model to int8"),
        ("canary release of the new model", "canray release of the new model"),
        ("track experiments of the team", "track expermients of the team"),
        ("detect data drift in production", "detect data drift in prodcution"),
    ],
)
def test_a_slip_changes_no_answer(text, other):
    assert ask(text).skill_ids == ask(other).skill_ids


def test_the_encoder_reads_the_word_that_was_meant():
    assert surface_of(observe("My moddel is too slwo")) == "My model is too slow"


@given(st.text(alphabet="abcdefghijklmnopqrstuvwxyz", min_size=1, max_size=15))
def test_what_was_repaired_needs_no_repair(word):
    assert repaired(repaired(word)) == repaired(word)
