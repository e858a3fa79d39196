"""PyTriton: Triton's front with a Python function behind it, batching on."""

from __future__ import annotations

from pathlib import Path

from adapters.base import Adapter, Model, Started
from adapters.scripts import write

SERVER = """
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

session = open_session()


@batch
def infer(**feeds):
    return dict(zip(OUTPUTS, session.run(list(OUTPUTS), feeds)))


def tensors(found):
    return [Tensor(name=n, dtype=DTYPES[k], shape=s) for n, (k, s) in found.items()]


if __name__ == "__main__":
    config = TritonConfig(http_address="127.0.0.1", http_port=%(port)d, grpc_port=%(port)d + 1,
                          metrics_port=%(port)d + 2, log_verbose=0)
    with Triton(config=config) as triton:
        triton.bind(model_name="%(name)s", infer_func=infer, inputs=tensors(INPUTS),
                    outputs=tensors(OUTPUTS),
                    config=ModelConfig(max_batch_size=64, batcher=DynamicBatcher()))
        triton.serve()
"""


def prepare(adapter: Adapter, python: Path, model: Model, folder: Path, port: int) -> Started:
    script = write(folder, "server.py", model, SERVER % {"port": port, "name": model.name})
    base = f"http://127.0.0.1:{port}/v2"
    return Started(
        [str(python), str(script)],
        f"{base}/models/{model.name}/infer",
        f"{base}/models/{model.name}/ready",
    )


PYTRITON = Adapter(
    "pytriton, batching", prepare, ("nvidia-pytriton", "onnxruntime", "tritonclient[all]"),
    environment="pytriton",
)  # fmt: skip
