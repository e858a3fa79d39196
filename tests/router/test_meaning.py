"""What words mean: the vectors that ship."""

import numpy as np
import pytest

from fairlead.router.features import BUCKETS, SIZE, features_of
from fairlead.router.meaning import DIMENSIONS, load_vectors, meaning_of
from fairlead.router.scene import observe
from fairlead.router.text import stem


def closeness(one, other):
    return float(meaning_of({stem(one): 1}) @ meaning_of({stem(other): 1}))


@pytest.mark.parametrize(
    ("word", "near", "far"),
    [
        ("replicas", "autoscaler", "tokenizer"),
        ("latency", "throughput", "license"),
        ("pruning", "distillation", "dashboard"),
        ("crash", "hang", "dataset"),
    ],
)
def test_words_of_alike_company_lie_close(word, near, far):
    assert closeness(word, near) > closeness(word, far)


def test_the_meaning_of_a_text_has_length_one_or_none():
    assert np.linalg.norm(meaning_of({"latency": 3, "drift": 1})) == pytest.approx(1, abs=1e-5)
    assert not meaning_of({"flurbish": 1}).any()
    assert not meaning_of({}).any()


def test_the_vectors_that_ship_are_small_and_complete():
    vectors = load_vectors()

    assert vectors.rows.shape == (len(vectors.places), DIMENSIONS)
    assert vectors.rows.nbytes < 5_000_000
    assert vectors.weights.shape == (len(vectors.places),)


def test_the_meaning_stands_behind_the_hashed_features():
    places, values = features_of(observe("the canary of the model drifts"))

    assert places[-DIMENSIONS:].tolist() == list(range(BUCKETS, SIZE))
    assert np.linalg.norm(values[-DIMENSIONS:]) == pytest.approx(1.5, abs=1e-4)


def test_a_line_said_again_does_not_count_again():
    once, values = features_of(observe("prune the model\nworker started"))
    often, repeated = features_of(observe("prune the model\n" + "worker started\n" * 50))

    hashed = once < BUCKETS
    assert once.tolist() == often.tolist()
    assert repeated[~hashed] == pytest.approx(values[~hashed])
