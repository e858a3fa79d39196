"""What operators and accidents do to a server meanwhile."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from chaos_parts.ledger import Cut
from chaos_parts.load import Scene
from chaos_parts.memory import workers_of
from chaos_parts.models import FEATURES
from chaos_parts.talk import Reply, Talk
from fairlead.core.bundle import Bundle

__all__ = ["Trouble"]

_DONE = {200, 409, 503}


@dataclass
class Trouble:
    """Changes of a running service.

    Attributes:
        scene: Where requests go.
        pid: The supervisor.
        token: Opens the control endpoints.
        place: Folder that the model `swapped` is served from.
        spare: Bundles that take turns in it.
        every_s: Seconds between two changes of one kind.
        kill_every_s: Seconds between two killed workers.
        workers: How many there are when all is well.
    """

    scene: Scene
    pid: int
    token: str
    place: Path
    spare: list[Bundle]
    every_s: float
    kill_every_s: float
    workers: int

    async def swap(self) -> None:
        """Put another model into the folder, and have it taken up."""
        talk = Talk(self.scene.port)
        turn = 0
        while await self._pause(self.every_s):
            turn += 1
            new = self.place.with_name("coming")
            shutil.copytree(self.spare[turn % len(self.spare)].path, new)
            old = self.place.with_name("going")
            self.place.rename(old)
            new.rename(self.place)
            shutil.rmtree(old)
            await self._change(talk, "reload", "/v2/repository/models/swapped/load")

    async def switch(self) -> None:
        """Declare the one, then the other version the default one."""
        talk = Talk(self.scene.port)
        versions = sorted(self.scene.truths["twice"].sessions)
        turn = 0
        while await self._pause(self.every_s):
            turn += 1
            wanted = {"version": versions[turn % len(versions)], "default": True}
            path = "/v2/repository/models/twice/load"
            await self._change(talk, "version switch", path, {"parameters": wanted})

    async def come_and_go(self) -> None:
        """Unload a model and load it again."""
        talk = Talk(self.scene.port)
        turn = 0
        while await self._pause(self.every_s):
            turn += 1
            what = ("unload", "load")[turn % 2]
            await self._change(talk, what, f"/v2/repository/models/loadable/{what}")

    async def split(self) -> None:
        """Give the arms other shares, and read what became of requests."""
        talk = Talk(self.scene.port)
        after = 0
        while await self._pause(self.every_s):
            share = self.scene.draw.random()
            shadow = self.scene.draw.choice((None, "candidate"))
            weights = {"baseline": 1.0} if shadow else {"baseline": share, "candidate": 1 - share}
            await self._change(
                talk, "traffic split", "/fairlead/traffic",
                {"weights": weights, "shadow": shadow}, method="PUT",
            )  # fmt: skip
            reply = await self._change(
                talk, "outcomes", f"/fairlead/outcomes?after={after}&limit=100", method="GET"
            )
            if reply is not None and reply.status == 200:
                after = json.loads(reply.body)["next"]
            await self._change(talk, "metrics", "/metrics", method="GET")

    async def kill(self) -> None:
        """`kill -9` the youngest worker, so that the oldest shows what a long life costs."""
        if self.kill_every_s <= 0 or self.workers < 2:
            return
        while await self._pause(self.kill_every_s):
            await self.all_there()
            found = workers_of(self.pid)
            if len(found) < 2:
                continue
            self.scene.ledger.kills.append(time.perf_counter())
            os.kill(found[-1], signal.SIGKILL)
            self.scene.ledger.changes["kill -9"] += 1

    async def watch(self) -> None:
        """Notice workers that end without our help."""
        while await self._pause(1.0):
            kills = len(self.scene.ledger.kills)
            before = set(workers_of(self.pid))
            await asyncio.sleep(0.5)
            gone = before - set(workers_of(self.pid))
            if len(gone) > len(self.scene.ledger.kills) - kills and not self._just_killed():
                self.scene.ledger.crashes += 1
                self.scene.ledger.note(f"worker {gone} ended by itself")

    async def score_files(self, folder: Path, home: Path) -> None:
        """`fairlead serve batch` beside the server, compared row by row."""
        x = np.random.default_rng(5).normal(size=(20_000, 4)).astype(np.float32)
        table = pa.table({name: x[:, i] for i, name in enumerate(FEATURES)})
        pq.write_table(table, folder / "rows.parquet")
        bundle = self.spare[0]
        right = self.scene.truths["swapped"](bundle.version, {"x": x})["label"]
        turn = 0
        while await self._pause(6 * self.every_s):
            turn += 1
            out = folder / f"scored-{turn}.parquet"
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "fairlead", "serve", "batch", bundle.path,
                folder / "rows.parquet", "-o", out, env={**os.environ, "FAIRLEAD_HOME": str(home)},
                stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
            )  # fmt: skip
            _, said = await process.communicate()
            if process.returncode:
                self.scene.ledger.lost["serve batch"] += 1
                self.scene.ledger.note(f"serve batch: {said[-300:]!r}")
                continue
            found = pq.read_table(out)["prediction"].to_numpy()
            is_right = len(found) == len(right) and (found == right).all()
            (self.scene.ledger.right if is_right else self.scene.ledger.wrong)["serve batch"] += 1
            out.unlink()

    async def all_there(self) -> bool:
        """Wait until every worker is back and takes requests; False when that does not happen."""
        talk = Talk(self.scene.port)
        end = time.perf_counter() + 60
        try:
            while time.perf_counter() < end:
                try:
                    said = (await talk.ask("/metrics", method="GET")).body
                except (Cut, TimeoutError):
                    said = b""
                if b"\nfairlead_workers %d" % self.workers in said:
                    return True
                await asyncio.sleep(0.2)
            return False
        finally:
            talk.close()

    def _just_killed(self) -> bool:
        kills = self.scene.ledger.kills
        return bool(kills) and time.perf_counter() - kills[-1] < 5

    async def _pause(self, mean_s: float) -> bool:
        await asyncio.sleep(mean_s * (0.5 + self.scene.draw.random()))
        return time.perf_counter() < self.scene.until

    async def _change(
        self, talk: Talk, kind: str, path: str, document: dict | None = None, method: str = "POST"
    ) -> Reply | None:
        body = b"" if method == "GET" else json.dumps(document or {}).encode()
        sent = time.perf_counter()
        try:
            reply = await talk.ask(
                path, body, {"authorization": f"Bearer {self.token}"}, method=method
            )
        except Cut as exc:
            self.scene.ledger.cut(kind, sent, str(exc))
            return None
        except TimeoutError:
            self.scene.ledger.hangs[kind] += 1
            self.scene.ledger.note(f"{kind} hangs")
            return None
        self.scene.ledger.status(kind, reply.status, _DONE, reply.body[:300])
        self.scene.ledger.changes[kind] += reply.status == 200
        return reply
