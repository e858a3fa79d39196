"""Old segments of the prediction log go, whole and counted, and never under a reader."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta

import pyarrow.parquet  # noqa: F401 (so that segments are made in this process)

from fairlead.backends.prediction_log import ParquetPredictionLog
from fairlead.backends.prediction_retention import Expired, Retention, expire, expired, reading
from fairlead.backends.prediction_segments import make_segments
from fairlead.backends.prediction_spool import STAMP_FORMAT

from .logged_requests import request


def written(folder, n_segments, rows=50):
    """Segments of one service, each of as many rows; returns them, the oldest first."""
    for number in range(n_segments):
        log = ParquetPredictionLog(folder)
        log.append_request(request(f"r{number}", rows, service="shop"))
        log.close()
    return sorted((folder / "shop").glob("*.parquet"))


def aged(path, days):
    """Give a segment the name that one of that age has."""
    made = datetime.now(UTC) - timedelta(days=days)
    rest = path.name.partition("-")[2]
    return path.rename(path.with_name(f"{made:{STAMP_FORMAT}}-{rest}"))


def n_rows(folder):
    batch = ParquetPredictionLog(folder).read("shop")
    return 0 if batch is None else batch.n_rows


def test_segments_go_by_age(tmp_path):
    first, second, third = written(tmp_path, 3)
    aged(first, 40)
    aged(second, 31)
    make_segments(tmp_path, "shop", Retention(days=30))
    assert sorted((tmp_path / "shop").glob("*.parquet")) == [third]
    assert expired(tmp_path / "shop")[:2] == (2, 100)
    assert n_rows(tmp_path) == 50


def test_segments_go_by_size_the_oldest_first(tmp_path):
    segments = written(tmp_path, 4)
    sizes = [path.stat().st_size for path in segments]
    gone = expire(tmp_path / "shop", Retention(n_bytes=sizes[2] + sizes[3]))
    assert gone == Expired(2, 100, sizes[0] + sizes[1])
    assert sorted((tmp_path / "shop").glob("*.parquet")) == segments[2:]


def test_without_limits_everything_stays(tmp_path):
    aged(written(tmp_path, 1)[0], 4000)
    make_segments(tmp_path, "shop")
    assert n_rows(tmp_path) == 50
    assert expired(tmp_path / "shop") == Expired()


def test_spools_never_go(tmp_path):
    log = ParquetPredictionLog(tmp_path)
    log.append_request(request("r", 50, service="shop"))
    log.flush()
    assert expire(tmp_path / "shop", Retention(days=1e-9, n_bytes=1)) == Expired()
    assert n_rows(tmp_path) == 50
    log.close()


def test_nothing_goes_while_somebody_reads(tmp_path):
    place = tmp_path / "shop"
    aged(written(tmp_path, 1)[0], 40)
    begun, done = threading.Event(), threading.Event()

    def read():
        with reading(place):
            begun.set()
            assert done.wait(60)

    reader = threading.Thread(target=read)
    reader.start()
    assert begun.wait(60)
    assert expire(place, Retention(days=30)) == Expired()
    done.set()
    reader.join()
    assert expire(place, Retention(days=30)).rows == 50


def test_a_log_that_starts_removes_what_grew_old_meanwhile(tmp_path):
    aged(written(tmp_path, 1)[0], 40)
    log = ParquetPredictionLog(tmp_path, keep=Retention(days=30))
    log.prepare("shop")
    log.close()
    assert n_rows(tmp_path) == 0
