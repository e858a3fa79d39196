"""Half an hour of everything at once: right answers, or an honest refusal, and no more memory.

    python benchmarks/serving/chaos.py [--minutes 30] [--workers 2] [--json report.json]

Clients of every form ask several models whose right answers onnxruntime gives beside the server,
while models are reloaded, switched, loaded and unloaded, shares change, workers are killed, files
are scored, and hostile clients send fuzzed, huge, slow and unfinished requests.

Counted are wrong answers; accepted requests that were lost (a connection that ended without an
answer, unless a worker was killed meanwhile; and a request of a client that asks again which was
not answered within a minute); answers nobody may give (5xx other than 503 and 504); hangs; workers
that ended by themselves; and the growth of memory (PSS, Theil-Sen slope over the later half, of the
processes that lived through it; the oldest worker is never killed). Exit code 1 when any is not 0.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from chaos_parts.hostile import HOSTILE
from chaos_parts.ledger import Ledger
from chaos_parts.load import ASKERS, Grpc, OurClient, Scene
from chaos_parts.memory import Samples
from chaos_parts.models import Truth, classifier, heavy, texts
from chaos_parts.talk import Talk
from chaos_parts.trouble import Trouble

from fairlead.backends.endpoint import ServerHandle, spawn_server
from fairlead.core.bundle import Bundle
from fairlead.core.settings import Settings
from fairlead.core.workspace import Workspace

_SAMPLE_S = 5.0
_ALLOWED_GROWTH = 0.05
_ALLOWED_MB = 3.0


async def repeat(scene: Scene, asker: Any, pause_s: float) -> None:
    talk = Talk(scene.port)
    while time.perf_counter() < scene.until:
        await asyncio.sleep(scene.draw.expovariate(1 / pause_s))
        try:
            await asker(scene, talk)
        except Exception as exc:  # noqa: BLE001 (an answer that cannot be read is a wrong one)
            scene.ledger.wrong[getattr(asker, "__name__", type(asker).__name__)] += 1
            scene.ledger.note(f"{asker}: {exc!r}")
    talk.close()


async def sample(scene: Scene, samples: Samples) -> None:
    while time.perf_counter() < scene.until:
        samples.take()
        await asyncio.sleep(min(_SAMPLE_S, max(0.2, (scene.until - time.perf_counter()) / 30)))


async def everything(
    scene: Scene, trouble: Trouble, samples: Samples, folder: Path, clients: int
) -> None:
    grpc, ours = Grpc(scene), OurClient(scene)
    askers = [*ASKERS.values(), grpc, ours] * clients
    jobs = [repeat(scene, asker, scene.pause_s) for asker in askers]
    jobs += [repeat(scene, asker, scene.pause_s) for asker in HOSTILE.values()]
    jobs += [
        trouble.swap(), trouble.switch(), trouble.come_and_go(), trouble.split(), trouble.kill(),
        trouble.watch(), trouble.score_files(folder, folder / "home"), sample(scene, samples),
    ]  # fmt: skip
    await asyncio.gather(*jobs)
    await grpc.close()
    await ours.close()
    if not await trouble.all_there():
        scene.ledger.crashes += 1
        scene.ledger.note("not all workers came back")


def report(scene: Scene, samples: Samples, options: argparse.Namespace, log: str) -> dict[str, Any]:
    ledger = scene.ledger
    ledger.settle()
    growths = samples.growths()
    growing = [
        item for item in growths
        if item.grew_mb > max(_ALLOWED_MB, _ALLOWED_GROWTH * item.start_mb)
    ]  # fmt: skip
    verdict = {
        "wrong answers": sum(ledger.wrong.values()),
        "lost accepted requests": sum(ledger.lost.values()),
        "unexpected statuses": sum(ledger.unexpected.values()),
        "hangs": sum(ledger.hangs.values()),
        "crashed workers": ledger.crashes,
        "tracebacks in the log": log.count("Traceback"),
        "growing processes": len(growing) if options.minutes >= 5 else 0,
    }
    return {
        "minutes": options.minutes, "workers": options.workers, "seed": options.seed,
        "verdict": verdict,
        "right answers": sum(ledger.right.values()),
        "requests": sum(sum(found.values()) for found in ledger.statuses.values()),
        "cut by killed workers": dict(ledger.cut_by_kills),
        "kinds": {
            kind: {
                "right": ledger.right[kind], "wrong": ledger.wrong[kind],
                "lost": ledger.lost[kind], "unexpected": ledger.unexpected[kind],
                "statuses": dict(ledger.statuses[kind]), **_times(ledger.latencies.get(kind)),
            }
            for kind in sorted({*ledger.statuses, *ledger.right, *ledger.wrong, *ledger.lost})
        },
        "changes": dict(ledger.changes),
        "memory": [item._asdict() | {"grew_mb": item.grew_mb} for item in growths],
        "peak_mb": samples.peak_mb(),
        "notes": ledger.notes,
    }  # fmt: skip


def _times(found: list[float] | None) -> dict[str, float]:
    if not found or len(found) < 2:
        return {}
    cuts = statistics.quantiles(found, n=100)
    return {"p50_ms": 1e3 * cuts[49], "p99_ms": 1e3 * cuts[98]}


def table(said: dict[str, Any]) -> str:
    lines = ["| what | right | statuses | p50 ms | p99 ms |", "|---|---|---|---|---|"]
    for kind, found in said["kinds"].items():
        statuses = ", ".join(f"{key}: {count}" for key, count in sorted(found["statuses"].items()))
        times = " | ".join(f"{found[k]:.1f}" if k in found else "" for k in ("p50_ms", "p99_ms"))
        lines.append(f"| {kind} | {found['right']} | {statuses} | {times} |")
    lines += ["", "changes: " + ", ".join(f"{k} {n}" for k, n in said["changes"].items())]
    lines += [f"cut by killed workers, asked again: {sum(said['cut by killed workers'].values())}"]
    for item in said["memory"]:
        lines.append(
            f"memory of {item['role']} {item['pid']}: {item['start_mb']:.1f} → "
            f"{item['end_mb']:.1f} MB in {item['minutes']:.1f} min "
            f"(slope {item['slope_mb_per_hour']:+.1f} MB/h)"
        )
    lines += ["", *(f"{name}: {count}" for name, count in said["verdict"].items())]
    return "\n".join([*lines, *(f"  {note}" for note in said["notes"])])


def bundles(root: Path) -> dict[str, list[Bundle]]:
    return {
        "steady": [classifier(root / f"steady{i}", "steady", 10 + i) for i in range(2)],
        "swapped": [classifier(root / f"swapped{i}", "swapped", 20 + i) for i in range(3)],
        "twice": [classifier(root / f"twice{i}", "twice", 30 + i) for i in range(2)],
        "loadable": [classifier(root / "loadable", "loadable", 40)],
        "texts": [texts(root / "texts")],
        "heavy": [heavy(root / "heavy")],
    }


def start(root: Path, made: dict[str, list[Bundle]], options: argparse.Namespace) -> ServerHandle:
    shutil.copytree(made["swapped"][0].path, root / "live" / "swapped")
    words = [f"swapped={root / 'live' / 'swapped'}"]
    words += [f"{name}={b.path}" for name in ("twice", "loadable", "texts", "heavy")
              for b in made[name]]  # fmt: skip
    return spawn_server(
        made["steady"][0].path, *words,
        candidate=made["steady"][1].path,
        workspace=Workspace.open(Settings.load(home=root / "home")), name="steady",
        settings={
            "workers": options.workers, "grpc_port": 0, "response_cache_mb": 4,
            "max_body_bytes": 4 << 20, "body_timeout_s": 5, "header_timeout_s": 5,
        },
    )  # fmt: skip


def run(root: Path, options: argparse.Namespace) -> dict[str, Any]:
    made = bundles(root)
    draw, samples = random.Random(options.seed), Samples(0)
    with start(root, made, options) as server:
        scene = Scene(
            port=int(server.endpoint.url.rsplit(":", 1)[1]), grpc=server.endpoint.grpc or "",
            truths={name: Truth.of(*found) for name, found in made.items()}, ledger=Ledger(),
            draw=draw, until=time.perf_counter() + 60 * options.minutes,
            pause_s=len(ASKERS) * options.clients / options.rate,
            pool=np.random.default_rng(options.seed).normal(size=(512, 4)).astype(np.float32),
        )  # fmt: skip
        pid = server.process.pid
        trouble = Trouble(
            scene, pid, server.admin_token, root / "live" / "swapped", made["swapped"],
            options.every, options.kill_every, options.workers,
        )  # fmt: skip
        samples = Samples(pid)
        asyncio.run(everything(scene, trouble, samples, root, options.clients))
        code = server.stop(timeout_s=60)
        if code:
            scene.ledger.crashes += 1
            scene.ledger.note(f"the server ended with {code}")
        log = server.log.read_text(errors="replace")
    if "Traceback" in log:
        scene.ledger.note(log[max(0, log.index("Traceback") - 200) :][:600])
    return report(scene, samples, options, log)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rate", type=float, default=150.0, help="requests a second, about")
    parser.add_argument("--clients", type=int, default=3, help="of each form")
    parser.add_argument("--every", type=float, default=10.0, help="seconds between two changes")
    parser.add_argument("--kill-every", type=float, default=30.0, help="seconds; 0 kills nobody")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="file for the whole report")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        said = run(Path(folder), options)
    print(table(said))
    if options.json:
        options.json.write_text(json.dumps(said, indent=1))
    return int(any(said["verdict"].values()))


if __name__ == "__main__":
    sys.exit(main())
