import numpy as np
import pytest

from fairlead.backends.cpus import throttled_ratio, usable_cpus
from fairlead.core.bundle import Bundle
from fairlead.core.errors import ConfigError
from fairlead.measure.latency import Clocks, Timing
from fairlead.measure.request_path import time_requests
from fairlead.measure.verdict import RequestTimes
from fairlead.optimize.hardware import HardwareConfig, tune
from fairlead.optimize.hardware.methods.successive_halving import (
    _rank,
    grow_batch,
    successive_halving,
)
from tests.optimize import zoo


def config(**changes) -> HardwareConfig:
    return HardwareConfig.parse({"time_limit_s": 1.0, "max_batch_size": 8, **changes})


def timing(name: str, wall: float, cpu: float, rows: int = 1) -> Timing:
    return Timing(name, rows, np.full(5, cpu), np.full(5, wall))


def test_the_settings_are_written_and_marked_as_measured(digits_bundle, tmp_path) -> None:
    outcome = tune(digits_bundle, zoo.digits_dataset(), config(), out=tmp_path / "t")
    assert outcome.report.verdict == "done"
    runtime = Bundle.open(tmp_path / "t").runtime
    assert runtime.is_tuned
    assert runtime.intra_op_threads is not None
    assert 1 <= runtime.intra_op_threads <= usable_cpus()
    assert runtime.max_batch_size in {1, 2, 4, 8}
    assert not runtime.allow_spinning
    assert outcome.noun.model_path.read_bytes() == digits_bundle.model_path.read_bytes()
    assert outcome.noun.provenance.changes[-1].startswith("tuned: ")


def test_the_measurements_become_evidence_about_the_new_bundle(digits_bundle, tmp_path) -> None:
    outcome = tune(digits_bundle, zoo.digits_dataset(), config(), out=tmp_path / "t")
    metrics = {item.metric: item for item in outcome.evidence}
    assert {
        "model_time_share", "latency_p50_ms", "latency_p99_ms", "throughput_rps", "size_bytes",
        "speedup_ratio",
    } == set(metrics)  # fmt: skip
    assert all(item.subject == outcome.noun.digest for item in outcome.evidence)
    assert 0 < metrics["model_time_share"].value <= 1
    causes = {"data-path", "kernels", "model", "threads"}
    assert metrics["model_time_share"].labels["cause"] in causes
    assert metrics["latency_p50_ms"].value <= metrics["latency_p99_ms"].value


def test_an_impossible_latency_is_refused(digits_bundle, tmp_path) -> None:
    outcome = tune(
        digits_bundle, zoo.digits_dataset(), config(latency_budget_ms=1e-6), out=tmp_path / "t"
    )
    assert outcome.is_refused
    assert outcome.noun is digits_bundle
    assert list(tmp_path.iterdir()) == []


def test_a_fixed_batch_is_kept(pack_bundle, tmp_path) -> None:
    data = zoo.rows_for_dense()
    outcome = tune(
        pack_bundle(zoo.dense(batch=7), data), data, config(time_limit_s=0.5), out=tmp_path / "t"
    )
    assert outcome.noun.runtime.max_batch_size == 7


@pytest.mark.parametrize("goal", ["latency", "throughput"])
def test_a_forest_can_be_tuned_for_either_goal(forest_bundle, tmp_path, goal: str) -> None:
    outcome = tune(
        forest_bundle, zoo.digits_dataset(), config(goal=goal, max_threads=1), out=tmp_path / "t"
    )
    assert outcome.noun.runtime.intra_op_threads == 1
    assert outcome.report.tables[0].rows


def test_given_times_of_requests_decide_the_verdict(digits_bundle, tmp_path) -> None:
    run = np.full(100, 1000.0)
    times = RequestTimes.from_arrays(run_ms=run, server_ms=run * 1.01, client_ms=run * 3)
    outcome = tune(
        digits_bundle, zoo.digits_dataset(), config(), out=tmp_path / "t", requests=times,
        requests_from="made up",
    )  # fmt: skip
    verdict = outcome.report.details["bottleneck"]
    assert verdict["cause"] == "network"
    assert verdict["is_model"] is False
    assert "made up" in outcome.report.findings[0].text


def test_a_tie_goes_to_the_more_frugal_settings() -> None:
    timings = {"one": timing("one", 1.0, 1.0), "two": timing("two", 0.95, 1.2)}
    assert _rank(timings, "latency") == ["one", "two"]


def test_faster_settings_win_unless_they_waste() -> None:
    clear = {"one": timing("one", 1.0, 1.0), "two": timing("two", 0.6, 1.2)}
    wasteful = {"one": timing("one", 1.0, 1.0), "two": timing("two", 0.6, 1.5)}
    assert _rank(clear, "latency") == ["two", "one"]
    assert _rank(wasteful, "latency") == ["one", "two"]
    assert _rank(clear, "throughput") == ["one", "two"]


