"""LitServe with a LitAPI around ONNX Runtime; its own JSON form."""

from __future__ import annotations

from pathlib import Path

from adapters.base import Adapter, Model, Started
from adapters.scripts import write

SERVER = """
import litserve as ls


class Onnx(ls.LitAPI):
    def setup(self, device):
        self.session = open_session()

    def decode_request(self, request):
        return {n: np.asarray(request[n], DTYPES[k]) for n, (k, _) in INPUTS.items()}

    def batch(self, requests):
        return {n: np.concatenate([r[n] for r in requests]) for n in INPUTS}

    def predict(self, feeds):
        return self.session.run(list(OUTPUTS), feeds)[0]

    def unbatch(self, found):
        return [found[i : i + 1] for i in range(len(found))]

    def encode_response(self, found):
        return {"y": found.tolist()}


if __name__ == "__main__":
    api = Onnx(max_batch_size=%(size)d, batch_timeout=%(window)s)
    ls.LitServer(api, accelerator="cpu", workers_per_device=1).run(
        host="127.0.0.1", port=%(port)d, num_api_servers=1, generate_client_file=False,
        log_level="error",
    )
"""


def prepare(adapter: Adapter, python: Path, model: Model, folder: Path, port: int) -> Started:
    size, window = (64, 0.002) if adapter.options["batching"] else (1, 0.0)
    text = SERVER % {"port": port, "size": size, "window": window}
    script = write(folder, "server.py", model, text)
    base = f"http://127.0.0.1:{port}"
    return Started([str(python), str(script)], f"{base}/predict", f"{base}/health")


_NEEDS = ("litserve", "onnxruntime", "numpy")
LITSERVE = Adapter("litserve", prepare, _NEEDS, body="plain", options={"batching": False})
LITSERVE_BATCHING = Adapter(
    "litserve, batching", prepare, _NEEDS, body="plain", environment="litserve",
    options={"batching": True},
)  # fmt: skip
