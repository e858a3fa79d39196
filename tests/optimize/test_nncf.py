"""NNCF as a method; most is skipped where it is not installed."""

import subprocess
import sys

import numpy as np
import pytest

from fairlead.backends import nncf_process
from fairlead.backends.nncf_process import has_nncf, quantize_with_nncf
from fairlead.backends.onnx_graph import write_graph
from fairlead.backends.onnxruntime import OnnxRunner
from fairlead.core.errors import MissingExtraError, ModelError
from fairlead.optimize.quantization import QuantizationConfig, quantize
from tests.optimize import zoo
from tests.optimize.conftest import digits_bundle, pack_bundle  # noqa: F401

needs_nncf = pytest.mark.skipif(not has_nncf(), reason="NNCF is not installed")
ROWS = {"x": np.random.default_rng(0).normal(0, 1, (48, 16)).astype(np.float32)}


@pytest.mark.skipif(has_nncf(), reason="NNCF is installed")
def test_without_the_library_the_install_line_is_named(digits_bundle, tmp_path) -> None:  # noqa: F811
    with pytest.raises(MissingExtraError) as caught:
        quantize(
            digits_bundle, zoo.digits_dataset(), QuantizationConfig(method="nncf-int8"),
            out=tmp_path / "out",
        )  # fmt: skip
    assert "fairlead[nncf]" in caught.value.hint
    assert not (tmp_path / "out").exists()


@needs_nncf
def test_the_model_computes_in_eight_bits_and_answers_alike() -> None:
    source = write_graph(zoo.dense(sizes=(16, 256, 256, 4), last=None))
    made = quantize_with_nncf(source, ROWS, is_transformer=False, is_symmetric=False)
    assert b"QuantizeLinear" in made
    assert len(made) < 0.5 * len(source)
    exact, found = OnnxRunner(source).run(ROWS)["y"], OnnxRunner(made).run(ROWS)["y"]
    assert np.corrcoef(exact.ravel(), found.ravel())[0, 1] > 0.97


@needs_nncf
def test_a_model_it_cannot_take_is_our_error() -> None:
    with pytest.raises(ModelError, match="NNCF cannot quantize"):
        quantize_with_nncf(b"\x08garbage", ROWS, is_transformer=False, is_symmetric=False)


@needs_nncf
def test_it_competes_by_name_under_a_budget(digits_bundle, tmp_path) -> None:  # noqa: F811
    config = QuantizationConfig(method="nncf-int8", max_drop=0.02, goal="size", time_limit_s=0.3)
    outcome = quantize(digits_bundle, zoo.digits_dataset(), config, out=tmp_path / "out")
    assert outcome.report.verdict == "done"
    assert "nncf-int8" in outcome.report.details["change"]
    assert outcome.noun.size_bytes < 0.5 * digits_bundle.size_bytes


def test_its_process_refuses_every_connection() -> None:
    for event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
        with pytest.raises(PermissionError, match="no connections"):
            nncf_process._refuse_connections(event, ("somewhere", 443))
    nncf_process._refuse_connections("open", ("file",))


ASKING = """
import socket, sys
from fairlead.backends import nncf_process
sys.addaudithook(nncf_process._refuse_connections)
socket.create_connection(("127.0.0.1", 9), timeout=1)
"""


def test_the_refusal_reaches_the_sockets_of_a_process(tmp_path) -> None:
    (tmp_path / "asking.py").write_text(ASKING)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "asking.py")], capture_output=True, text=True, timeout=120
    )
    assert "no connections while NNCF runs" in done.stderr
