"""`fairlead mlops …` as a user sees it: words on stdout and stderr, and exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fairlead.entrypoints.cli.app import main
from tests.mlops.bundle_factory import make_bundle


class Shell:
    """Calls the command line in this process."""

    def __init__(self, capfd: pytest.CaptureFixture[str]) -> None:
        self._capfd = capfd

    def __call__(self, *words: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            main(["mlops", *words])
        out, err = self._capfd.readouterr()
        return int(caught.value.code or 0), out, err

    def json(self, *words: str) -> Any:
        _, out, _ = self(*words, "--json")
        return json.loads(out)


@pytest.fixture
def shell(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FAIRLEAD_HOME", str(tmp_path / "home"))
    return Shell(capfd)


def test_a_command_is_run_listed_shown_and_compared(shell: Shell) -> None:
    command = ("--", sys.executable, "-c", "print('from the command')")
    code, out, _ = shell("track", "run", "--experiment", "e", "-p", "lr=0.1", *command)
    assert code == 0
    assert "from the command" in out
    assert shell("track", "run", "--experiment", "e", "-p", "lr=0.2", *command)[0] == 0
    runs = shell.json("track", "list", "--experiment", "e")
    assert [run["params"]["lr"] for run in runs] == ["0.2", "0.1"]
    code, out, _ = shell("track", "show", runs[0]["id"])
    assert (code, "0.2" in out) == (0, True)
    compared = shell.json("track", "compare", runs[0]["id"], runs[1]["id"])
    assert compared["details"]["differences"]["Parameters"] == [["lr", "0.2", "0.1"]]
    assert shell("track", "list")[0] == 0


def test_with_json_stdout_holds_one_document(shell: Shell) -> None:
    command = ("--", sys.executable, "-c", "print('from the command')")
    code, out, err = shell("track", "run", "--json", *command)
    assert (code, json.loads(out)["details"]["exit_code"]) == (0, 0)
    assert "from the command" in err


def test_a_failing_command_ends_with_1(shell: Shell) -> None:
    code, out, _ = shell("track", "run", "--", sys.executable, "-c", "exit(7)")
    assert code == 1
    assert "exit code 7" in out


@pytest.mark.parametrize(
    "words",
    [
        ("track", "run"),
        ("track", "run", "--", "no-such-program"),
        ("track", "run", "-p", "lr", "--", "true"),
        ("track", "run", "--input", "missing", "--", "true"),
        ("track", "run", "--max-file-mb", "-1", "--", "true"),
        ("track", "run", "--nonsense", "--", "true"),
        ("track", "show", "nope"),
        ("track", "list", "--status", "odd"),
        ("track", "compare", "a", "b"),
        ("registry", "register", "nowhere", "--name", "m"),
        ("registry", "show", "m"),
        ("registry", "list", "m"),
        ("registry", "alias", "m", "1", "champion"),
        ("registry", "delete-alias", "m", "champion"),
        ("registry", "resolve", "a/b"),
        ("pipeline", "show", "nope"),
    ],
)
def test_a_wrong_word_is_an_error_with_a_hint_and_no_trace(
    shell: Shell, words: tuple[str, ...]
) -> None:
    code, out, err = shell(*words)
    assert (code, out) == (2, "")
    assert "hint: " in err
    assert "Traceback" not in err


def test_models_are_registered_and_resolved(shell: Shell, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    words = ("registry", "register", str(bundle.path), "--name", "churn", "--alias", "champion")
    code, out, _ = shell(*words)
    assert (code, "churn:1 is registered" in out) == (0, True)
    shell(*words[:-2])
    assert shell("registry", "alias", "churn", "2", "challenger")[0] == 0
    listed = shell.json("registry", "list", "churn")
    assert [(item["version"], item["aliases"]) for item in listed] == [
        (2, ["challenger"]), (1, ["champion"]),
    ]  # fmt: skip
    assert shell.json("registry", "show", "churn@champion")["details"]["version"] == 1
    path = Path(shell("registry", "resolve", "churn@champion")[1].strip())
    assert (path / "model.onnx").read_bytes() == b"weights"
    assert shell("registry", "delete-alias", "churn", "champion")[0] == 0
    assert shell("registry", "list")[0] == 0


def test_runs_of_plans_are_listed_and_shown(shell: Shell, tmp_path: Path) -> None:
    from tests.mlops.pipeline_driver import drive

    assert shell.json("pipeline", "list") == []
    url = f"sqlite:///{tmp_path / 'home' / 'state.db'}"
    drive(str(tmp_path), "plan-1", {"quantize": "refuse"}, "", url)
    code, out, _ = shell("pipeline", "list")
    assert (code, "plan-1" in out, "refused" in out) == (0, True, True)
    shown = shell.json("pipeline", "show", "plan-1")
    assert shown["details"]["status"] == "refused"
    assert shell("pipeline", "show", "plan-1")[0] == 0


def test_help_loads_no_database_library() -> None:
    code = (
        "import sys, fairlead.entrypoints.cli.app as a\n"
        "try: a.main(['mlops', 'track', 'run', '--help'])\n"
        "except SystemExit: pass\n"
        "print([n for n in ('sqlalchemy', 'dbos', 'mlflow') if n in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.endswith("[]\n")
