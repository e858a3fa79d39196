"""Ask a served model with NVIDIA's client: python triton_client.py URL MODEL.

A server that asks for credentials gets the key in FAIRLEAD_API_KEY.
"""

import os
import sys

import numpy as np
import tritonclient.http as triton

url, model = sys.argv[1:3]
key = os.environ.get("FAIRLEAD_API_KEY")
headers = {"X-API-Key": key} if key else {}
client = triton.InferenceServerClient(url.split("://")[1], ssl=url.startswith("https"))
assert client.is_server_ready(headers=headers)
assert client.is_model_ready(model, headers=headers)

(spec,) = client.get_model_metadata(model, headers=headers)["inputs"]
row = np.zeros([1 if size == -1 else size for size in spec["shape"]], np.float32)
tensor = triton.InferInput(spec["name"], list(row.shape), spec["datatype"])

for is_binary in (True, False):
    tensor.set_data_from_numpy(row, binary_data=is_binary)
    # A copy: the client adds the length of this very request to the headers it is given.
    answer = client.infer(model, [tensor], request_id="one", headers=dict(headers))
    outputs = {item["name"]: item["shape"] for item in answer.get_response()["outputs"]}
    print("binary" if is_binary else "JSON", answer.get_response()["id"], outputs)
client.close()
