"""Sequences of different lengths, padded together by a real server of a real model."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from fairlead.core.profile import ReferenceProfile
from fairlead.core.signature import Signature, TensorSpec

from . import inference_models as models
from .conftest import serving

PADDING = {"ids": 0, "mask": 0}


def masked_bundle(target, *, looks_at_padding=False):
    """Embeds tokens; `each` is one number per token, `mean` their mean over the mask."""
    table = np.arange(1, 101, dtype=np.float32)
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["each"]),
        helper.make_node("Cast", ["mask"], ["weight"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["each", "one" if looks_at_padding else "weight"], ["shown"]),
        helper.make_node("ReduceSum", ["shown", "axis"], ["total"], keepdims=0),
        helper.make_node("ReduceSum", ["weight", "axis"], ["count"], keepdims=0),
        helper.make_node("Div", ["total", "count"], ["mean"]),
    ]
    shape = ["n", "tokens"]
    model = models.save_model(
        nodes,
        [models.value(n, TensorProto.INT64, shape) for n in PADDING],
        [models.value("each", TensorProto.FLOAT, shape),
         models.value("mean", TensorProto.FLOAT, ["n"])],
        [numpy_helper.from_array(table, "table"),
         numpy_helper.from_array(np.array([1], np.int64), "axis"),
         numpy_helper.from_array(np.array(1, np.float32), "one")],
    )  # fmt: skip
    signature = Signature(
        inputs=tuple(TensorSpec(name=n, dtype="int64", shape=(-1, -1)) for n in PADDING),
        outputs=(
            TensorSpec(name="each", dtype="float32", shape=(-1, -1)),
            TensorSpec(name="mean", dtype="float32", shape=(-1,)),
        ),
    )
    return models.pack_model(
        target, model, signature, profile=ReferenceProfile(n_rows=0, columns=()), name="tokens",
        task="other", prediction_output="mean",
    )  # fmt: skip


@pytest.mark.parametrize("looks_at_padding", [False, True])
def test_every_request_gets_its_own_sequence_back(tmp_path, looks_at_padding):
    bundle = masked_bundle(tmp_path / "bundle", looks_at_padding=looks_at_padding)
    settings = {"padding": PADDING, "inline_run_ms": 0}
    rng = np.random.default_rng(0)
    sequences = [rng.integers(1, 100, (1, length)) for length in rng.integers(1, 40, 120)]
    with serving(tmp_path, bundle, "tokens", settings=settings) as handle:

        def ask(ids):
            with handle.client() as client:
                return client.infer({"ids": ids, "mask": np.ones_like(ids)}).outputs

        with ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(ask, sequences))
        warned = "sees its padding" in handle.log.read_text()
    assert warned == looks_at_padding
    for ids, outputs in zip(sequences, answers, strict=True):
        np.testing.assert_array_equal(outputs["each"], ids + 1)
        np.testing.assert_allclose(outputs["mean"], (ids + 1).mean(axis=1), rtol=1e-5)
