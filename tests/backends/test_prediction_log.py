"""The prediction log: whole segments, typed columns, bounded memory."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fairlead.backends.prediction_log import ParquetPredictionLog
from fairlead.backends.prediction_redaction import Redaction
from fairlead.backends.prediction_rules import LogRules
from fairlead.core.errors import UsageError, WorkspaceError
from fairlead.core.prediction import Prediction

from .logged_requests import START, manifest, request


@pytest.fixture
def log(tmp_path):
    found = ParquetPredictionLog(tmp_path, flush_s=600)
    yield found
    found.close()


def test_rows_come_back_as_profiled_columns(log):
    log.append_request(request("one"))
    log.append_request(request("two", 2, at=1))
    assert log.read("s") is None  # nothing is durable yet
    log.flush()
    batch = log.read("s")
    assert list(batch.ids) == ["one", "two#0", "two#1"]
    assert list(batch.inputs.columns) == ["a", "b", "c"]
    assert batch.inputs.columns["b"].tolist() == [1, 1, 4]
    assert batch.inputs.columns["b"].dtype == np.float64
    assert batch.outputs["prediction"].tolist() == ["yes"] * 3
    assert batch.outputs["score[yes]"].tolist() == [0.75] * 3
    assert batch.fields["batch_rows"].tolist() == [1, 2, 2]
    assert set(batch.fields["model"]) == {"m"}
    assert batch.at.dtype == np.dtype("datetime64[us]")
    assert batch.at[0] == np.datetime64("2026-01-01T00:00:00")
    assert (log.n_written, log.n_dropped) == (3, 0)


def test_predictions_of_the_port_come_back_too(log):
    log.append(
        [
            Prediction(
                id=f"p{i}", service="s", model="m", version="v", bundle_digest="d", arm="candidate",
                status=200, inputs={"age": age, "city": city}, outputs={"prediction": 7},
                queue_ms=0, run_ms=1, total_ms=1, batch_rows=1, at=START + timedelta(seconds=i),
            )
            for i, (age, city) in enumerate([(1, "Oslo"), (None, None)])
        ]
    )  # fmt: skip
    log.flush()
    batch = log.read("s")
    np.testing.assert_array_equal(batch.inputs.columns["age"], [1.0, np.nan])
    assert batch.inputs.columns["city"].tolist() == ["Oslo", None]
    assert batch.outputs["prediction"].tolist() == [7, 7]


def test_missing_values_text_and_failures_survive(log):
    text = manifest("string", width=2)
    log.append_request(request(known=text, x=np.array([["é", ""]], object)))
    log.append_request(
        request("bad", known=text, x=np.array([["x", "y"]], object), status=422, at=1)
    )
    log.flush()
    batch = log.read("s")
    assert batch.inputs.columns["a"].tolist() == ["é", "x"]
    assert batch.outputs["prediction"].tolist() == ["yes", None]
    assert np.isnan(batch.outputs["score[yes]"][1])
    assert batch.fields["status"].tolist() == [200, 422]
    assert batch.fields["error"].tolist() == ["", "failed"]


def test_windows_versions_and_limits_choose_rows(log):
    for i in range(10):
        log.append_request(request(f"r{i}", at=i, version="v1" if i % 2 else "v2"))
        if i in {3, 7}:
            log.flush()
    log.flush()
    ids = lambda **window: list(log.read("s", **window).ids)  # noqa: E731
    assert ids() == [f"r{i}" for i in range(10)]
    assert ids(since=START + timedelta(seconds=8)) == ["r8", "r9"]
    assert ids(since=datetime(2026, 1, 1, 0, 0, 8)) == ["r8", "r9"]  # noqa: DTZ001 (naive is UTC)
    assert ids(until=START + timedelta(seconds=2)) == ["r0", "r1"]
    assert ids(version="v1") == ["r1", "r3", "r5", "r7", "r9"]
    assert ids(limit=3) == ["r7", "r8", "r9"]
    assert log.read("s", limit=0) is None
    assert log.read("s", version="v3") is None
    assert log.read("nobody") is None
    assert log.read("s", since=datetime.now(UTC) + timedelta(days=1)) is None


def test_versions_with_different_columns_are_read_together(log):
    log.append_request(request("wide", known=manifest(width=4)))
    log.append_request(request("narrow", at=1, version="v2"))
    log.append_request(
        request("text", at=2, version="v3", known=manifest("string"),
                x=np.array([["p", "q", "r"]], object))
    )  # fmt: skip
    log.flush()
    batch = log.read("s")
    assert list(batch.ids) == ["wide", "narrow", "text"]
    assert batch.inputs.columns["a"].tolist() == ["0", "0", "p"]
    np.testing.assert_array_equal(batch.inputs.columns["d"], [3.0, np.nan, np.nan])


def test_foreign_and_torn_files_are_left_out(log, tmp_path, caplog):
    log.append_request(request())
    log.close()
    whole = next((tmp_path / "s").glob("*.parquet"))
    (tmp_path / "s" / "torn.parquet").write_bytes(whole.read_bytes()[:-20])
    (tmp_path / "s" / "empty.parquet").write_bytes(b"")
    (tmp_path / "s" / ".x.parquet.tmp").write_bytes(b"half")
    (tmp_path / "s" / "notes.txt").write_text("hello")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "s" / "other.parquet")
    assert list(log.read("s").ids) == ["r"]
    assert len(caplog.records) == 3


def test_what_does_not_fit_is_dropped_and_counted(tmp_path):
    log = ParquetPredictionLog(tmp_path, flush_s=600, buffer_bytes=10_000)
    for i in range(100):
        log.append_request(request(f"r{i}"))
    log.close()
    assert log.n_written > 0
    assert log.n_dropped == 100 - log.n_written
    log.append_request(request("late"))
    assert log.n_dropped == 101 - log.n_written


def test_a_flush_that_fails_keeps_the_rows(tmp_path):
    log = ParquetPredictionLog(tmp_path, flush_s=600)
    (tmp_path / "s").write_text("in the way")
    log.append_request(request())
    with pytest.raises(WorkspaceError) as caught:
        log.flush()
    assert caught.value.hint
    (tmp_path / "s").unlink()
    log.close()
    assert list(log.read("s").ids) == ["r"]


def test_tensors_without_columns_cost_only_their_columns(log, caplog):
    log.append_request(request("good"))
    log.append_request(request("odd", x=np.float32(3), version="v2"))
    log.flush()
    assert list(log.read("s").ids) == ["good"]
    assert log.n_written == 2
    assert "no columns" in caplog.text


def test_full_buffers_are_written_without_waiting(tmp_path):
    log = ParquetPredictionLog(tmp_path, flush_s=600, flush_rows=5)
    for i in range(5):
        log.append_request(request(f"r{i}"))
    for _ in range(2000):
        if log.n_written == 5:
            break
        threading.Event().wait(0.005)
    assert log.n_written == 5
    log.close()


def test_readers_see_only_whole_segments_while_a_writer_writes(tmp_path):
    log = ParquetPredictionLog(tmp_path, flush_s=600)
    done = threading.Event()
    counts = []

    def read():
        while not done.is_set():
            batch = log.read("s")
            if batch is not None:
                counts.append(batch.n_rows)

    reader = threading.Thread(target=read)
    reader.start()
    for i in range(20):
        log.append_request(request(f"r{i}", 10, at=i))
        log.flush()
    done.set()
    reader.join()
    log.close()
    assert all(count % 10 == 0 for count in counts)
    assert counts == sorted(counts)
    assert log.read("s").n_rows == 200


def test_a_service_cannot_point_outside_the_folder(log):
    with pytest.raises(UsageError):
        log.read("../secrets")


def test_a_folder_that_cannot_be_made_is_found_out_early(tmp_path):
    (tmp_path / "s").write_text("in the way")
    with pytest.raises(WorkspaceError):
        ParquetPredictionLog(tmp_path).prepare("s")
    ParquetPredictionLog(tmp_path / "new").prepare("s")
    assert list((tmp_path / "new" / "s").iterdir()) == []


def test_a_column_rule_that_fits_nothing_is_said_once(tmp_path, caplog):
    rules = [{"match": match, "action": "hash"} for match in ("nmae", "input.age", "err*")]
    redaction = Redaction(tmp_path, LogRules.parse({"column": rules}))
    for _ in range(2):
        redaction.columns("input", {"name": np.array(["Ada"], object), "age": np.array([3])})
        redaction.columns("output", {"score": np.array([0.5])})
    [said] = caplog.messages
    assert "`nmae` fit no column" in said
