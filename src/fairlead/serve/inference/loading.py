"""Brings versions of models into memory and out of it again, within a limit."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

from fairlead.backends.memory import release_memory, release_program_text, resident_bytes
from fairlead.core.bundle import Bundle
from fairlead.core.errors import UnavailableError
from fairlead.serve.inference.dataplane import Dataplane
from fairlead.serve.inference.model_versions import ON_DEMAND, Version
from fairlead.serve.inference.retiring import Retirement

__all__ = ["Loader", "OpenPlane"]

_log = logging.getLogger(__name__)

OpenPlane = Callable[[str, Bundle], Dataplane]
"""Loads and warms a bundle under the name of a model; called in a thread of its own."""


class Loader:
    """Loads one version at a time; everything but the opening happens in the event loop."""

    def __init__(
        self,
        open_plane: OpenPlane,
        loaded: Callable[[], Iterable[Version]],
        limit_bytes: int | None = None,
    ) -> None:
        """Prepare to load.

        Args:
            open_plane: Loads a bundle.
            loaded: Returns the versions that are in memory.
            limit_bytes: Memory that this process may hold, or None.
        """
        self._open_plane = open_plane
        self._loaded = loaded
        self._limit = limit_bytes
        self._clock = itertools.count(1)
        self._thread = ThreadPoolExecutor(1, "fairlead-loader")
        self._retirement = Retirement(self._thread)
        self.tick: Callable[[], int] = self._clock.__next__
        """Numbers the uses of versions, so that the least recent one is known."""

    def open_first(self, name: str, version: Version) -> None:
        """Load a version before the event loop runs, or leave it for its first request.

        Raises:
            FairleadError: It cannot be loaded.
            UnavailableError: It is the first, and does not fit into the memory limit.
        """
        version.reason = ON_DEMAND
        is_first = not any(True for _ in self._loaded())
        if self._room() < version.expected_bytes and not is_first:
            return
        self._open(name, version)
        if self._room() < 0:
            if version.plane is not None:
                version.plane.close()
            version.plane, version.state, version.reason = None, "UNAVAILABLE", ON_DEMAND
            release_memory()
            if is_first:
                raise self._too_large(name, version)

    async def bring_up(self, name: str, version: Version) -> None:
        """Have a version loaded and within the memory limit; others make room.

        Raises:
            FairleadError: It cannot be loaded; it will not be tried again before somebody asks
                for its load.
        """
        version.is_wanted = True
        if version.plane is not None:
            return
        version.state, version.reason = "LOADING", ""
        try:
            self._check_fits(name, version)
            await self._make_room(version.expected_bytes)
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self._thread, self._open, name, version)
            await self._make_room(0, but=version)
            if self._room() < 0:
                await self._retire_and_release(version)
                raise self._too_large(name, version)
        except BaseException as exc:
            version.state = "UNAVAILABLE"
            version.reason = str(exc) or type(exc).__name__
            # What lacks memory now may find some later; what is broken stays so.
            version.is_wanted = isinstance(exc, UnavailableError)
            raise

    def retire(self, version: Version) -> asyncio.Future[None]:
        """Give a version no further requests, and close it once it has answered those it has."""
        plane, version.plane = version.plane, None
        if plane is None:
            done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            done.set_result(None)
            return done
        version.state = "UNLOADING"
        return self._retirement.begin(plane, lambda: _gone(version))

    async def finish(self) -> None:
        """Wait until what was retired is closed."""
        await self._retirement.finish()

    def close(self) -> None:
        """Close what was retired, and free the thread."""
        self._thread.shutdown(wait=True, cancel_futures=True)
        self._retirement.close()

    def _open(self, name: str, version: Version) -> None:
        """Load a version and measure what it takes; blocks."""
        before = resident_bytes()
        version.plane = self._open_plane(name, version.bundle)
        version.cost_bytes = max(version.bundle.size_bytes, resident_bytes() - before)
        version.state, version.reason, version.used = "READY", "", self.tick()

    def _too_large(self, name: str, version: Version) -> UnavailableError:
        limit = (self._limit or 0) / 2**20
        needed = version.cost_bytes or version.bundle.size_bytes
        return UnavailableError(
            f"version {version.id} of `{name}` takes {needed / 2**20:.0f} MB, which "
            f"does not fit into the memory limit of {limit:.0f} MB beside the server itself",
            hint="raise --memory-limit-mb, or serve a smaller model (`fairlead optimize quantize`)",
        )

    def _room(self) -> float:
        """Return the bytes that are left of the memory limit."""
        return float("inf") if self._limit is None else self._limit - resident_bytes()

    async def _make_room(self, needed_bytes: int, but: Version | None = None) -> None:
        """Unload what was not used for longest until so much room is left, as far as it goes."""
        if self._room() < needed_bytes:
            release_program_text()
        while self._room() < needed_bytes:
            idle = [version for version in self._loaded() if version is not but]
            if not idle:
                return
            victim = min(idle, key=lambda version: version.used)
            victim.reason = ON_DEMAND
            _log.info("unloading version %s for want of memory", victim.id)
            await self._retire_and_release(victim)

    async def _retire_and_release(self, version: Version) -> None:
        await self.retire(version)
        await asyncio.get_running_loop().run_in_executor(None, release_memory)

    def _check_fits(self, name: str, version: Version) -> None:
        """Refuse what would not fit even if everything else made room.

        Raises:
            UnavailableError: It would not.
        """
        needed = version.cost_bytes or version.bundle.size_bytes
        if self._room() + sum(other.cost_bytes for other in self._loaded()) < needed:
            raise self._too_large(name, version)


def _gone(version: Version) -> None:
    if version.plane is None and version.state == "UNLOADING":
        version.state = "UNAVAILABLE"
