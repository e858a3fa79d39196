"""Models that are too large for one file: their matrices are read one by one.

The limit is lowered here; `benchmarks/optimize/large.py` does the same with 2.1 GiB of weights.
"""

import numpy as np
import onnx
import pytest

from fairlead.backends import onnx_models
from fairlead.backends.onnx_graph import read_large, stored_bytes
from fairlead.backends.runners import open_runner
from fairlead.core.bundle import Bundle
from fairlead.core.dataset import bind
from fairlead.optimize.quantization import QuantizationConfig, quantize, skill
from tests.optimize import zoo

QUICK = {"time_limit_s": 0.2, "max_drop": 0.05}


@pytest.fixture(scope="module")
def large(pack_bundle):
    """A network whose weights lie beside the file, as those of a large one must."""
    model = zoo.digits_mlp((256, 256))
    tensors = [
        onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor), tensor.name)
        for tensor in model.graph.initializer
    ]
    del model.graph.initializer[:]
    model.graph.initializer.extend(tensors)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_models, "_INLINE_BYTES", 1000)
        return pack_bundle(model, zoo.digits_dataset(), external=True)


@pytest.fixture
def limited(monkeypatch):
    monkeypatch.setattr(skill, "_LARGEST_BYTES", 100_000)


def judged(bundle, out, **settings):
    config = QuantizationConfig.parse({**QUICK, **settings})
    return quantize(bundle, zoo.digits_dataset(), config, out=out)


def test_only_small_tensors_are_read(large) -> None:
    graph = read_large(large.model_path, leave=lambda model: ["coefficient"])
    outside = [
        tensor.name
        for tensor in graph.graph.initializer
        if onnx.external_data_helper.uses_external_data(tensor)
    ]
    assert outside == ["coefficient"]
    assert stored_bytes(large.model_path) == large.size_bytes > 300_000


@pytest.mark.parametrize("method", ["auto", "weight-int8", "weight-int4"])
def test_weights_are_stored_in_fewer_bits(large, limited, tmp_path, method) -> None:
    outcome = judged(large, tmp_path / "out", method=method, goal="size")
    assert outcome.report.verdict == "done", outcome.report.summary
    assert outcome.noun.size_bytes < 0.35 * large.size_bytes
    feeds = bind(
        zoo.digits_dataset(), large.signature, feature_columns=large.manifest.feature_columns
    )
    labels = []
    for bundle in (large, Bundle.open(tmp_path / "out")):
        runner = open_runner(bundle)
        labels.append(runner.run(feeds)[bundle.manifest.prediction_output])
        runner.close()
    assert np.mean(labels[0] == labels[1]) > 0.95


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"method": "dynamic-int8"}, "dynamic-int8 stops at 2 GiB"),
        ({"method": "weight-int4", "rounding": "gptq"}, "gptq needs what flows"),
    ],
)
def test_what_needs_the_model_in_one_piece_keeps_it_and_says_so(
    large, limited, tmp_path, settings, words
) -> None:
    outcome = judged(large, tmp_path / "out", **settings)
    assert outcome.report.verdict == "kept"
    assert words in outcome.report.summary
    assert outcome.noun.digest == large.digest
