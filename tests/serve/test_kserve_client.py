"""KServe's Python client against a real server.

The client brings half a gigabyte of its own, so it lives in a virtual environment beside this one:
`python -m venv .venv-kserve && .venv-kserve/bin/pip install kserve`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from fairlead.backends.runners import open_runner

from .conftest import serving

ROOT = Path(__file__).parents[2]
OWN = ROOT / ".venv-kserve" / "bin" / "python"
PYTHON = sys.executable if find_spec("kserve") else str(OWN)
X = np.array([[1.0, 2.0, -1.0, 0.5], [0.0, 3.0, 1.0, 2.0]], np.float32)


@pytest.mark.skipif(not Path(PYTHON).exists(), reason="there is no .venv-kserve; see above")
def test_kserves_client_gets_the_bundles_own_answer(wines, tmp_path):
    with serving(tmp_path, wines, settings={"grpc_port": 0}) as server:
        end = server.endpoint
        script = Path(__file__).with_name("kserve_talk.py")
        done = subprocess.run(
            [PYTHON, script, end.url, end.grpc, "wines"],
            capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.strip().splitlines()[-1])
    runner = open_runner(wines)
    expected = runner.run({"x": X})
    runner.close()
    for way in ("http", "grpc"):
        answers = found[way]
        assert (answers["live"], answers["ready"], answers["model_ready"]) == (True, True, True)
        assert answers["id"] == "k-1"
        for form in ("json", "binary"):
            np.testing.assert_allclose(answers[form]["scores"], expected["scores"], atol=1e-6)
            assert answers[form]["label"] == expected["label"].tolist()
