"""The encoder reads what a public tokenizer reads, and the same words the same way."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead.router.encoder import hear, load_encoder
from fairlead.router.scene import observe
from fairlead.router.surface import surface_of
from fairlead.router.wordpiece import MAX_PIECES, pieces_of

# What the `tokenizers` library makes of these texts with the encoder's public vocabulary.
TOKENIZED = [
    ("My model is too slow in production!", [2026, 2944, 2003, 2205, 4030, 1999, 2537, 999]),
    ("p99=812ms (SLO: 250ms)",
     [1052, 2683, 2683, 1027, 6282, 2475, 5244, 1006, 22889, 2080, 1024, 5539, 5244, 1007]),
    ("Quantisierung für Jetson \u2013 läuft's?",
     [24110, 7315, 3771, 5575, 6519, 9924, 2239, 1516, 21360, 6199, 1005, 1055, 1029]),
    ("推理速度达不到实时要求", [100, 100, 100, 100, 100, 1744, 100, 100, 100, 100, 100]),
    ("모델이 느려요",
     [1459, 30011, 29993, 30009, 30022, 29999, 30019, 1456, 30017, 29994, 30010, 29999, 30013]),
    ("naïve café, Ångström", [15743, 7668, 1010, 17076, 15687]),
    ("tritonserver:23.08-py3 OOM-killed",
     [13012, 2669, 8043, 6299, 1024, 2603, 1012, 5511, 1011, 1052, 2100, 2509, 1051, 5358, 1011,
      2730]),
    ("\u200bzero\u00a0width\tand tabs\n", [5717, 9381, 1998, 21628, 2015]),
    ("a" * 101, [100]),
    ("model\ufffd drift 🙂 détecté", [2944, 11852, 100, 11487, 2063]),
]  # fmt: skip


@pytest.mark.parametrize(("text", "pieces"), TOKENIZED)
def test_pieces_are_those_of_the_public_tokenizer(text, pieces):
    assert pieces_of(text, load_encoder().vocabulary) == [101, *pieces, 102]


@settings(deadline=None, max_examples=200, derandomize=True)
@given(st.text(max_size=800))
def test_any_text_becomes_few_known_pieces(text):
    pieces = pieces_of(text, load_encoder().vocabulary)

    assert 2 <= len(pieces) <= MAX_PIECES
    assert max(pieces) < len(load_encoder().pieces)


def test_the_end_of_a_long_text_is_read():
    vocabulary = load_encoder().vocabulary
    text = "a log line and another one. " * 100 + "why is the prediction wrong"

    assert pieces_of(text, vocabulary)[-4:] == pieces_of("the prediction wrong", vocabulary)[-4:]


@pytest.mark.parametrize(
    ("text", "surface"),
    [
        ("Why is it slow? (We use Docker.)", "Why is it slow?"),
        ("Deploy it with TorchServe, then watch it.", "Deploy it then watch it"),
        ("Title here\nThe body. Bye!", "Title here. The body. Bye"),
    ],
)
def test_products_and_closing_marks_are_not_read(text, surface):
    assert surface_of(observe(text)) == surface


def test_case_does_not_matter_and_order_does():
    assert hear("The Model IS slow") == hear("the model is slow")
    one = np.array(list(hear("first quantize then we deploy").answers.values()))
    other = np.array(list(hear("deploy we then quantize first").answers.values()))
    assert np.abs(one - other).max() > 0.05


def test_what_is_heard_is_finite_for_the_shortest_and_the_longest_text():
    for text in ("", "?", "slow " * 5000, "\x00\x01"):
        assert np.isfinite(list(hear(text).answers.values())).all()
