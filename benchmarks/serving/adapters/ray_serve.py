"""Ray Serve with one replica around ONNX Runtime; an Open Inference body read by hand."""

from __future__ import annotations

from pathlib import Path

from adapters.base import Adapter, Model, Started
from adapters.scripts import write

SERVER = """
import time

import ray
from ray import serve


@serve.deployment(num_replicas=1, max_ongoing_requests=256, ray_actor_options={"num_cpus": 1})
class Onnx:
    def __init__(self):
        self.session = open_session()

    async def __call__(self, request):
        if request.method == "GET":
            return "ready"
        body = await request.json()
        feeds = {
            i["name"]: np.asarray(i["data"], DTYPES[i["datatype"]]).reshape(i["shape"])
            for i in body["inputs"]
        }
        found = self.session.run(list(OUTPUTS), feeds)
        return {"outputs": [
            {"name": n, "datatype": k, "shape": list(v.shape), "data": v.ravel().tolist()}
            for (n, (k, _)), v in zip(OUTPUTS.items(), found)
        ]}


if __name__ == "__main__":
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False,
             object_store_memory=200 << 20, _node_ip_address="127.0.0.1")
    serve.start(http_options={"host": "127.0.0.1", "port": %(port)d})
    serve.run(Onnx.bind())
    while True:
        time.sleep(3600)
"""


def prepare(adapter: Adapter, python: Path, model: Model, folder: Path, port: int) -> Started:
    script = write(folder, "server.py", model, SERVER % {"port": port})
    base = f"http://127.0.0.1:{port}"
    env = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_SERVE_LOG_TO_STDERR": "0"}
    return Started([str(python), str(script)], f"{base}/", f"{base}/", env)


RAY_SERVE = Adapter(
    "ray serve", prepare, ("ray[serve]", "onnxruntime", "numpy"), environment="ray",
    can_pause=False,
)  # fmt: skip
