"""MLServer with a runtime of our own around ONNX Runtime (it ships none)."""

from __future__ import annotations

import json
from pathlib import Path

from adapters.base import Adapter, Model, Started
from adapters.scripts import write

RUNTIME = """
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceResponse


class Onnx(MLModel):
    async def load(self):
        self.session = open_session()
        return True

    async def predict(self, payload):
        feeds = {i.name: NumpyCodec.decode_input(i) for i in payload.inputs}
        found = self.session.run(list(OUTPUTS), feeds)
        return InferenceResponse(
            model_name=self.name,
            outputs=[NumpyCodec.encode_output(n, v) for n, v in zip(OUTPUTS, found)],
        )
"""


def prepare(adapter: Adapter, python: Path, model: Model, folder: Path, port: int) -> Started:
    write(folder, "runtime.py", model, RUNTIME)
    settings = {
        "http_port": port, "grpc_port": port + 1, "metrics_port": port + 2,
        "parallel_workers": 0, "debug": False, "host": "127.0.0.1",
    }  # fmt: skip
    about = {"name": model.name, "implementation": "runtime.Onnx"}
    if adapter.options["batching"]:
        about |= {"max_batch_size": 64, "max_batch_time": 0.002}
    (folder / "settings.json").write_text(json.dumps(settings))
    (folder / "model-settings.json").write_text(json.dumps(about))
    base = f"http://127.0.0.1:{port}/v2"
    return Started(
        [str(python.parent / "mlserver"), "start", str(folder)],
        f"{base}/models/{model.name}/infer", f"{base}/models/{model.name}/ready",
        {"PYTHONPATH": str(folder)},
    )  # fmt: skip


_NEEDS = ("mlserver", "onnxruntime", "numpy")
MLSERVER = Adapter("mlserver", prepare, _NEEDS, options={"batching": False})
MLSERVER_BATCHING = Adapter(
    "mlserver, adaptive batching", prepare, _NEEDS, environment="mlserver",
    options={"batching": True},
)  # fmt: skip
