"""The command line without a process of its own: the same arguments, exit codes and texts."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import dataclass

import pytest


@dataclass(frozen=True)
class Done:
    """A finished command."""

    returncode: int
    stdout: str
    stderr: str

    @property
    def json(self):
        """The one document on stdout."""
        return json.loads(self.stdout)

    @property
    def lines(self):
        """The documents on stdout, one per line."""
        return [json.loads(line) for line in self.stdout.splitlines()]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Run `fairlead` in this process; use the fixture `cli` where a real one matters."""

    def run(*words, check=None, env=None, stdin=b""):
        from fairlead.entrypoints.cli import main

        out, err = io.StringIO(), io.StringIO()
        with monkeypatch.context() as patch:
            for name, value in (env or {}).items():
                patch.setenv(name, value)
            patch.chdir(tmp_path)
            patch.setattr(sys, "stdout", out)
            patch.setattr(sys, "stderr", err)
            patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
            with pytest.raises(SystemExit) as left:
                main([str(word) for word in words])
        code, stdout, stderr = left.value.code, out.getvalue(), err.getvalue()
        if check is not None:
            assert code == check, stdout + stderr
        return Done(code, stdout, stderr)

    return run
