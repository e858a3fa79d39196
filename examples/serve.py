"""A server of its own process, asked by a client that Fairlead did not write."""

import sys
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import tritonclient.http as triton

from fairlead.api import serve

folder = Path(sys.argv[1])
with ExitStack() as stack:
    endpoint = serve(folder / "example-baseline", within=stack).noun
    client = triton.InferenceServerClient(endpoint.url.removeprefix("http://"))
    pixels = triton.InferInput("pixels", [2, 64], "FP32")
    pixels.set_data_from_numpy(np.zeros((2, 64), np.float32))
    answer = client.infer(endpoint.service, [pixels])
    print(endpoint.url, answer.as_numpy("label"))
    client.close()
