"""What Triton's configuration extension tells of a model: how it is batched, queued and placed."""

from __future__ import annotations

from typing import Any

from fairlead.backends.openinference import datatype_of
from fairlead.core.signature import TensorSpec
from fairlead.measure.latency import is_accelerator
from fairlead.serve.inference.arms import Arm
from fairlead.serve.inference.model_versions import n_latest
from fairlead.serve.inference.openinference import platform_of
from fairlead.serve.inference.streaming import is_streaming

__all__ = ["configuration_of"]

_BACKENDS = {"onnx": "onnxruntime"}
_DEVICES = {"CPUExecutionProvider": "KIND_CPU", "OpenVINO": "KIND_CPU"}


def configuration_of(
    arm: Arm, *, version_policy: str, n_workers: int, has_cache: bool
) -> dict[str, Any]:
    """Return the configuration of a loaded version, as the extension's JSON document.

    Args:
        arm: The version.
        version_policy: `all`, or `latest:N`.
        n_workers: Processes that hold the model.
        has_cache: Whether answers are remembered.
    """
    specs = (*arm.signature.inputs, *arm.signature.outputs)
    limits = arm.queue.limits
    has_rows = all(spec.has_free_batch for spec in specs)
    manifest = arm.bundle.manifest
    latest = n_latest(version_policy)
    document: dict[str, Any] = {
        "name": arm.model,
        "platform": platform_of(manifest.kind),
        "backend": _BACKENDS.get(manifest.kind, manifest.kind),
        "version_policy": {"all": {}} if latest is None else {"latest": {"num_versions": latest}},
        # Without a batch dimension the extension counts every dimension.
        "max_batch_size": limits.max_batch_rows if has_rows else 0,
        "input": [_tensor(spec, has_rows=has_rows) for spec in arm.signature.inputs],
        "output": [_tensor(spec, has_rows=has_rows) for spec in arm.signature.outputs],
        "instance_group": [
            {
                "name": arm.name,
                "kind": _device(arm.bundle.runtime.execution_provider),
                "count": limits.parallel_runs * n_workers,
            }
        ],
        "default_model_filename": manifest.model_file,
        "parameters": {
            "version": {"string_value": arm.version},
            "digest": {"string_value": arm.bundle.digest},
        },
        "model_transaction_policy": {"decoupled": is_streaming(arm)},
        "response_cache": {"enable": has_cache},
    }
    if has_rows and arm.queue.is_joinable:
        document["dynamic_batching"] = {
            "max_queue_delay_microseconds": round(limits.max_wait_s * 1e6),
            "default_queue_policy": {
                "allow_timeout_override": True,
                "max_queue_size": limits.max_pending,
            },
        }
    return document


def _tensor(spec: TensorSpec, *, has_rows: bool) -> dict[str, Any]:
    datatype = datatype_of(spec.dtype)
    kind = "STRING" if datatype == "BYTES" else datatype
    dims = spec.shape[1:] if has_rows else spec.shape
    return {"name": spec.name, "data_type": f"TYPE_{kind}", "dims": list(dims)}


def _device(provider: str) -> str:
    if is_accelerator(provider):
        return "KIND_GPU"
    return _DEVICES.get(provider, "KIND_MODEL")
