"""Triton (C++) with ONNX Runtime, from the binary that the `nvidia-pytriton` package carries.

That binary has no ONNX backend; `triton_backend/onnx_backend.cc` is one. Building it needs g++,
the headers of Triton's core and ONNX Runtime's C header, in a folder given by --headers:
`triton/core/tritonbackend.h`, `triton/core/tritonserver.h`, `onnxruntime_c_api.h`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from adapters.base import Adapter, Model, Started

SOURCE = Path(__file__).parents[1] / "triton_backend" / "onnx_backend.cc"


def prepare(adapter: Adapter, python: Path, model: Model, folder: Path, port: int) -> Started:
    site = next(python.parents[1].glob("lib/python*/site-packages"))
    libraries = folder / "libraries"
    backend = folder / "backends" / "onnx" / "libtriton_onnx.so"
    if not backend.exists():
        _build(site, libraries, backend)
    version = folder / "models" / model.name / "1"
    version.mkdir(parents=True, exist_ok=True)
    shutil.copy(model.path, version / "model.onnx")
    (version.parent / "config.pbtxt").write_text(_config(model, bool(adapter.options["batching"])))
    base = f"http://127.0.0.1:{port}/v2"
    words = [str(site / "pytriton" / "tritonserver" / "bin" / "tritonserver"),
             f"--model-repository={folder / 'models'}",
             f"--backend-directory={folder / 'backends'}",
             "--http-address=127.0.0.1", f"--http-port={port}", f"--grpc-port={port + 1}",
             f"--metrics-port={port + 2}", "--log-error=false", "--log-warning=false",
             "--log-info=false"]  # fmt: skip
    return Started(
        words, f"{base}/models/{model.name}/infer", f"{base}/health/ready",
        {"LD_LIBRARY_PATH": str(libraries)},
    )  # fmt: skip


def _build(site: Path, libraries: Path, backend: Path) -> None:
    headers = os.environ.get("BENCHMARK_HEADERS")
    if not headers:
        raise FileNotFoundError("Triton's headers are needed: --headers DIR")
    libraries.mkdir(parents=True, exist_ok=True)
    backend.parent.mkdir(parents=True, exist_ok=True)
    runtime = next((site / "onnxruntime" / "capi").glob("libonnxruntime.so.1.*"))
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
        (libraries / name).symlink_to(runtime)
    subprocess.run(
        ["g++", "-O2", "-std=c++17", "-shared", "-fPIC", f"-I{headers}", str(SOURCE),
         "-o", str(backend), f"-L{libraries}", "-lonnxruntime"], check=True,
    )  # fmt: skip


def _config(model: Model, batching: bool) -> str:
    def ports(found: object) -> str:
        return ", ".join(
            f'{{name: "{name}" data_type: TYPE_{kind} dims: [{", ".join(map(str, shape))}]}}'
            for name, (kind, shape) in found.items()
        )

    batcher = "dynamic_batching {}\n" if batching else ""
    return (
        f'name: "{model.name}"\nbackend: "onnx"\nmax_batch_size: 64\n'
        f"input [{ports(model.inputs)}]\noutput [{ports(model.outputs)}]\n"
        f"instance_group [{{count: 1 kind: KIND_CPU}}]\n{batcher}"
    )


_NEEDS = ("nvidia-pytriton", "onnxruntime", "tritonclient[all]")
TRITON = Adapter("triton", prepare, _NEEDS, environment="pytriton", options={"batching": False})
TRITON_BATCHING = Adapter(
    "triton, dynamic batching", prepare, _NEEDS, environment="pytriton", options={"batching": True}
)
