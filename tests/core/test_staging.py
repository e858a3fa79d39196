"""Folders under construction: nothing piles up when a process is killed, nothing is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from fairlead.core.errors import ConflictError, WorkspaceError
from fairlead.core.files import new_folder, scratch_folder, write_text
from fairlead.core.staging import staging_folder

_MAKER = """
import os, sys
from pathlib import Path
from fairlead.core.files import new_folder
with new_folder(Path(sys.argv[1]), what="the folder", replace=True) as folder:
    (folder / "part").write_text("half")
    print("making", flush=True)
    sys.stdin.read()
"""
_SWAPPER = """
import os, signal, sys
from pathlib import Path
from fairlead.core.files import new_folder
rename = Path.rename
def killed(self, target):
    if Path(target) == Path(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
    return rename(self, target)
Path.rename = killed
with new_folder(Path(sys.argv[1]), what="the folder", replace=True) as folder:
    (folder / "new").write_text("new")
"""


@pytest.fixture
def maker(tmp_path):
    """A process that is in the middle of making `tmp_path / "out"`."""
    command = [sys.executable, "-c", _MAKER, str(tmp_path / "out")]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "making\n"
        yield process
        process.kill()


def _make(target, text="whole"):
    with new_folder(target, what="the folder", replace=True) as folder:
        (folder / "file").write_text(text)


def test_what_a_killed_process_left_is_cleared_by_the_next(maker, tmp_path):
    maker.send_signal(signal.SIGKILL)
    maker.wait()
    assert len(list(tmp_path.iterdir())) == 1
    _make(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_a_living_process_makes_is_left_alone(maker, tmp_path):
    _make(tmp_path / "out")
    making = [path for path in tmp_path.iterdir() if path.name != "out"]
    assert [(path / "part").read_text() for path in making] == ["half"]


def test_a_folder_of_the_user_that_looks_alike_is_left_alone(tmp_path):
    for name in (".out.backup", ".out.abcdefgh", ".outer.abcdefgh.making"):
        (tmp_path / name).mkdir()
    _make(tmp_path / "out")
    assert len(list(tmp_path.iterdir())) == 4


def test_killed_between_old_and_new_the_old_one_comes_back(tmp_path):
    target = tmp_path / "out"
    _make(target, "old")
    killed = subprocess.run([sys.executable, "-c", _SWAPPER, str(target)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not target.exists()
    with staging_folder(tmp_path, "out"):
        assert (target / "file").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_error_leaves_the_old_folder_and_nothing_beside_it(tmp_path):
    target = tmp_path / "out"
    _make(target, "old")
    with (
        pytest.raises(ZeroDivisionError),
        new_folder(target, what="the folder", replace=True) as folder,
    ):
        (folder / "file").write_text(str(1 / 0))
    assert (target / "file").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_long_name_is_no_obstacle(tmp_path):
    target = tmp_path / ("ü" * 120)
    _make(target)
    assert (target / "file").read_text() == "whole"


def test_scratch_is_gone_afterwards():
    with scratch_folder("test") as folder:
        assert os.access(folder, os.W_OK)
    assert not folder.exists()


def test_a_file_in_the_way_is_never_replaced_by_a_folder(tmp_path):
    write_text(tmp_path / "out", "mine")
    with pytest.raises(ConflictError):
        _make(tmp_path / "out")


def test_a_folder_in_the_way_of_a_file_is_named(tmp_path):
    with pytest.raises(WorkspaceError, match="directory"):
        write_text(tmp_path, "text")
