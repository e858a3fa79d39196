import numpy as np
import pytest

from fairlead.measure.roofline import MachinePeaks, OperatorCost, Roofline
from fairlead.measure.sequence_lengths import padding_waste, sequence_lengths

PEAKS = MachinePeaks(gflops=100, int8_gops=400, gbytes_per_s=20)


def test_what_limits_an_operator() -> None:
    assert OperatorCost("a", "MatMul", 1.0, 80e6, 1e6).bound(PEAKS) == "compute-bound"
    assert OperatorCost("a", "MatMul", 1.0, 5e6, 18e6).bound(PEAKS) == "memory-bound"
    assert OperatorCost("a", "MatMul", 1.0, 5e6, 1e6).bound(PEAKS) == "overhead-bound"


def test_eight_bits_have_a_roof_of_their_own() -> None:
    one = OperatorCost("a", "MatMulInteger", 1.0, 80e6, 1e6, is_int8=True)
    assert one.peak_ratio(PEAKS) == pytest.approx(0.2)
    assert one.bound(PEAKS) == "overhead-bound"


def test_shares_and_the_peak_of_a_whole_model() -> None:
    costs = (
        OperatorCost("a", "MatMul", 3.0, 270e6, 1e6),
        OperatorCost("b", "Add", 1.0, 1e3, 19e6),
    )
    model = Roofline(PEAKS, costs, 1)
    assert model.shares["compute-bound"] == pytest.approx(0.75)
    assert model.shares["memory-bound"] == pytest.approx(0.25)
    assert model.bound == "compute-bound"
    assert model.peak_ratio == pytest.approx(2.7 / 4, rel=1e-3)
    assert model.by_kind() == [("MatMul", 1, 0.75), ("Add", 1, 0.25)]


def test_a_model_without_arithmetic_has_no_peak() -> None:
    assert Roofline(PEAKS, (OperatorCost("a", "Reshape", 1.0, 0, 8),), 1).peak_ratio is None


def test_lengths_from_a_mask_and_from_trailing_zeros() -> None:
    ids = np.array([[5, 0, 7, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]])
    assert sequence_lengths({"ids": ids}).tolist() == [3, 5, 0]
    mask = np.array([[1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]])
    assert sequence_lengths({"ids": ids, "attention_mask": mask}).tolist() == [2, 3, 1]
    assert sequence_lengths({"pixels": np.zeros((3, 64), np.float32)}) is None


def test_buckets_waste_least() -> None:
    lengths = np.random.default_rng(0).integers(4, 64, 256)
    mask = (np.arange(128)[None, :] < lengths[:, None]).astype(np.int64)
    waste = padding_waste({"mask": mask}, 16)
    assert waste.as_given == pytest.approx(1 - lengths.mean() / 128)
    assert waste.in_buckets < 0.15 < waste.to_longest < waste.as_given
