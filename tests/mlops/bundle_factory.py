"""Small bundles for tests of the registry, which looks at digests and never runs a model."""

from __future__ import annotations

from pathlib import Path

from fairlead.core.bundle import (
    Bundle,
    BundleManifest,
    Provenance,
    RuntimeSettings,
    Score,
    Scores,
    write_bundle,
)
from fairlead.core.profile import ReferenceProfile
from fairlead.core.signature import Signature, TensorSpec


def make_bundle(
    target: Path, *, content: bytes = b"weights", parent: Bundle | None = None
) -> Bundle:
    """Write a bundle around some bytes."""

    def fill(folder: Path) -> None:
        (folder / "MLmodel").write_text("flavors: {}\n")
        (folder / "model.onnx").write_bytes(content)

    signature = Signature(
        inputs=(TensorSpec(name="x", dtype="float32", shape=(-1, 2)),),
        outputs=(TensorSpec(name="y", dtype="int64", shape=(-1,)),),
    )
    return write_bundle(
        target,
        fill=fill,
        manifest=BundleManifest(
            name="tiny",
            kind="onnx",
            model_file="model.onnx",
            task="classification",
            signature=signature,
            prediction_output="y",
        ),
        profile=ReferenceProfile(n_rows=1, columns=()),
        scores=Scores(
            scores=(Score(metric="accuracy", value=0.9, sample_size=9, ci_low=0.6, ci_high=1.0),)
        ),
        runtime=RuntimeSettings(),
        provenance=Provenance(
            made_by="quantization" if parent else "pack",
            source="model.onnx",
            source_digest="sha256:source",
            parent_digest=parent.digest if parent else None,
            data_source="train.parquet",
            data_digest="sha256:data",
            git_commit="c0ffee",
        ),
    )
