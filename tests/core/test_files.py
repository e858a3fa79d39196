"""Atomic writes, also when the process is killed in the middle."""

import errno
import os
import signal
import subprocess
import sys

import pytest

from fairlead.core import files
from fairlead.core.errors import ConflictError, WorkspaceError
from fairlead.core.files import (
    digest_bytes,
    digest_file,
    digest_tree,
    new_folder,
    translated_os_errors,
    write_bytes,
    write_json,
    write_text,
)


def test_digests_of_bytes_files_and_folders_agree(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a").write_bytes(b"abc" * 500_000)
    (tmp_path / "b").write_bytes(b"")
    expected = digest_bytes(b"abc" * 500_000)
    assert digest_file(tmp_path / "sub" / "a") == expected
    assert digest_tree(tmp_path, without=frozenset({"b"})) == {"sub/a": expected}


def test_text_and_json_are_written_whole(tmp_path):
    write_text(tmp_path / "deep" / "t", "ä")
    write_json(tmp_path / "j", {"b": 1, "a": float("inf")})
    assert (tmp_path / "deep" / "t").read_text() == "ä"
    assert (tmp_path / "j").read_text().splitlines()[1].strip().startswith('"a"')


def test_a_failed_write_keeps_the_old_content(tmp_path, monkeypatch):
    write_bytes(tmp_path / "f", b"old")

    def full(_):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WorkspaceError, match="No space left"):
        write_bytes(tmp_path / "f", b"new")
    assert [p.name for p in tmp_path.iterdir()] == ["f"]
    assert (tmp_path / "f").read_bytes() == b"old"


@pytest.mark.parametrize(
    ("error", "hint"),
    [
        (OSError(errno.EROFS, "x"), "can be written"),
        (PermissionError(errno.EACCES, "x"), "you may write"),
        (OSError("odd"), "permissions"),
    ],
)
def test_errors_of_the_system_get_a_hint(tmp_path, error, hint):
    with (
        pytest.raises(WorkspaceError, match="cannot write the thing") as found,
        translated_os_errors(tmp_path, "the thing"),
    ):
        raise error
    assert hint in found.value.hint


def test_an_error_that_is_translated_already_is_kept(tmp_path):
    inner = WorkspaceError("inner", hint="h")
    with pytest.raises(WorkspaceError) as found, translated_os_errors(tmp_path, "outer"):
        raise inner
    assert found.value is inner


def test_a_folder_appears_only_when_it_is_whole(tmp_path):
    target = tmp_path / "deep" / "b"
    with new_folder(target, what="the folder") as folder:
        (folder / "a").write_text("1")
        assert not target.exists()
    assert (target / "a").read_text() == "1"
    assert [p.name for p in target.parent.iterdir()] == ["b"]


def test_an_empty_folder_is_filled_and_a_full_one_is_kept(tmp_path):
    (tmp_path / "b").mkdir()
    with new_folder(tmp_path / "b", what="the folder") as folder:
        (folder / "a").write_text("1")
    with pytest.raises(ConflictError), new_folder(tmp_path / "b", what="the folder"):
        pytest.fail("not reached")
    (tmp_path / "f").write_text("")
    with pytest.raises(ConflictError), new_folder(tmp_path / "f", what="the folder"):
        raise AssertionError("not reached")


@pytest.mark.parametrize("is_seen", [True, False])
def test_a_folder_that_another_process_made_meanwhile_stays(tmp_path, monkeypatch, is_seen):
    target = tmp_path / "b"

    def make():
        target.mkdir()
        (target / "theirs").write_text("x")

    def swap(_staging, _target):
        make()
        raise OSError(errno.ENOTEMPTY, "Directory not empty")

    if not is_seen:
        monkeypatch.setattr(files, "swap_folder", swap)

    def fill():
        with new_folder(target, what="the folder") as folder:
            (folder / "ours").write_text("y")
            if is_seen:
                make()

    with pytest.raises(ConflictError):
        fill()
    assert [item.name for item in tmp_path.iterdir()] == ["b"]
    assert [item.name for item in target.iterdir()] == ["theirs"]


def test_a_folder_is_replaced_when_asked(tmp_path):
    for text in ("1", "2"):
        with new_folder(tmp_path / "b", what="the folder", replace=True) as folder:
            (folder / "a").write_text(text)
    assert (tmp_path / "b" / "a").read_text() == "2"
    assert [p.name for p in tmp_path.iterdir()] == ["b"]


def replace_and_fail(target):
    with new_folder(target, what="the folder", replace=True) as folder:
        (folder / "a").write_text("2")
        raise ValueError("stop")


def test_an_error_leaves_the_old_folder(tmp_path):
    with new_folder(tmp_path / "b", what="the folder") as folder:
        (folder / "a").write_text("1")
    with pytest.raises(ValueError, match="stop"):
        replace_and_fail(tmp_path / "b")
    assert (tmp_path / "b" / "a").read_text() == "1"
    assert [p.name for p in tmp_path.iterdir()] == ["b"]


KILLED = """
import sys
from pathlib import Path
from fairlead.core.files import new_folder
with new_folder(Path(sys.argv[1]), what="the folder", replace=True) as folder:
    (folder / "a").write_text("new")
    print("half", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("was_there", [True, False])
def test_kill_9_in_the_middle_leaves_the_old_folder_or_none(tmp_path, was_there):
    target = tmp_path / "b"
    if was_there:
        target.mkdir()
        (target / "a").write_text("old")
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(target)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout.readline() == b"half\n"
    process.send_signal(signal.SIGKILL)
    process.wait(30)
    process.stdin.close()
    process.stdout.close()
    assert target.exists() == was_there
    if was_there:
        assert (target / "a").read_text() == "old"
    with new_folder(target, what="the folder", replace=True) as folder:
        (folder / "a").write_text("again")
    assert (target / "a").read_text() == "again"


def test_a_folder_of_another_kind_is_never_replaced(tmp_path):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "diary.txt").write_text("mine")
    folder = new_folder(tmp_path / "own", what="it", replace=True, marker="marker")
    with pytest.raises(ConflictError, match="holds no marker"), folder:
        pass
    assert (tmp_path / "own" / "diary.txt").read_text() == "mine"
