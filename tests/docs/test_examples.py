"""Every example runs, in the order in which a reader would."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "examples"
ORDER = [
    "pack", "quantize", "compress", "tune", "serve", "roll_out", "scale", "track", "pipeline",
    "monitor", "diagnose",
]  # fmt: skip


@pytest.fixture(scope="module")
def place(material, tmp_path_factory):
    folder = tmp_path_factory.mktemp("examples")
    shutil.copytree(material, folder, dirs_exist_ok=True)
    return folder


@pytest.mark.parametrize("name", ORDER)
def test_the_example_runs(name, place):
    env = {**os.environ, "FAIRLEAD_HOME": str(place / ".fairlead")}
    done = subprocess.run(
        [sys.executable, str(FOLDER / f"{name}.py"), str(place)],
        cwd=place, env=env, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip()


def test_no_example_is_forgotten_or_long():
    found = {path.stem: path for path in FOLDER.glob("*.py")}
    assert set(found) == set(ORDER)
    assert all(len(path.read_text().splitlines()) <= 40 for path in found.values())
