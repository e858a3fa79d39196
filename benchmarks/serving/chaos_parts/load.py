"""Requests of every form whose answers are compared with onnxruntime's own."""

from __future__ import annotations

import asyncio
import json
import random
import time
import warnings
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import numpy as np

from chaos_parts.ledger import Cut, Ledger
from chaos_parts.models import FEATURES, Truth
from chaos_parts.talk import Reply, Talk
from fairlead import AsyncClient, RetryPolicy
from fairlead.core.errors import FairleadError

__all__ = ["ASKERS", "Scene"]

_RETRY_S = 60.0
_WORDS = ("Oslo", "", "naïve", "北京", "a\tb\n", "🙂🙃", "x" * 300, '"quoted"', "\\u0000")
BUSY = {503}


@dataclass
class Scene:
    """Where requests go, and what is right.

    Attributes:
        port: Port of the HTTP side.
        grpc: Address of the gRPC side.
        truths: Model → its right answers.
        ledger: What happened.
        draw: Every random choice.
        until: When asking ends, in `time.perf_counter` seconds.
        pause_s: Mean pause between two requests of one asker, in seconds.
        pool: Rows that come again, for the response cache.
    """

    port: int
    grpc: str
    truths: dict[str, Truth]
    ledger: Ledger
    draw: random.Random
    until: float
    pause_s: float
    pool: np.ndarray

    def rows(self) -> np.ndarray:
        """Return one row up to many, now and then ones that were asked before."""
        count = self.draw.choice((1, 1, 1, 2, 5, 33, 64))
        if self.draw.random() < 0.3:
            at = self.draw.randrange(len(self.pool) - count)
            return self.pool[at : at + count]
        seed = np.random.default_rng(self.draw.getrandbits(32))
        return seed.normal(size=(count, 4)).astype(np.float32)

    def check(
        self, kind: str, model: str, version: str, feeds: dict[str, np.ndarray],
        got: dict[str, np.ndarray],
    ) -> None:  # fmt: skip
        """Compare an answer with the right one."""
        try:
            right = self.truths[model](version, feeds)
        except KeyError:
            self._wrong(kind, f"{model} has no version {version!r}")
            return
        for name, array in got.items():
            expected = right[name]
            if array.shape != expected.shape or not _same(array, expected):
                self._wrong(kind, f"{model} {version} {name}: {array!r}, right is {expected!r}")
                return
        self.ledger.right[kind] += 1

    def _wrong(self, kind: str, said: str) -> None:
        self.ledger.wrong[kind] += 1
        self.ledger.note(f"wrong {kind}: {said}")


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    if b.dtype.kind == "f":
        return bool(np.allclose(a, b, rtol=1e-4, atol=1e-5))
    return a.tolist() == b.tolist()


async def _answered(
    scene: Scene, kind: str, ask: Callable[[], Awaitable[Reply]], ok: set[int | str]
) -> Reply | None:
    """Send until there is an answer; None when the answer is a refusal that is allowed."""
    started = time.perf_counter()
    while True:
        sent = time.perf_counter()
        try:
            reply = await ask()
        except Cut as exc:
            scene.ledger.cut(kind, sent, str(exc))
        except TimeoutError:
            scene.ledger.hangs[kind] += 1
            scene.ledger.note(f"{kind} hangs")
            return None
        else:
            scene.ledger.status(kind, reply.status, {200, *BUSY, *ok}, reply.body[:300])
            if reply.status == 200:
                scene.ledger.latencies[kind].append(time.perf_counter() - sent)
                return reply
            if reply.status not in BUSY or reply.status in ok:
                return None
        if time.perf_counter() - started > _RETRY_S:
            scene.ledger.lost[kind] += 1
            scene.ledger.note(f"{kind}: no answer within {_RETRY_S:g} s of asking again")
            return None
        await asyncio.sleep(0.05 + 0.1 * scene.draw.random())


def _id(scene: Scene) -> str:
    return f"{scene.draw.getrandbits(48):x}"


def _tensor(name: str, array: np.ndarray, **more: object) -> dict:
    kind = {"f": "FP32", "i": "INT64", "O": "BYTES"}[array.dtype.kind]
    return {"name": name, "datatype": kind, "shape": list(array.shape), **more}


def _outputs(document: dict) -> dict[str, np.ndarray]:
    kinds = {"FP32": np.float32, "INT64": np.int64, "BYTES": object}
    return {
        item["name"]: np.array(item["data"], kinds[item["datatype"]]).reshape(item["shape"])
        for item in document["outputs"]
    }


