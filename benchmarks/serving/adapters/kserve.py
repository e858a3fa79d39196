"""KServe's Python server with a model class around ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

from adapters.base import Adapter, Model, Started
from adapters.scripts import write

SERVER = """
import kserve


class Onnx(kserve.Model):
    def __init__(self, name):
        super().__init__(name)
        self.session = open_session()
        self.ready = True

    def predict(self, payload, headers=None, response_headers=None):
        feeds = {i.name: i.as_numpy() for i in payload.inputs}
        found = self.session.run(list(OUTPUTS), feeds)
        outputs = []
        for (name, (kind, _)), value in zip(OUTPUTS.items(), found):
            one = kserve.InferOutput(name=name, shape=list(value.shape), datatype=kind)
            one.set_data_from_numpy(value, binary_data=False)
            outputs.append(one)
        return kserve.InferResponse(
            response_id=payload.id or "1", model_name=self.name, infer_outputs=outputs
        )


if __name__ == "__main__":
    kserve.ModelServer(http_port=%(port)d, workers=1, enable_grpc=False,
                       access_log_format=None).start([Onnx("%(name)s")])
"""


def prepare(adapter: Adapter, python: Path, model: Model, folder: Path, port: int) -> Started:
    script = write(folder, "server.py", model, SERVER % {"port": port, "name": model.name})
    base = f"http://127.0.0.1:{port}/v2"
    return Started(
        [str(python), str(script)], f"{base}/models/{model.name}/infer", f"{base}/health/ready"
    )


KSERVE = Adapter("kserve", prepare, ("kserve", "onnxruntime"))
