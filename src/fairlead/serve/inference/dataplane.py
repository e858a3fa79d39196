"""The working path: validate → choose an arm → queue → batch → run; no transport, only numpy."""

from __future__ import annotations

import asyncio
import itertools
import logging
import secrets
import time
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from fairlead.core.errors import NotFoundError, OverloadedError, SignatureError
from fairlead.core.ports import Array, Feeds
from fairlead.core.signature import conform
from fairlead.serve.inference.arms import Arm
from fairlead.serve.inference.batching import BatchResult
from fairlead.serve.inference.problems import describe, status_of
from fairlead.serve.inference.served import Observer, ServedRequest
from fairlead.serve.inference.traffic import Traffic

__all__ = ["Answer", "Dataplane", "InferenceRequest"]

_log = logging.getLogger(__name__)


class InferenceRequest(NamedTuple):
    """What a transport understood of a request.

    Attributes:
        feeds: One array per input, first dimension the rows.
        arrived: When it arrived, in seconds of `time.perf_counter`.
        id: The client's id, or "" to be given one.
        version: The version the client insists on, or None.
        trace_id: Id of the distributed trace it belongs to, or "".
        is_probe: Whether it only tests the server; it is measured but not remembered.
        deadline: When nobody waits for the answer any more, in seconds of `time.perf_counter`;
            None leaves it to the server's own timeout. A request whose time is up never runs.
        priority: 1 is served before others, 0 is normal, -1 after others and refused first.
        caller: Who asks, as the guard knows them, or "".
        outputs: The outputs that are wanted, or None for all.
        parameters: Parameters of the protocol that the transport did not use up.
    """

    feeds: Feeds
    arrived: float
    id: str = ""
    version: str | None = None
    trace_id: str = ""
    is_probe: bool = False
    deadline: float | None = None
    priority: int = 0
    caller: str = ""
    outputs: tuple[str, ...] | None = None
    parameters: Mapping[str, Any] = MappingProxyType({})


class Answer(NamedTuple):
    """What a transport sends back.

    Attributes:
        id: Id of the request.
        arm: The arm that answered.
        outputs: Name → array, first dimension the rows.
    """

    id: str
    arm: Arm
    outputs: dict[str, Array]


