"""BentoML with a service around ONNX Runtime; its own JSON form."""

from __future__ import annotations

from pathlib import Path

from adapters.base import Adapter, Model, Started
from adapters.scripts import write

PLAIN = """
import bentoml


@bentoml.service(workers=1, traffic={"timeout": 30}, logging={"access": {"enabled": False}})
class Onnx:
    def __init__(self):
        self.session = open_session()

    @bentoml.api
    def predict(self, %(arguments)s) -> list:
        feeds = {%(feeds)s}
        return self.session.run(list(OUTPUTS), feeds)[0].tolist()
"""
BATCHING = """
import bentoml


@bentoml.service(workers=1, traffic={"timeout": 30}, logging={"access": {"enabled": False}})
class Onnx:
    def __init__(self):
        self.session = open_session()

    @bentoml.api(batchable=True, max_batch_size=64, max_latency_ms=1000)
    def predict(self, x: np.ndarray) -> np.ndarray:
        return self.session.run(list(OUTPUTS), {list(INPUTS)[0]: x.astype(np.float32)})[0]
"""


def prepare(adapter: Adapter, python: Path, model: Model, folder: Path, port: int) -> Started:
    arguments = ", ".join(f"{name}: list" for name in model.inputs)
    feeds = ", ".join(
        f'"{name}": np.asarray({name}, DTYPES["{kind}"])'
        for name, (kind, _) in model.inputs.items()
    )
    text = BATCHING if adapter.options["batching"] else PLAIN % {
        "arguments": arguments, "feeds": feeds}  # fmt: skip
    write(folder, "service.py", model, text)
    base = f"http://127.0.0.1:{port}"
    words = [str(python), "-m", "bentoml", "serve", "service:Onnx", "--host", "127.0.0.1",
             "-p", str(port), "--working-dir", str(folder)]  # fmt: skip
    return Started(
        words, f"{base}/predict", f"{base}/readyz",
        {"BENTOML_DO_NOT_TRACK": "True", "BENTOML_HOME": str(folder / "home")},
    )  # fmt: skip


_NEEDS = ("bentoml", "onnxruntime", "numpy")
BENTOML = Adapter("bentoml", prepare, _NEEDS, body="plain", options={"batching": False})
BENTOML_BATCHING = Adapter(
    "bentoml, batchable", prepare, _NEEDS, body="plain", environment="bentoml",
    options={"batching": True, "one_input": True},
)  # fmt: skip
