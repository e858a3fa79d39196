import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.core.errors import DataError
from fairlead.measure.verdict import (
    RequestTimes,
    Surroundings,
    TimeParts,
    find_bottleneck,
    judge_parts,
)


def parts(run: float, queue: float = 0, rest: float = 0, outside: float | None = None) -> TimeParts:
    return TimeParts(run_ms=run, queue_ms=queue, rest_ms=rest, outside_ms=outside)


@pytest.mark.parametrize(
    ("time", "around", "cause", "is_model"),
    [
        (parts(5, 0, 1, 6), {}, "network", False),
        (parts(5, 0, 1, 1), {}, "model", True),
        (parts(10), {"solo_run_ms": 6}, "threads", False),
        (parts(10), {"solo_run_ms": 9}, "model", True),
        (parts(10), {"cpu_run_ms": 30, "solo_cpu_run_ms": 10}, "threads", False),
        (parts(10), {"throttled_ratio": 0.05}, "threads", False),
        (parts(5, 5), {"utilisation": 0.9}, "capacity", False),
        (parts(5, 5), {}, "capacity", False),
        (parts(5, 5), {"utilisation": 0.2}, "batching", False),
        (parts(5, 0, 5), {}, "data-path", False),
        (parts(9, 0, 1), {"padding_ratio": 0.4}, "data-path", False),
        (parts(9, 0, 1), {"flops_ratio": 0.1}, "kernels", True),
        (parts(9, 0, 1), {"flops_ratio": 0.8}, "model", True),
    ],
)
def test_each_cause_is_named(
    time: TimeParts, around: dict[str, float], cause: str, is_model: bool
) -> None:
    verdict = judge_parts(time, Surroundings(**around))
    assert verdict.cause == cause
    assert verdict.is_model is is_model
    assert verdict.advice


def test_the_first_rule_that_is_met_decides() -> None:
    everything = Surroundings(solo_run_ms=1, throttled_ratio=0.5, utilisation=0.9)
    assert judge_parts(parts(5, 9, 9, 40), everything).cause == "network"
    assert judge_parts(parts(5, 9, 9, 1), everything).cause == "threads"
    assert judge_parts(parts(5, 9, 9, 1), Surroundings(utilisation=0.9)).cause == "capacity"


def test_the_numbers_that_decided_are_told() -> None:
    verdict = judge_parts(parts(5, 5, outside=1), Surroundings(utilisation=0.9))
    assert [number.name for number in verdict.numbers] == [
        "outside / client", "queue / server", "utilisation",
    ]  # fmt: skip
    assert verdict.numbers[1].is_met
    assert verdict.model_time_share == pytest.approx(5 / 11)


@given(st.floats(0.001, 100), st.floats(0, 100), st.floats(0, 100), st.none() | st.floats(0, 100))
def test_shares_are_shares(run: float, queue: float, rest: float, outside: float | None) -> None:
    verdict = judge_parts(parts(run, queue, rest, outside))
    assert 0 <= verdict.share <= 1
    assert 0 < verdict.model_time_share <= 1


def test_clear_cases_are_sure_and_doubtful_ones_are_not() -> None:
    rng = np.random.default_rng(0)
    run = rng.gamma(20, 0.1, 200)
    clear = RequestTimes.from_arrays(run_ms=run, server_ms=run * 1.05)
    doubtful = RequestTimes.from_arrays(run_ms=run, server_ms=run + rng.gamma(1, 0.857, 200))
    assert find_bottleneck(clear).confidence == 1.0
    unsure = find_bottleneck(doubtful).confidence
    assert unsure is not None
    assert unsure < 1


def test_planted_causes_are_found_in_noisy_requests() -> None:
    rng = np.random.default_rng(0)
    run = rng.gamma(9, 0.3, 300)
    queue = rng.gamma(2, 1.5, 300)
    times = RequestTimes.from_arrays(run_ms=run, server_ms=run + queue + 0.1, queue_ms=queue)
    assert find_bottleneck(times, Surroundings(utilisation=0.95)).cause == "capacity"
    far = RequestTimes.from_arrays(run_ms=run, server_ms=run + 0.1, client_ms=run + 8)
    assert find_bottleneck(far).cause == "network"


@pytest.mark.parametrize(
    ("run", "server", "words"),
    [
        ([], [], "at least one"),
        ([1.0], [1.0, 2.0], "one time per request"),
        ([1.0, np.nan], [2.0, 2.0], "failed"),
        ([1.0, -1.0], [2.0, 2.0], "failed"),
    ],
)
def test_times_that_cannot_be_judged(run: list[float], server: list[float], words: str) -> None:
    with pytest.raises(DataError) as caught:
        RequestTimes.from_arrays(run_ms=run, server_ms=server)
    assert words in caught.value.hint


def test_padding_is_named_with_its_share() -> None:
    padded = judge_parts(parts(9, 0, 1), Surroundings(padding_ratio=0.4))

    assert padded.text == "40 % of what the model computes is padding"
    assert "like length" in padded.advice
    assert "padding" not in judge_parts(parts(5, 0, 5), Surroundings(padding_ratio=0.1)).advice
