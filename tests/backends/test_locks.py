"""Locks: one holder at a time, and none after the holder died."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from fairlead.backends.locks import exclusive, is_held
from fairlead.core.errors import ConflictError, WorkspaceError
from tests import processes


def url_of(folder: Path) -> str:
    return f"sqlite:///{folder / 'state.db'}"


def test_a_second_holder_is_refused_and_told_who_the_first_is(tmp_path: Path) -> None:
    with exclusive(url_of(tmp_path), "run a"):
        assert is_held(url_of(tmp_path), "run a")
        with (
            pytest.raises(ConflictError, match=str(os.getpid())) as caught,
            exclusive(url_of(tmp_path), "run a"),
        ):
            pass
        assert "wait" in caught.value.hint
        with exclusive(url_of(tmp_path), "run b"):
            pass
    assert not is_held(url_of(tmp_path), "run a")


def hold_and_die(database_url: str) -> None:
    with exclusive(database_url, "run a"):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_lock_dies_with_its_holder(tmp_path: Path) -> None:
    assert processes.run(hold_and_die, url_of(tmp_path)) == -9
    assert list((tmp_path / "locks").iterdir())
    assert not is_held(url_of(tmp_path), "run a")
    with exclusive(url_of(tmp_path), "run a"):
        pass
    assert list((tmp_path / "locks").iterdir()) == []


def count_up(database_url: str, file: str) -> None:
    path = Path(file)
    for _ in range(10):
        while True:
            try:
                with exclusive(database_url, "counter"):
                    path.write_text(str(int(path.read_text()) + 1))
                break
            except ConflictError:
                continue


def test_four_processes_never_hold_it_together(tmp_path: Path) -> None:
    counter = tmp_path / "counter"
    counter.write_text("0")
    calls = [(count_up, (url_of(tmp_path), str(counter)))] * 4
    assert processes.run_all(calls) == [0] * 4
    assert counter.read_text() == "40"


def test_a_lock_that_cannot_be_written_is_an_error_with_a_hint(tmp_path: Path) -> None:
    (tmp_path / "locks").write_text("in the way")
    with (
        pytest.raises(WorkspaceError, match="lock") as caught,
        exclusive(url_of(tmp_path), "run a"),
    ):
        pass
    assert caught.value.hint
