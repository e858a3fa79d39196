"""What a flood of requests costs those that are answered; needs `wrk`.

    python benchmarks/serving/flood.py [--seconds 5] [--connections 512]

Two connections that ask one request after the other, and hundreds that do, take turns. Printed are
answers, refusals, and answers per CPU second of the server, with refusals at once and held back.
CPU time is counted, because client, server and others may share their CPUs.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
from pathlib import Path

from overload import AT_A_TIME, cpu_seconds, heavy_bundle

from fairlead.backends.endpoint import ServerHandle, spawn_server
from fairlead.core.settings import Settings
from fairlead.core.workspace import Workspace

_SCRIPT = """wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.body = '{"inputs":[{"name":"x","datatype":"FP32","shape":[1,4],"data":[1,2,3,4]}]}'
"""


def press(server: ServerHandle, script: Path, connections: int, seconds: int) -> str:
    before = cpu_seconds(server.process.pid)
    words = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}", "--timeout", "10s",
             "-s", str(script), f"{server.endpoint.url}/v2/models/heavy/infer"]  # fmt: skip
    said = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    spent = max(0.01, cpu_seconds(server.process.pid) - before)
    total = int(re.search(r"(\d+) requests in", said)[1])
    refused = re.search(r"Non-2xx or 3xx responses: (\d+)", said)
    n_refused = int(refused[1]) if refused else 0
    return f"{total - n_refused} | {n_refused} | {(total - n_refused) / spent:.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=5)
    parser.add_argument("--connections", type=int, default=512)
    options = parser.parse_args()
    print("| model | pause ms | connections | answered | refused | answered per CPU s |")
    print("|---" * 6 + "|")
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "flood.lua"
        script.write_text(_SCRIPT)
        for size in (96, 256):
            for pause_ms in (0, 1000):
                root = Path(folder) / f"{size}-{pause_ms}"
                settings = {"batching": AT_A_TIME, "max_queue_delay_ms": 50,
                            "refusal_pause_ms": pause_ms}  # fmt: skip
                workspace = Workspace.open(Settings.load(home=root / "home"))
                bundle = heavy_bundle(root, size)
                with spawn_server(
                    bundle, workspace=workspace, name="heavy", settings=settings
                ) as server:
                    for count in (2, options.connections) * 2:
                        found = press(server, script, count, options.seconds)
                        print(f"| {size} | {pause_ms} | {count} | {found} |", flush=True)


if __name__ == "__main__":
    main()
