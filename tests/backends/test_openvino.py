"""OpenVINO as a runtime; everything here is skipped where it is not installed."""

import os
import subprocess
import sys

import numpy as np
import pytest

from fairlead.backends.onnx_graph import write_graph
from fairlead.backends.onnxruntime import OnnxRunner
from fairlead.backends.openvino import OPENVINO, OpenVinoRunner, has_openvino
from fairlead.backends.openvino_profile import profile_openvino
from fairlead.backends.runners import open_onnx
from fairlead.core.bundle import RuntimeSettings
from fairlead.core.errors import MissingExtraError, ModelError, SignatureError
from tests.optimize import zoo

needs_openvino = pytest.mark.skipif(not has_openvino(), reason="OpenVINO is not installed")
SETTINGS = RuntimeSettings(execution_provider=OPENVINO, intra_op_threads=1)
ROWS = {"x": np.random.default_rng(0).normal(0, 1, (9, 16)).astype(np.float32)}


@pytest.mark.skipif(has_openvino(), reason="OpenVINO is installed")
def test_without_the_library_the_install_line_is_named() -> None:
    with pytest.raises(MissingExtraError) as caught:
        open_onnx(write_graph(zoo.dense()), SETTINGS)
    assert "fairlead[openvino]" in caught.value.hint


@needs_openvino
def test_it_gives_what_onnx_runtime_gives() -> None:
    model = write_graph(zoo.dense())
    fast, known = open_onnx(model, SETTINGS), OnnxRunner(model)
    assert isinstance(fast, OpenVinoRunner)
    assert fast.signature == known.signature
    np.testing.assert_allclose(fast.run(ROWS)["y"], known.run(ROWS)["y"], atol=1e-5)
    again = {"x": ROWS["x"][:2]}
    np.testing.assert_allclose(fast.run(again)["y"], known.run(again)["y"], atol=1e-5)
    nothing = {"x": ROWS["x"][:0]}
    assert fast.run(nothing)["y"].shape == known.run(nothing)["y"].shape == (0, 4)
    fast.close()


@needs_openvino
def test_wrong_rows_and_broken_models_are_our_errors(tmp_path) -> None:
    runner = OpenVinoRunner(write_graph(zoo.dense()), SETTINGS)
    with pytest.raises(SignatureError):
        runner.run({"x": ROWS["x"][:, :3]})
    (tmp_path / "broken.onnx").write_bytes(b"\x08garbage" * 9)
    with pytest.raises(ModelError):
        OpenVinoRunner(tmp_path / "broken.onnx", SETTINGS)


@needs_openvino
def test_settings_choose_the_precision_of_what_is_not_quantized() -> None:
    model = write_graph(zoo.dense(sizes=(16, 256, 256, 4), last=None))
    exact = OpenVinoRunner(model, SETTINGS).run(ROWS)["y"]
    known = OnnxRunner(model).run(ROWS)["y"]
    np.testing.assert_allclose(exact, known, atol=1e-5)


LISTENING = """
import sys

def hear(event, details):
    if event.startswith("socket.") or event == "urllib.Request":
        sys.exit(f"{event} {details}")

sys.addaudithook(hear)
from fairlead.backends.openvino import OpenVinoRunner
OpenVinoRunner(sys.argv[1])
"""


@needs_openvino
def test_running_a_model_reports_to_nobody(tmp_path) -> None:
    (tmp_path / "model.onnx").write_bytes(write_graph(zoo.dense()))
    home = tmp_path / "home"
    home.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", LISTENING, str(tmp_path / "model.onnx")],
        env={**os.environ, "HOME": str(home)}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not (home / "intel").exists()


@needs_openvino
def test_layers_are_profiled_by_its_own_counters(tmp_path) -> None:
    model = zoo.save(zoo.dense(sizes=(16, 512, 512, 4), last=None), tmp_path / "model.onnx")
    found = profile_openvino(model, ROWS, SETTINGS, budget_ms=50.0)
    n_rows = len(ROWS["x"])
    assert found.rows == n_rows
    flops = sum(one.flops for one in found.operators if one.operator == "FullyConnected")
    assert flops == pytest.approx(2 * n_rows * (16 * 512 + 512 * 512 + 512 * 4), rel=0.05)
    largest = max(found.operators, key=lambda one: one.flops)
    assert largest.n_bytes >= 4 * 512 * 512
    assert largest.time_ms > 0
    assert found.bound in ("compute-bound", "memory-bound", "overhead-bound")


@needs_openvino
def test_what_it_cannot_profile_is_our_error(tmp_path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"\x08garbage" * 9)
    with pytest.raises(ModelError, match="OpenVINO cannot profile"):
        profile_openvino(tmp_path / "broken.onnx", ROWS, SETTINGS)
