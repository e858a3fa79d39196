"""Requests as the prediction log gets them."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np

from fairlead.backends.logged_request import LoggedRequest
from fairlead.core.bundle import BundleManifest
from fairlead.core.signature import Signature, TensorSpec

START = datetime(2026, 1, 1, tzinfo=UTC)


def manifest(dtype="float32", *, width=3):
    return BundleManifest(
        name="m",
        kind="onnx",
        model_file="model.onnx",
        task="classification",
        signature=Signature(
            inputs=(TensorSpec(name="x", dtype=dtype, shape=(-1, width)),),
            outputs=(
                TensorSpec(name="label", dtype="string", shape=(-1,)),
                TensorSpec(name="p", dtype="float32", shape=(-1, 2)),
            ),
        ),
        feature_columns=tuple("abcdefgh"[:width]),
        classes=("no", "yes"),
        prediction_output="label",
        score_output="p",
    )


def request(id="r", n=1, *, at=0.0, version="v1", status=200, known=None, x=None, service="s"):  # noqa: A002
    known = known or manifest()
    size = known.signature.inputs[0].shape[1]
    x = np.arange(n * size, dtype=np.float32).reshape(n, size) if x is None else x
    outputs = {
        "label": np.array(["yes"] * n, object),
        "p": np.tile(np.array([[0.25, 0.75]], np.float32), (n, 1)),
    }
    return LoggedRequest(
        id=id, service=service, manifest=known, version=version, bundle_digest=f"sha256:{version}",
        arm="baseline", status=status, feeds={"x": x}, outputs=outputs if status == 200 else None,
        n_rows=n, queue_ms=0.5, run_ms=1.0, total_ms=2.0, batch_rows=n,
        at=START.timestamp() + at, error="" if status == 200 else "failed",
    )  # fmt: skip
