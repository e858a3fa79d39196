import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.measure.latency import Clocks, Timing, measure_interleaved, speedup


class FakeTime:
    """A machine whose calls take the time they are told to."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[str] = []

    def clocks(self) -> Clocks:
        return Clocks(wall=lambda: self.now, cpu=lambda: self.now)

    def callable(self, name: str, seconds: float):
        def call() -> None:
            self.calls.append(name)
            self.now += seconds

        return call


def test_blocks_alternate_and_the_order_turns_round() -> None:
    machine = FakeTime()
    candidates = {"a": machine.callable("a", 0.01), "b": machine.callable("b", 0.01)}
    measure_interleaved(
        candidates, blocks=4, block_ms=1, warm_up=1, time_limit_s=100, clocks=machine.clocks()
    )
    assert "".join(machine.calls) == "ab" + "abbaabba"


def test_times_are_those_of_the_clock() -> None:
    machine = FakeTime()
    candidates = {"slow": machine.callable("s", 0.004), "fast": machine.callable("f", 0.001)}
    timings = measure_interleaved(
        candidates, blocks=6, block_ms=8, rows_per_call=4, clocks=machine.clocks()
    )
    slow, fast = timings["slow"], timings["fast"]
    assert slow.cpu_median_ms == pytest.approx(4)
    assert fast.latency_p50_ms == pytest.approx(1)
    assert fast.throughput_rps == pytest.approx(4000)
    assert fast.cpu_per_row_ms == pytest.approx(0.25)
    assert slow.n_calls == 12
    assert fast.n_calls == 48


def test_a_slow_candidate_is_measured_at_least_five_times() -> None:
    machine = FakeTime()
    timings = measure_interleaved(
        {"a": machine.callable("a", 10.0)}, blocks=50, time_limit_s=1, clocks=machine.clocks()
    )
    assert len(timings["a"].cpu_ms) == 5


def test_slow_calls_are_warmed_up_once() -> None:
    machine = FakeTime()
    measure_interleaved(
        {"a": machine.callable("a", 10.0)}, warm_up=3, time_limit_s=1, clocks=machine.clocks()
    )
    assert len(machine.calls) == 1 + 5


def test_rows_per_call_may_differ_by_candidate() -> None:
    machine = FakeTime()
    candidates = {"1": machine.callable("1", 0.002), "2": machine.callable("2", 0.003)}
    timings = measure_interleaved(
        candidates, blocks=5, rows_per_call={"1": 1, "2": 2}, clocks=machine.clocks()
    )
    assert speedup(timings["1"], timings["2"]).value == pytest.approx(4 / 3)


def test_the_ratio_survives_a_neighbour_that_slows_whole_stretches() -> None:
    rng = np.random.default_rng(0)
    load = np.repeat(rng.uniform(1, 4, 10), 4)
    before, after = 3.0 * load, 1.0 * load
    ratio = speedup(Timing("a", 1, before, before), Timing("b", 1, after, after))
    assert ratio.value == pytest.approx(3)
    assert ratio.is_faster


def test_equal_candidates_are_neither_faster_nor_slower() -> None:
    rng = np.random.default_rng(1)
    one, two = rng.gamma(50, 0.02, 40), rng.gamma(50, 0.02, 40)
    ratio = speedup(Timing("a", 1, one, one), Timing("b", 1, two, two))
    assert not ratio.is_faster
    assert not ratio.is_slower


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(2)
    covered = 0
    for _ in range(200):
        one, two = rng.gamma(80, 2.0, 30), rng.gamma(80, 1.0, 30)
        ratio = speedup(Timing("a", 1, one, one), Timing("b", 1, two, two), resamples=400)
        covered += ratio.ci_low <= 2 <= ratio.ci_high
    assert covered / 200 > 0.9


@given(st.lists(st.floats(0.01, 100), min_size=2, max_size=20), st.floats(0.1, 10))
def test_a_constant_factor_is_found_exactly(times: list[float], factor: float) -> None:
    before = np.array(times)
    after = before / factor
    ratio = speedup(Timing("a", 1, before, before), Timing("b", 1, after, after), resamples=50)
    assert ratio.value == pytest.approx(factor)
    assert ratio.ci_low <= ratio.value * (1 + 1e-9)
    assert ratio.value <= ratio.ci_high * (1 + 1e-9)
