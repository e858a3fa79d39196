"""A process that logs predictions, for tests that kill it: FOLDER PREFIX COUNT [how it ends]."""

from __future__ import annotations

import os
import resource
import signal
import sys
import threading
from pathlib import Path

from fairlead.backends.prediction_log import ParquetPredictionLog
from tests.backends.logged_requests import request


def committed(log):
    """Commit and wait; returns the problem or None."""
    done = threading.Event()
    problems = []
    log.commit(lambda problem: (problems.append(problem), done.set()))
    done.wait(20)
    return problems[0]


def main(folder, prefix, count, end="close"):
    log = ParquetPredictionLog(Path(folder), flush_s=600, is_durable=True)
    for i in range(int(count)):
        log.append_request(request(f"{prefix}{i}", at=i))
        if i % 50 == 49:
            assert committed(log) is None
    if end == "kill":
        assert committed(log) is None
        log.append_request(request("lost"))
        os.kill(os.getpid(), signal.SIGKILL)
    if end == "full":
        assert committed(log) is None
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        size = max(path.stat().st_size for path in Path(folder, "s").glob("*.spool"))
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, resource.RLIM_INFINITY))
        log.append_request(request("refused"))
        problem = committed(log)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        log.append_request(request("after"))
        assert committed(log) is None
        sys.stdout.write(f"{problem}\n{tuple(log.counts)}\n")
    assert "pyarrow" not in sys.modules
    log.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