class FakeRunner:
    """A model whose run takes so many seconds per call and per row, on a clock of its own."""

    def __init__(self, clock: list[float], per_call: float, per_row: float = 0.0) -> None:
        self.clock, self.per_call, self.per_row = clock, per_call, per_row

    def run(self, feeds):
        self.clock[0] += self.per_call + self.per_row * len(feeds["x"])
        return {"y": np.zeros(len(feeds["x"]))}


def clocks(clock: list[float]) -> Clocks:
    return Clocks(wall=lambda: clock[0], cpu=lambda: clock[0])


def rows(n_rows: int) -> dict[str, np.ndarray]:
    return {"x": np.zeros((n_rows, 1), np.float32)}


def grown(per_call: float, per_row: float, budget: float | None = None) -> list[int]:
    clock = [0.0]
    steps = grow_batch(
        FakeRunner(clock, per_call, per_row), rows, largest=64, latency_budget_ms=budget,
        time_limit_s=1000, clocks=clocks(clock),
    )  # fmt: skip
    return [step.rows for step in steps if step.is_taken]


def test_the_cheapest_of_many_wins_and_is_measured_longest() -> None:
    clock = [0.0]
    runners = {f"r{cost}": FakeRunner(clock, cost / 1e3) for cost in (8, 4, 1, 6, 7)}
    contest = successive_halving(
        runners, rows(1), goal="throughput", time_limit_s=1000, clocks=clocks(clock)
    )
    assert contest.winner == "r1"
    assert contest.rounds == {"r8": 1, "r4": 3, "r1": 3, "r6": 2, "r7": 1}


def test_the_batch_grows_while_rows_get_cheaper() -> None:
    assert grown(0.010, 0.00001) == [1, 2, 4, 8, 16, 32, 64]


def test_the_batch_stops_growing_when_it_does_not_pay() -> None:
    assert grown(0.0, 0.002) == [1]
    assert grown(0.001, 0.001) == [1, 2, 4, 8, 16]


def test_noise_does_not_stop_the_batch() -> None:
    clock, rng = [0.0], np.random.default_rng(3)

    class Disturbed(FakeRunner):
        def run(self, feeds):
            clock[0] += rng.exponential(0.02)
            return super().run(feeds)

    steps = grow_batch(
        Disturbed(clock, 0.001, 0.00001), rows, largest=16, latency_budget_ms=None,
        time_limit_s=1000, clocks=clocks(clock),
    )  # fmt: skip
    assert all(step.is_taken for step in steps)


def test_a_long_run_must_show_what_twice_the_batch_gains() -> None:
    clock, rng = [0.0], np.random.default_rng(3)

    class Disturbed(FakeRunner):
        def run(self, feeds):
            clock[0] += rng.exponential(0.05)
            return super().run(feeds)

    steps = grow_batch(
        Disturbed(clock, 0.0, 0.3), rows, largest=16, latency_budget_ms=None,
        time_limit_s=1000, clocks=clocks(clock),
    )  # fmt: skip
    assert len(steps) <= 3


def test_the_batch_stops_growing_at_the_latency_budget() -> None:
    assert grown(0.010, 0.001, budget=15) == [1, 2, 4]


def test_time_requests_counts_the_run() -> None:
    clock = [0.0]
    times = time_requests(FakeRunner(clock, 0.002), rows(1), requests=20, clock=lambda: clock[0])
    assert times.n_requests == 20
    np.testing.assert_allclose(times.run_ms, 2)
    np.testing.assert_allclose(times.server_ms, 2)


@pytest.mark.parametrize(
    ("text", "cpus"), [("max 100000", None), ("150000 100000", 1), ("50000 100000", 1), ("x", None)]
)
def test_the_quota_of_a_container_counts(tmp_path, text: str, cpus: int | None) -> None:
    (tmp_path / "cpu.max").write_text(text)
    assert usable_cpus(cgroup=tmp_path) == (cpus or usable_cpus(cgroup=tmp_path / "none"))


def test_an_older_container_and_its_throttling(tmp_path) -> None:
    folder = tmp_path / "cpu"
    folder.mkdir()
    (folder / "cpu.cfs_quota_us").write_text("100000\n")
    (folder / "cpu.cfs_period_us").write_text("100000\n")
    (folder / "cpu.stat").write_text("nr_periods 200\nnr_throttled 20\nthrottled_time 5\n")
    assert usable_cpus(cgroup=tmp_path) == 1
    assert throttled_ratio(cgroup=tmp_path) == pytest.approx(0.1)
    assert throttled_ratio(cgroup=tmp_path / "none") is None
    assert usable_cpus(1) == 1


def test_a_wrong_setting() -> None:
    with pytest.raises(ConfigError, match="max_batch_size"):
        HardwareConfig.parse({"max_batch_size": 0})
