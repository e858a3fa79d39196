import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.core.signature import Signature, TensorSpec
from fairlead.measure.candidates import measure_candidates, pareto_front
from fairlead.measure.latency import Clocks

SPEC = Signature(
    inputs=(TensorSpec(name="x", dtype="float32", shape=(-1, 2)),),
    outputs=(TensorSpec(name="y", dtype="float32", shape=(-1, 2)),),
)


class Clock:
    """A clock that only the models move."""

    now = 0.0

    def read(self) -> float:
        return self.now


class SlowRunner:
    """Takes a given time per call on the clock."""

    signature = SPEC

    def __init__(self, clock: Clock, seconds: float) -> None:
        self.clock, self.seconds = clock, seconds

    def run(self, feeds):
        self.clock.now += self.seconds
        return {"y": feeds["x"]}

    def close(self) -> None:
        pass


def test_candidates_are_compared_with_the_first_one() -> None:
    clock = Clock()
    runners = {"original": SlowRunner(clock, 0.004), "fast": SlowRunner(clock, 0.001)}
    found = measure_candidates(
        runners,
        {"x": np.zeros((8, 2), np.float32)},
        sizes={"original": 100, "fast": 30},
        batch_rows=4,
        peak_memory={"fast": 7},
        clocks=Clocks(clock.read, clock.read),
    )
    assert list(found) == ["original", "fast"]
    assert found["original"].speedup.value == pytest.approx(1.0)
    fast = found["fast"]
    assert fast.speedup.value == pytest.approx(4.0)
    assert fast.cpu_min_ms == pytest.approx(1.0)
    assert fast.latency_p50_ms.ci_low <= fast.latency_p50_ms.value <= fast.latency_p50_ms.ci_high
    assert fast.latency_p99_ms.value == pytest.approx(1.0)
    assert fast.throughput_rps.value == pytest.approx(4000)
    assert (fast.size_bytes, fast.peak_memory_bytes) == (30, 7)
    assert found["original"].peak_memory_bytes is None


def test_of_equal_candidates_the_first_stays() -> None:
    assert pareto_front({"a": (1, 1), "b": (1, 1), "c": (0, 2), "d": (2, 2)}) == ("a", "c")
    assert pareto_front({"a": (1, float("nan")), "b": (1, 5)}) == ("b",)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12))
def test_every_candidate_outside_the_front_is_beaten_by_one_inside(points) -> None:
    costs = {str(i): point for i, point in enumerate(points)}
    front = pareto_front(costs)
    assert front
    for name, cost in costs.items():
        if name not in front:
            assert any(all(a <= b for a, b in zip(costs[f], cost, strict=True)) for f in front)