async def json_infer(scene: Scene, talk: Talk) -> None:
    """V2 JSON, of models that are swapped, split and switched meanwhile, with named outputs."""
    model = scene.draw.choice(("steady", "swapped", "twice", "twice", "loadable"))
    x, name = scene.rows(), _id(scene)
    version = None
    if model == "twice" and scene.draw.random() < 0.6:
        version = scene.draw.choice(sorted(scene.truths["twice"].sessions))
    document = {"id": name, "inputs": [_tensor("x", x, data=x.tolist())]}
    if scene.draw.random() < 0.3:
        document["outputs"] = [{"name": "scores"}]
    path = f"/v2/models/{model}" + (f"/versions/{version}" if version else "") + "/infer"
    body = json.dumps(document).encode()
    ok: set[int | str] = {400, 404, 503} if model == "loadable" else set()
    reply = await _answered(scene, f"json {model}", lambda: talk.ask(path, body), ok)
    if reply is None:
        return
    answer = json.loads(reply.body)
    said = answer["model_version"]
    is_mixed = answer["id"] != name or said != reply.headers["fairlead-version"]
    if is_mixed or (version and said != version):
        scene._wrong(f"json {model}", f"asked {name} {version}, got {answer['id']} {said}")
        return
    scene.check(f"json {model}", model, said, {"x": x}, _outputs(answer))


async def binary_infer(scene: Scene, talk: Talk) -> None:
    """V2 with binary tensors both ways."""
    model = scene.draw.choice(("steady", "swapped"))
    x = scene.rows()
    raw = x.tobytes()
    item = _tensor("x", x, parameters={"binary_data_size": len(raw)})
    head = json.dumps({"inputs": [item], "parameters": {"binary_data_output": True}}).encode()
    size = {"Inference-Header-Content-Length": str(len(head))}
    path = f"/v2/models/{model}/infer"
    reply = await _answered(
        scene, f"binary {model}", lambda: talk.ask(path, head + raw, size), set()
    )
    if reply is None:
        return
    at = int(reply.headers["inference-header-content-length"])
    got = {}
    for item in json.loads(reply.body[:at])["outputs"]:
        size_of = item["parameters"]["binary_data_size"]
        kind = {"FP32": np.float32, "INT64": np.int64}[item["datatype"]]
        array = np.frombuffer(reply.body[at : at + size_of], kind)
        got[item["name"]] = array.reshape(item["shape"])
        at += size_of
    scene.check(f"binary {model}", model, reply.headers["fairlead-version"], {"x": x}, got)


async def predict(scene: Scene, talk: Talk) -> None:
    """Rows as objects, the answer for people."""
    x = scene.rows()
    rows = [dict(zip(FEATURES, map(float, row), strict=True)) for row in x]
    body = json.dumps({"rows": rows}).encode()
    reply = await _answered(scene, "predict", lambda: talk.ask("/predict", body), set())
    if reply is not None:
        said = [row["label"] if isinstance(row, dict) and "label" in row else row
                for row in json.loads(reply.body)["predictions"]]  # fmt: skip
        version = reply.headers["fairlead-version"]
        labels = np.array([r["prediction"] if isinstance(r, dict) else r for r in said])
        scene.check("predict", "steady", version, {"x": x}, {"label": labels})


async def invocations(scene: Scene, talk: Talk) -> None:
    """CSV as MLflow's clients send it."""
    x = scene.rows()
    lines = [",".join(FEATURES), *(",".join(repr(float(v)) for v in row) for row in x)]
    body, kind = "\n".join(lines).encode(), {"Content-Type": "text/csv"}
    reply = await _answered(
        scene, "invocations", lambda: talk.ask("/invocations/swapped", body, kind), set()
    )
    if reply is not None:
        labels = np.array(json.loads(reply.body)["predictions"])
        version = reply.headers["fairlead-version"]
        scene.check("invocations", "swapped", version, {"x": x}, {"label": labels})


async def texts(scene: Scene, talk: Talk) -> None:
    """Texts of all sorts come back as they went."""
    count = scene.draw.choice((1, 3, 9))
    city = np.array([[scene.draw.choice(_WORDS)] for _ in range(count)], object)
    age = np.arange(count, dtype=np.float32)[:, None]
    inputs = [_tensor("city", city, data=city.tolist()), _tensor("age", age, data=age.tolist())]
    body = json.dumps({"inputs": inputs}).encode()
    reply = await _answered(scene, "texts", lambda: talk.ask("/v2/models/texts/infer", body), set())
    if reply is not None:
        answer = json.loads(reply.body)
        feeds = {"city": city, "age": age}
        scene.check("texts", "texts", answer["model_version"], feeds, _outputs(answer))


