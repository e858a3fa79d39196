"""What KServe's own client gets from a server; run by a Python that has `kserve`.

python kserve_talk.py HTTP_URL GRPC_ADDRESS MODEL → JSON on standard output
"""

from __future__ import annotations

import asyncio
import json
import sys

import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, RESTConfig

X = np.array([[1.0, 2.0, -1.0, 0.5], [0.0, 3.0, 1.0, 2.0]], np.float32)


def request(model: str, *, binary: bool) -> InferRequest:
    item = InferInput("x", list(X.shape), "FP32")
    item.set_data_from_numpy(X, binary_data=binary)
    return InferRequest(model_name=model, infer_inputs=[item], request_id="k-1")


def outputs(response) -> dict:
    return {item.name: item.as_numpy().tolist() for item in response.outputs}


async def over_http(url: str, model: str) -> dict:
    client = InferenceRESTClient(RESTConfig(protocol="v2"))
    found = {
        "live": await client.is_server_live(url),
        "ready": await client.is_server_ready(url),
        "model_ready": await client.is_model_ready(url, model),
    }
    for binary in (False, True):
        response = await client.infer(url, request(model, binary=binary), model_name=model)
        found["binary" if binary else "json"] = outputs(response)
        found["id"] = response.id
    return found


async def over_grpc(address: str, model: str) -> dict:
    client = InferenceGRPCClient(address)
    found = {
        "live": await client.is_server_live(),
        "ready": await client.is_server_ready(),
        "model_ready": await client.is_model_ready(model),
    }
    for binary in (False, True):
        response = await client.infer(request(model, binary=binary))
        found["binary" if binary else "json"] = outputs(response)
        found["id"] = response.id
    await client.close()
    return found


async def main() -> None:
    url, address, model = sys.argv[1:]
    found = {"http": await over_http(url, model), "grpc": await over_grpc(address, model)}
    sys.stdout.write(json.dumps(found) + "\n")


asyncio.run(main())
