"""Ask a served model with NVIDIA's client: python triton_client.py URL MODEL."""

import sys

import numpy as np
import tritonclient.http as triton

url, model = sys.argv[1:3]
client = triton.InferenceServerClient(url.split("://")[1], ssl=url.startswith("https"))
assert client.is_server_ready()
assert client.is_model_ready(model)

(spec,) = client.get_model_metadata(model)["inputs"]
row = np.zeros([1 if size == -1 else size for size in spec["shape"]], np.float32)
tensor = triton.InferInput(spec["name"], list(row.shape), spec["datatype"])

for is_binary in (True, False):
    tensor.set_data_from_numpy(row, binary_data=is_binary)
    answer = client.infer(model, [tensor], request_id="one")
    outputs = {item["name"]: item["shape"] for item in answer.get_response()["outputs"]}
    print("binary" if is_binary else "JSON", answer.get_response()["id"], outputs)
client.close()
