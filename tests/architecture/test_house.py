"""The rules of the house, as far as a test can see them."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "fairlead"
MODULES = sorted(SOURCE.rglob("*.py"))
FORBIDDEN_NAMES = {
    "utils", "helpers", "common", "misc", "manager", "engine", "processor", "base2", "new",
    "legacy", "future", "v2", "_impl",
}  # fmt: skip
HEAVY = {
    "onnx", "onnxruntime", "pyarrow", "pandas", "polars", "scipy", "sklearn", "torch", "mlflow",
    "dbos", "sqlalchemy", "matplotlib", "starlette", "uvicorn", "tritonclient",
}  # fmt: skip
SKILLS = [
    "optimize/quantization", "optimize/compression", "optimize/hardware",
    "serve/inference", "serve/rollout", "serve/scaling",
    "mlops/tracking", "mlops/pipelines", "observe/monitoring", "observe/debugging",
]  # fmt: skip


def _python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout


def test_import_contracts_are_kept():
    done = subprocess.run(
        [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.parametrize(
    "what", ["import fairlead", "import fairlead.catalog", "import fairlead.router"]
)
def test_the_light_layers_load_no_heavy_library(what):
    loaded = json.loads(
        _python(f"{what}; import sys, json; print(json.dumps(sorted(sys.modules)))")
    )
    assert not HEAVY & {name.split(".")[0] for name in loaded}


def test_help_loads_no_heavy_library():
    code = (
        "import sys, json\nfrom fairlead.entrypoints.cli import main\n"
        "sys.stdout = sys.stderr\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "sys.__stdout__.write(json.dumps(sorted(sys.modules)))"
    )
    loaded = json.loads(_python(code))
    assert not HEAVY & {name.split(".")[0] for name in loaded}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.relative_to(SOURCE).as_posix())
def test_a_file_tells_one_thing_in_short_functions(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 500
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            length = (node.end_lineno or 0) - body[0].lineno + 1 if body else 0
            assert length <= 60, f"{node.name} has {length} lines"


def test_no_module_is_named_after_nothing():
    names = {part for path in MODULES for part in path.relative_to(SOURCE).with_suffix("").parts}
    assert not FORBIDDEN_NAMES & names


@pytest.mark.parametrize("skill", SKILLS)
def test_every_skill_folder_holds_the_same_things(skill):
    folder = SOURCE / skill
    found = {path.name for path in folder.iterdir()}
    assert {"__init__.py", "card.py", "config.py", "skill.py", "methods"} <= found


def test_the_core_install_stays_small():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert len(project["dependencies"]) <= 15


def test_every_extra_that_a_message_names_exists():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = set(project["optional-dependencies"])
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "requires":
                argument = node.args[0]
                if isinstance(argument, ast.Constant):
                    assert argument.value in extras, f"{path}: {argument.value}"


def test_only_settings_reads_the_environment():
    allowed = {SOURCE / "core" / "settings.py"}
    for path in set(MODULES) - allowed:
        assert "os.environ.get(" not in path.read_text(), path
        assert "os.getenv" not in path.read_text(), path