class Dataplane:
    """Answers inference requests from one or two arms; lives in one event loop."""

    def __init__(
        self,
        service: str,
        arms: Mapping[str, Arm],
        traffic: Traffic,
        *,
        timeout_s: float = 30.0,
        observers: Sequence[Observer] = (),
    ) -> None:
        """Put the arms behind one name.

        Args:
            service: Name of the service and of its model.
            arms: Name → arm.
            traffic: Chooses between them.
            timeout_s: Longest time a request may take, in seconds.
            observers: Told of every request that an arm took; they must not raise.
        """
        self.service = service
        self.arms = dict(arms)
        self.traffic = traffic
        self._timeout_s = timeout_s
        self._observers = tuple(observers)
        self._versions = {arm.version: arm for arm in reversed(self.arms.values())}
        self._prefix = secrets.token_hex(5)
        self._numbers = itertools.count(1)
        self._shadows: set[asyncio.Task[None]] = set()

    @property
    def versions(self) -> tuple[str, ...]:
        """Versions of the arms, the baseline's first."""
        return tuple(dict.fromkeys(arm.version for arm in self.arms.values()))

    def choose_arm(self, version: str | None) -> Arm:
        """Return the arm of a version, or the one that chance gives the next request.

        Raises:
            NotFoundError: There is no such version.
        """
        if version is None:
            return self.arms[self.traffic.choose()]
        arm = self._versions.get(version)
        if arm is None:
            raise NotFoundError(
                f"`{self.service}` has no version {version!r}",
                hint=f"its versions are {', '.join(self.versions)}",
            )
        return arm

    async def infer(self, request: InferenceRequest) -> Answer:
        """Answer one request, and mirror it to the shadow arm when there is one.

        Raises:
            NotFoundError: The version does not exist.
            SignatureError: The inputs do not fit.
            OverloadedError: Too many requests wait already.
            TimeoutError: It took too long.
            ModelError: The model failed on it.
        """
        arm = self.choose_arm(request.version)
        request_id = request.id or f"{self._prefix}-{next(self._numbers):x}"
        shadow = self.traffic.split.shadow
        if shadow is not None and request.version is None and not request.is_probe:
            self._mirror(request, request_id, self.arms[shadow])
        return await self._run(request, request_id, arm)

    async def drain(self) -> None:
        """Wait for mirrored requests that nobody else waits for."""
        while self._shadows:
            await asyncio.gather(*self._shadows)

    def close(self) -> None:
        """Free the models."""
        for arm in self.arms.values():
            arm.close()

    def _mirror(self, request: InferenceRequest, request_id: str, arm: Arm) -> None:
        task = asyncio.get_running_loop().create_task(self._run_unheard(request, request_id, arm))
        self._shadows.add(task)
        task.add_done_callback(self._shadows.discard)

    async def _run_unheard(self, request: InferenceRequest, request_id: str, arm: Arm) -> None:
        try:
            await self._run(request, request_id, arm)
        except Exception as exc:  # noqa: BLE001 (observed by `_run`; nobody waits for the answer)
            _log.debug("shadow %s failed on %s: %s", arm.name, request_id, exc)

    async def _run(self, request: InferenceRequest, request_id: str, arm: Arm) -> Answer:
        feeds: dict[str, Array] | None = None
        n_rows = 0
        try:
            feeds = conform(request.feeds, arm.signature)
            n_rows = _count_rows(feeds)
            left_s = self._timeout_s
            if request.deadline is not None:
                left_s = min(left_s, request.deadline - time.perf_counter())
            if left_s <= 0:
                raise TimeoutError
            async with asyncio.timeout(left_s):
                result = await arm.queue.submit(feeds, n_rows)
        except Exception as exc:
            self._observe_failure(request, request_id, arm, feeds, n_rows, exc)
            raise
        self._observe(request, request_id, arm, feeds, n_rows, result)
        outputs = result.outputs
        if request.outputs is not None:
            outputs = {name: outputs[name] for name in request.outputs}
        return Answer(request_id, arm, outputs)

    def _observe(
        self,
        request: InferenceRequest,
        request_id: str,
        arm: Arm,
        feeds: dict[str, Array],
        n_rows: int,
        result: BatchResult,
    ) -> None:
        self._tell(
            ServedRequest(
                id=request_id,
                arm=arm,
                status=200,
                feeds=feeds,
                outputs=result.outputs,
                n_rows=n_rows,
                queue_ms=result.queue_ms,
                run_ms=result.run_ms,
                total_ms=(time.perf_counter() - request.arrived) * 1e3,
                batch_rows=result.batch_rows,
                at=time.time(),
                trace_id=request.trace_id,
                is_probe=request.is_probe,
                caller=request.caller,
            )
        )

    def _observe_failure(
        self,
        request: InferenceRequest,
        request_id: str,
        arm: Arm,
        feeds: dict[str, Array] | None,
        n_rows: int,
        error: Exception,
    ) -> None:
        status = status_of(error)
        if status == 500:
            _log.error("request %s failed", request_id, exc_info=error)
        self._tell(
            ServedRequest(
                id=request_id,
                arm=arm,
                status=status,
                feeds=feeds,
                outputs=None,
                n_rows=n_rows,
                queue_ms=0.0,
                run_ms=0.0,
                total_ms=(time.perf_counter() - request.arrived) * 1e3,
                batch_rows=0,
                at=time.time(),
                trace_id=request.trace_id,
                is_probe=request.is_probe,
                error=describe(error)[0],
                caller=request.caller,
            )
        )

    def _tell(self, served: ServedRequest) -> None:
        for observer in self._observers:
            observer((served,))


def retry_after_s(dataplane: Dataplane, error: BaseException) -> int | None:
    """Return after how many seconds a refused request is worth another try, or None."""
    if not isinstance(error, OverloadedError):
        return None
    return max(arm.queue.retry_after_s for arm in dataplane.arms.values())


def _count_rows(feeds: Mapping[str, Array]) -> int:
    first = next(iter(feeds.values()), None)
    rows = 1 if first is None or first.ndim == 0 else len(first)
    if rows == 0:
        raise SignatureError("the request holds no rows", hint="send at least one row")
    return rows
