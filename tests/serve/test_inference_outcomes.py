"""The ring of outcomes: what is kept, what is forgotten, and in which order."""

from __future__ import annotations

import numpy as np
import pytest

from fairlead.serve.inference.arms import open_arm
from fairlead.serve.inference.config import ServingConfig
from fairlead.serve.inference.outcomes import OutcomeRing
from fairlead.serve.inference.served import ServedRequest


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