async def events(scene: Scene, talk: Talk) -> None:
    """One server-sent event per row, in their order."""
    x = scene.rows()[:16]
    body = json.dumps({"inputs": [_tensor("x", x, data=x.tolist())]}).encode()
    path = "/v2/models/steady/infer_stream"
    reply = await _answered(scene, "events", lambda: talk.ask(path, body), set())
    if reply is None:
        return
    said = reply.body.decode().strip().split("\n\n")
    if len(said) != len(x) + 1 or not said[-1].startswith("event: end"):
        refusals = [item for item in said if item.startswith("event: error")]
        if refusals and "full" in refusals[0]:
            scene.ledger.statuses["events"]["shed inside"] += 1
        else:
            scene._wrong("events", f"{len(said)} events for {len(x)} rows: {said[-1]}")
        return
    for row, item in zip(x, said, strict=False):
        answer = json.loads(item.removeprefix("data: "))
        scene.check("events", "steady", answer["model_version"], {"x": row[None]}, _outputs(answer))


async def deadlines(scene: Scene, talk: Talk) -> None:
    """Requests that have little time, of a model that takes some."""
    x = scene.rows()[:1]
    patience = {"x-request-timeout-ms": str(scene.draw.choice((1, 5, 20, 100, 2000)))}
    body = json.dumps({"inputs": [_tensor("x", x, data=x.tolist())]}).encode()
    reply = await _answered(
        scene, "deadlines", lambda: talk.ask("/v2/models/heavy/infer", body, patience), {503, 504}
    )
    if reply is not None:
        answer = json.loads(reply.body)
        scene.check("deadlines", "heavy", answer["model_version"], {"x": x}, _outputs(answer))


class Grpc:
    """The same over gRPC, with a client that is not ours."""

    def __init__(self, scene: Scene) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            import tritonclient.grpc.aio as triton
        self._triton = triton
        self._client = triton.InferenceServerClient(scene.grpc)

    async def __call__(self, scene: Scene, _: Talk) -> None:
        """Ask once; a call of a killed worker is asked again."""
        from tritonclient.utils import InferenceServerException

        model = scene.draw.choice(("steady", "swapped", "twice"))
        x, name = scene.rows(), _id(scene)
        item = self._triton.InferInput("x", list(x.shape), "FP32")
        item.set_data_from_numpy(x)
        started = time.perf_counter()
        while True:
            sent = time.perf_counter()
            try:
                answer = await self._client.infer(model, [item], request_id=name, client_timeout=60)
            except InferenceServerException as exc:
                status = str(exc.status()).removeprefix("StatusCode.")
                if status == "UNAVAILABLE" and "fairlead" not in str(exc) and _is_cut(str(exc)):
                    scene.ledger.cut("grpc", sent, str(exc))
                else:
                    scene.ledger.status("grpc", status, {"UNAVAILABLE"}, str(exc))
            else:
                break
            if time.perf_counter() - started > _RETRY_S:
                scene.ledger.lost["grpc"] += 1
                return
            await asyncio.sleep(0.1)
        scene.ledger.statuses["grpc"]["OK"] += 1
        scene.ledger.latencies["grpc"].append(time.perf_counter() - sent)
        response = answer.get_response()
        if response.id != name:
            scene._wrong("grpc", f"asked {name}, got {response.id}")
            return
        got = {key: answer.as_numpy(key) for key in ("label", "scores")}
        scene.check("grpc", model, response.model_version, {"x": x}, got)

    async def close(self) -> None:
        """End the channel."""
        await self._client.close()


def _is_cut(said: str) -> bool:
    return any(word in said for word in ("Socket closed", "onnect", "reset", "GOAWAY", "EOF"))


class OurClient:
    """Our own client, whose retries have to make a killed worker invisible."""

    def __init__(self, scene: Scene) -> None:
        retry = RetryPolicy(attempts=8, budget_ratio=1.0, budget_reserve=100)
        url = f"http://127.0.0.1:{scene.port}"
        self._client = AsyncClient(url, "swapped", retry=retry, timeout_s=60)

    async def __call__(self, scene: Scene, _: Talk) -> None:
        """Ask once."""
        x = scene.rows()
        started = time.perf_counter()
        try:
            result = await self._client.infer({"x": x}, is_binary=scene.draw.random() < 0.5)
        except FairleadError as exc:
            scene.ledger.lost["our client"] += 1
            scene.ledger.note(f"our client gave up: {exc}")
            return
        scene.ledger.statuses["our client"]["200"] += 1
        scene.ledger.latencies["our client"].append(time.perf_counter() - started)
        scene.check("our client", "swapped", result.version, {"x": x}, dict(result.outputs))

    async def close(self) -> None:
        """End its connections."""
        await self._client.close()


ASKERS = {
    "json": json_infer, "binary": binary_infer, "predict": predict, "invocations": invocations,
    "texts": texts, "events": events, "deadlines": deadlines,
}  # fmt: skip
