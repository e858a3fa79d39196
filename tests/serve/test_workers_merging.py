"""One answer of several workers: sums that never fall, and one sequence without gaps."""

from __future__ import annotations

from fairlead.serve.inference.merging import MergedMetrics, MergedOutcomes

TEXT = """# HELP requests_total Requests.
# TYPE requests_total counter
requests_total{{arm="a b",status="200"}} {count}
# HELP seconds Times.
# TYPE seconds histogram
seconds_bucket{{le="1.0"}} {count}
seconds_bucket{{le="+Inf"}} {count}
seconds_count {count}
seconds_sum 0.5
# HELP pending Waiting.
# TYPE pending gauge
pending 2.0
# HELP fairlead_traffic_weight Share.
# TYPE fairlead_traffic_weight gauge
fairlead_traffic_weight{{arm="a"}} 0.25
# HELP process_start_time_seconds Start.
# TYPE process_start_time_seconds gauge
process_start_time_seconds {start}
"""


def values(text):
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}


def test_workers_are_summed_and_what_is_the_same_in_all_is_not():
    merged = MergedMetrics()
    texts = {0: TEXT.format(count=3.0, start=10.0), 1: TEXT.format(count=4.0, start=20.0)}
    text = merged.render(texts, [("workers", "gauge", "Workers.", 2)])
    found = values(text)
    assert found['requests_total{arm="a b",status="200"}'] == 7
    assert found['seconds_bucket{le="+Inf"}'] == 7
    assert found["seconds_sum"] == 1.0
    assert found["pending"] == 4
    assert found['fairlead_traffic_weight{arm="a"}'] == 0.25
    assert found["process_start_time_seconds"] == 10
    assert found["workers"] == 2
    assert text.count("# TYPE requests_total counter") == 1


def test_counters_do_not_fall_when_a_worker_is_replaced():
    merged = MergedMetrics()
    merged.render({0: TEXT.format(count=100.0, start=1.0), 1: TEXT.format(count=1.0, start=1.0)})
    merged.end(0)
    found = values(merged.render({1: TEXT.format(count=2.0, start=1.0)}))
    assert found['requests_total{arm="a b",status="200"}'] == 102
    assert found["seconds_count"] == 102
    assert found["pending"] == 2
    found = values(
        merged.render({0: TEXT.format(count=5.0, start=3.0), 1: TEXT.format(count=2.0, start=1.0)})
    )
    assert found["seconds_count"] == 107


def page(first, *times):
    outcomes = [{"seq": first + i, "id": f"{at}", "at": at} for i, at in enumerate(times)]
    following = first + len(times) - 1 if times else first - 1
    return {"outcomes": outcomes, "next": following, "missed": 0}


def test_outcomes_get_one_sequence_in_order_of_time():
    merged = MergedOutcomes(capacity=5)
    merged.take({0: page(1, 1.0, 4.0), 1: page(1, 2.0, 3.0)})
    found = merged.read(0, 10)
    assert [(item["seq"], item["id"]) for item in found["outcomes"]] == [
        (1, "1.0"), (2, "2.0"), (3, "3.0"), (4, "4.0")]  # fmt: skip
    assert (found["next"], found["missed"]) == (4, 0)
    assert (merged.cursor(0), merged.cursor(1)) == (2, 2)
    merged.end(1)
    assert merged.cursor(1) == 0
    merged.take({0: page(3, 5.0), 1: page(1, 6.0, 7.0)})
    found = merged.read(1, 2)
    assert [item["seq"] for item in found["outcomes"]] == [3, 4]
    assert (found["next"], found["missed"]) == (4, 1)
    assert merged.read(7, 10) == {"outcomes": [], "next": 7, "missed": 0}


def test_what_a_worker_forgot_is_told_as_missed():
    merged = MergedOutcomes()
    merged.take({0: page(1, 1.0), 1: page(1, 2.0)})
    merged.take({0: {**page(12, 5.0), "missed": 10}, 1: page(2, 6.0)})
    found = merged.read(2, 10)
    assert [item["seq"] for item in found["outcomes"]] == [13, 14]
    assert found["missed"] == 10
