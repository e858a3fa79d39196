"""The ring of outcomes: what is kept, what is forgotten, and in which order."""

from __future__ import annotations

import os

import numpy as np
import pytest

from fairlead.serve.inference import outcome_log
from fairlead.serve.inference.arms import open_arm
from fairlead.serve.inference.config import ServingConfig
from fairlead.serve.inference.outcome_log import OutcomeLog, new_outcome_file
from fairlead.serve.inference.outcomes import OutcomeRing
from fairlead.serve.inference.served import ServedRequest, ServedTogether


@pytest.fixture(scope="module")
def arm(wines):
    found = open_arm("baseline", wines, ServingConfig(), cores=1)
    yield found
    found.close()


def served(arm, request_id, labels, *, status=200, is_probe=False):
    outputs = None if labels is None else {"label": np.array(labels, np.int64)}
    n_rows = 1 if labels is None else len(labels)
    return ServedRequest(
        request_id, arm, status, {}, outputs, n_rows, 0.5, 1.0, 2.0, 1, 1000.0, is_probe=is_probe
    )


@pytest.mark.parametrize("step", [1, 7, 300, 2000])
def test_the_last_ones_are_kept_in_order_however_they_come(arm, step):
    ring = OutcomeRing(500)
    requests = [served(arm, f"r{i}", [i % 3]) for i in range(1234)]
    for start in range(0, len(requests), step):
        ring.observe(requests[start : start + step])
    page = ring.read(0, 10_000)
    assert page["missed"] == 734
    assert [item["seq"] for item in page["outcomes"]] == list(range(735, 1235))
    assert [item["id"] for item in page["outcomes"]] == [f"r{i}" for i in range(734, 1234)]
    assert [item["prediction"] for item in page["outcomes"]] == [i % 3 for i in range(734, 1234)]
    assert page["next"] == 1234
    assert ring.read(1234, 10) == {"outcomes": [], "next": 1234, "missed": 0}


def test_ids_of_any_kind_several_rows_failures_and_probes(arm):
    ring = OutcomeRing(4)
    long = "x" * 200
    ring.observe(
        [
            served(arm, "forgotten", [0]),
            served(arm, long, [1]),
            served(arm, "é☃", [0, 1, 2]),
            served(arm, "probe", [1], is_probe=True),
            served(arm, "failed", None, status=500),
        ]
    )
    ring.observe([served(arm, "a\0", [2])])
    found = ring.read(0, 10)["outcomes"]
    assert [item["id"] for item in found] == [long, "é☃", "failed", "a\0"]
    assert [item["prediction"] for item in found] == [1, [0, 1, 2], None, 2]
    assert [item["status"] for item in found] == [200, 200, 500, 200]
    ring.observe([served(arm, f"s{i}", [0]) for i in range(4)])
    assert [item["id"] for item in ring.read(0, 10)["outcomes"]] == ["s0", "s1", "s2", "s3"]
    assert found[0]["run_ms"] == 1.0
    assert found[0]["at"] == 1000.0


def together(arm, ids, labels):
    """A batch whose requests have one row each."""
    n = len(ids)
    outputs = {"label": np.array(labels, np.int64)}
    return ServedTogether(
        arm, ids, {}, outputs, [1] * n, [0.1] * n, 1.0, [2.0] * n, n, 1000.0, [""] * n, [""] * n,
        None,
    )  # fmt: skip


@pytest.fixture
def file():
    descriptor = new_outcome_file()
    yield descriptor
    os.close(descriptor)


def test_the_log_of_a_worker_says_what_the_ring_says_and_outlives_it(arm, file):
    log, ring = OutcomeLog(file), OutcomeRing()
    batches = [
        [served(arm, "x" * 200, [1]), served(arm, "é☃", [0, 1, 2])],
        [served(arm, "probe", [1], is_probe=True), served(arm, "failed", None, status=500)],
        together(arm, ["a", "b\0", "c"], [2, 0, 1]),
        [served(arm, "wide", [1] * 5000)],
        (),
    ]
    for batch in batches:
        log(batch)
        ring.observe(batch)
    expected = ring.read(0, 100)
    assert len(expected["outcomes"]) == 7
    for reader in (log, OutcomeLog(file)):
        assert reader.read(0, 100) == expected
        assert reader.read(3, 2)["outcomes"] == expected["outcomes"][3:5]
        assert reader.read(4, 100)["outcomes"] == expected["outcomes"][4:]
        assert reader.read(7, 100) == {"outcomes": [], "next": 7, "missed": 0}


def test_a_torn_record_is_not_read(arm, file):
    log = OutcomeLog(file)
    for batch in (together(arm, ["a", "b"], [1, 2]), together(arm, ["c", "d"], [0, 1])):
        log(batch)
    size = os.fstat(file).st_size
    written = os.pread(file, size, 0)
    at = written.rindex(b"c")
    os.pwrite(file, b"#", at)  # the last bytes of a record never came
    found = OutcomeLog(file).read(0, 100)
    assert [item["id"] for item in found["outcomes"]] == ["a", "b"]
    assert (found["next"], found["missed"]) == (2, 0)
    os.pwrite(file, b"c", at)
    assert [item["id"] for item in OutcomeLog(file).read(1, 100)["outcomes"]] == ["b", "c", "d"]


@pytest.mark.parametrize("step", [1, 7, 300])
def test_a_full_log_forgets_the_oldest_and_tells_how_many(arm, file, monkeypatch, step):
    monkeypatch.setattr(outcome_log, "_PART_BYTES", 40_000)
    log = OutcomeLog(file)
    seen, after, missed = [], 0, 0
    for start in range(0, 3000, step):
        ids = [f"r{i}" for i in range(start, min(start + step, 3000))]
        log(together(arm, ids, [int(each[1:]) % 3 for each in ids]))
        if start % 2100 == 0:
            page = log.read(after, 10_000)
            seen += page["outcomes"]
            after, missed = page["next"], missed + page["missed"]
    page = log.read(after, 10_000)
    seen, missed = seen + page["outcomes"], missed + page["missed"]
    assert page["next"] == 3000
    assert len(seen) + missed == 3000
    assert len(page["outcomes"]) > 200
    assert [item["id"] for item in seen] == [f"r{item['seq'] - 1}" for item in seen]
    assert [item["prediction"] for item in seen] == [(item["seq"] - 1) % 3 for item in seen]
    assert [item["seq"] for item in seen] == sorted({item["seq"] for item in seen})
