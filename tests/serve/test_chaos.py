"""A few seconds of benchmarks/serving/chaos.py: everything at once, and nothing wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

CHAOS = Path(__file__).parents[2] / "benchmarks" / "serving" / "chaos.py"


def test_everything_at_once_gives_right_answers_or_honest_refusals(tmp_path):
    report = tmp_path / "report.json"
    words = ["--minutes", "0.1", "--every", "0.7", "--kill-every", "2.5", "--rate", "100",
             "--clients", "1", "--json", report]  # fmt: skip
    done = subprocess.run(
        [sys.executable, CHAOS, *map(str, words)],
        capture_output=True, text=True, timeout=150, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    said = json.loads(report.read_text())
    assert not any(said["verdict"].values())
    assert said["right answers"] > 50
    assert said["changes"]["kill -9"] >= 1
    assert {"reload", "version switch", "unload", "traffic split"} <= set(said["changes"])
