"""What every test gets: a clean environment, and real material made once."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import settings

# The same examples everywhere: what fails here fails on every machine.
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def clean_surroundings(monkeypatch, tmp_path_factory):
    """No setting of the machine leaks into a test, and no test writes into the checkout."""
    for name in list(os.environ):
        if name.startswith("FAIRLEAD_") or name == "MLFLOW_TRACKING_URI":
            monkeypatch.delenv(name)
    monkeypatch.setenv("FAIRLEAD_HOME", str(tmp_path_factory.mktemp("home") / ".fairlead"))
    monkeypatch.setenv("COLUMNS", "160")


@pytest.fixture(scope="session")
def material(tmp_path_factory, worker_id) -> Path:
    """A folder with the demonstration's model and rows, made once for all workers."""
    from fairlead.api.demo import prepare_demo

    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "material"
    with _lock(folder.with_suffix(".lock")):
        if not folder.exists():
            prepare_demo(folder)
    return folder


@pytest.fixture(scope="session")
def bundles(material, tmp_path_factory, worker_id) -> Path:
    """The material with two bundles beside it: `baseline` and its quantized `candidate`."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "bundles"
    with _lock(folder.with_suffix(".lock")):
        if not folder.exists():
            made = folder.with_suffix(".making")
            shutil.rmtree(made, ignore_errors=True)
            shutil.copytree(material, made)
            _pack(made)
            made.rename(folder)
    return folder


def _pack(folder: Path) -> None:
    from fairlead.api import Context, pack, quantize

    context = Context.open(home=folder / ".fairlead")
    rows = str(folder / "holdout.parquet")
    pack(str(folder / "model.onnx"), data=rows, labels="label", out=folder / "baseline",
         name="digits", context=context)  # fmt: skip
    quantize(
        folder / "baseline", rows, labels="label", out=folder / "candidate", context=context,
        settings={"method": "dynamic-int8", "time_limit_s": 2.0},
    )  # fmt: skip


@pytest.fixture
def cli(tmp_path):
    """Run `fairlead` as a user does; returns the finished process with `.json` when asked."""
    return _runner(tmp_path)


@pytest.fixture(scope="module")
def module_cli(tmp_path_factory):
    """The same for fixtures that serve a whole module."""
    return _runner(tmp_path_factory.mktemp("cwd"))


def _runner(folder):
    def run(*words, cwd=None, check=None, env=None, timeout=120):
        done = subprocess.run(
            [sys.executable, "-m", "fairlead", *map(str, words)],
            cwd=cwd or folder, capture_output=True, text=True, timeout=timeout, check=False,
            env={**os.environ, **(env or {})},
        )  # fmt: skip
        if check is not None:
            assert done.returncode == check, done.stdout + done.stderr
        done.json = json.loads(done.stdout) if "--json" in words and done.stdout else None
        return done

    return run


class _lock:  # noqa: N801 (used like a function)
    """An exclusive lock between the workers of one test run."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self):
        import fcntl

        self._file = self._path.open("w")
        fcntl.flock(self._file, fcntl.LOCK_EX)

    def __exit__(self, *_):
        self._file.close()
