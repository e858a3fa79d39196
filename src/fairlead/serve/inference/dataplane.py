"""The working path: validate → choose an arm → queue → batch → run; no transport, only numpy."""

from __future__ import annotations

import asyncio
import itertools
import logging
import secrets
import time
from collections.abc import Callable, Mapping, Sequence

from fairlead.core.errors import NotFoundError, OverloadedError
from fairlead.core.ports import Array, Outputs
from fairlead.serve.inference.arms import Arm
from fairlead.serve.inference.cache import ResponseCache, content_key
from fairlead.serve.inference.inference_request import Answer, InferenceRequest, Joined
from fairlead.serve.inference.methods.queue import BatchResult, Waiting
from fairlead.serve.inference.problems import CLIENT_GONE, describe, status_of
from fairlead.serve.inference.served import (
    DurableObserver,
    Observer,
    PromptObserver,
    ServedRequest,
    ServedTogether,
)
from fairlead.serve.inference.traffic import Traffic

__all__ = ["Answer", "Call", "Dataplane", "InferenceRequest", "Joined"]

_log = logging.getLogger(__name__)


Done = Callable[[Answer | Exception], None]
"""Hears once how a request ended, in the event loop's thread."""


class Call:
    """A request on its way through the dataplane."""

    __slots__ = (
        "_dataplane", "_done", "_feeds", "_key", "_n_rows", "_waiting", "arm", "id", "request",
    )  # fmt: skip

    def __init__(
        self, dataplane: Dataplane, request: InferenceRequest, call_id: str, arm: Arm, done: Done
    ) -> None:
        """Prepare the way of a request to an arm."""
        self._dataplane = dataplane
        self.request = request
        self.id = call_id
        self.arm = arm
        self._done = done
        self._feeds: dict[str, Array] | None = None
        self._n_rows = 0
        self._key: bytes | None = None
        self._waiting: Waiting | None = None

    def start(self, deadline: float) -> None:
        """Validate the request and put it into the queue of its arm.

        Raises:
            SignatureError: The inputs do not fit.
            OverloadedError: Too many requests wait already.
            TimeoutError: Its time is already up.
        """
        request = self.request
        try:
            self._feeds, self._n_rows = self.arm.intake.check(request.feeds)
            if deadline <= time.perf_counter():
                raise TimeoutError
            if self._dataplane.cache is not None and self._is_known(self._dataplane.cache):
                return
            self._waiting = self.arm.queue.submit(
                self._feeds, self._n_rows, self.end, deadline=deadline, priority=request.priority
            )
        except Exception as exc:
            self._observe_failure(status_of(exc), exc)
            raise

    def _is_known(self, cache: ResponseCache) -> bool:
        """Answer from the cache, a moment later, where it knows the answer."""
        if self.request.is_probe or self._feeds is None:
            return False
        self._key = content_key(self.arm.bundle.digest, self._feeds)
        outputs = cache.get(self._key)
        if outputs is None:
            return False
        asyncio.get_running_loop().call_soon(self.end, BatchResult(outputs, 0.0, 0.0, 0))
        return True

    def end(self, result: BatchResult | Exception) -> None:
        """Hand the result on; called by the queue."""
        self._waiting = (
            None  # It refers back to this call: without the ring, both are gone at once.
        )
        if isinstance(result, BatchResult):
            self._observe(result)
            outputs = result.outputs
            is_cached = result.batch_rows == 0
            if self._key is not None and not is_cached and self._dataplane.cache is not None:
                self._dataplane.cache.put(self._key, outputs)
            if self.request.outputs is not None:
                outputs = {name: outputs[name] for name in self.request.outputs}
            answer = Answer(self.id, self.arm, outputs, is_cached, result.parts_ms)
            if self._dataplane.is_durable and not self.request.is_probe:
                self._dataplane.hold(self, answer)
            else:
                self.tell(answer)
        else:
            self._observe_failure(status_of(result), result)
            self.tell(result)

    def cancel(self) -> None:
        """Forget the request, because nobody waits for the answer any more."""
        if self._waiting is not None and not self._waiting.is_over:
            self.arm.queue.cancel(self._waiting)
            self._observe_failure(CLIENT_GONE, None)
        self._done = _unheard

    def tell(self, ending: Answer | Exception) -> None:
        """Deliver the answer, or why there is none."""
        try:
            self._done(ending)
        except Exception:  # noqa: BLE001 (logged)
            # The others of the batch must hear of theirs whatever happens here.
            _log.exception("the answer to %s could not be delivered", self.id)

    def _observe(self, result: BatchResult) -> None:
        request = self.request
        self._dataplane.remember(
            ServedRequest(
                self.id,
                self.arm,
                200,
                self._feeds,
                result.outputs,
                self._n_rows,
                result.queue_ms,
                result.run_ms,
                (time.perf_counter() - request.arrived) * 1e3,
                result.batch_rows,
                time.time(),
                request.trace_id,
                "",
                request.is_probe,
                request.caller,
                result.parts_ms,
            )
        )

    def _observe_failure(self, status: int, error: Exception | None) -> None:
        if status == 500:
            _log.error("request %s failed", self.id, exc_info=error)
        request = self.request
        self._dataplane.remember(
            ServedRequest(
                id=self.id,
                arm=self.arm,
                status=status,
                feeds=self._feeds,
                outputs=None,
                n_rows=self._n_rows,
                queue_ms=0.0,
                run_ms=0.0,
                total_ms=(time.perf_counter() - request.arrived) * 1e3,
                batch_rows=0,
                at=time.time(),
                trace_id=request.trace_id,
                error="the client went away" if error is None else describe(error)[0],
                is_probe=request.is_probe,
                caller=request.caller,
            )
        )


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
        cache: ResponseCache | None = None,
    ) -> None:
        """Put the arms behind one name.

        Args:
            service: Name of the service and of its model.
            arms: Name → arm.
            traffic: Chooses between them.
            timeout_s: Longest time a request may take, in seconds.
            observers: Told of every request that an arm took; they must not raise.
            cache: Knows answers that were given before; None asks the model every time.
        """
        self.service = service
        self.cache = cache
        self.arms = dict(arms)
        self.traffic = traffic
        self._timeout_s = timeout_s
        self._observers = tuple(observers)
        self._prompt = [item for item in observers if isinstance(item, PromptObserver)]
        self._later = [item for item in observers if not isinstance(item, PromptObserver)]
        self._durable = [item for item in self._observers if isinstance(item, DurableObserver)]
        self._held: list[tuple[Call, Answer]] = []
        self._n_held = 0
        self._is_plain = len(self.arms) == 1 and cache is None and not self._durable
        self._versions = {arm.version: arm for arm in reversed(self.arms.values())}
        self._prefix = secrets.token_hex(5)
        self._numbers = itertools.count(1)
        self._shadows = 0
        self.n_streams = 0
        """Answers that are under way piece by piece."""
        self._served: list[ServedRequest] = []

    @property
    def versions(self) -> tuple[str, ...]:
        """Versions of the arms, the baseline's first."""
        return tuple(dict.fromkeys(arm.version for arm in self.arms.values()))

    @property
    def is_durable(self) -> bool:
        """Whether answers wait until what is remembered of them is safe."""
        return bool(self._durable)

    @property
    def baseline(self) -> Arm:
        """The arm that stands for the model where none is asked for."""
        return next(iter(self.arms.values()))

    @property
    def n_pending(self) -> int:
        """Requests that wait or run, over all arms."""
        return self.n_streams + sum(arm.queue.n_pending for arm in self.arms.values())

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

    def new_id(self) -> str:
        """Return an id for a request that came without one."""
        return f"{self._prefix}-{next(self._numbers):x}"

    def deadline_of(self, request: InferenceRequest) -> float:
        """Return when a request must be answered, in seconds of `time.perf_counter`."""
        deadline = request.arrived + self._timeout_s
        if request.deadline is not None and request.deadline < deadline:
            return request.deadline
        return deadline

    def check_room(self, priority: int = 0) -> None:
        """Refuse early, before a body is decoded, what no arm has room for.

        Raises:
            OverloadedError: The queues are full, or too slow.
        """
        refusal: OverloadedError | None = None
        for arm in self.arms.values():
            try:
                arm.queue.check_room(priority)
            except OverloadedError as exc:
                refusal = exc
            else:
                return
        if refusal is not None:
            raise refusal

    def submit(self, request: InferenceRequest, done: Done) -> Call:
        """Start one request, and mirror it to the shadow arm when there is one.

        Args:
            request: What is asked.
            done: Hears once how it ended, unless this method raises or the call is cancelled.

        Raises:
            NotFoundError: The version does not exist.
            SignatureError: The inputs do not fit.
            OverloadedError: Too many requests wait already.
            TimeoutError: Its time is already up.
        """
        arm = self.choose_arm(request.version)
        call_id = request.id or self.new_id()
        deadline = self.deadline_of(request)
        shadow = self.traffic.split.shadow
        if shadow is not None and request.version is None and not request.is_probe:
            self._mirror(request, call_id, self.arms[shadow], deadline)
        call = Call(self, request, call_id, arm, done)
        call.start(deadline)
        return call

    def plain_arm(self, version: str | None = None, *, or_busy: bool = False) -> Arm | None:
        """Return the arm whose requests differ in nothing but their tensors, or None.

        None asks for `submit`: chance chooses the arm, another one looks on, answers are known
        already or wait for the disk, or requests wait in the queue, unless it may be busy.

        Raises:
            NotFoundError: There is no such version.
        """
        if not self._is_plain:
            return None
        arm = self.baseline if version is None else self.choose_arm(version)
        return arm if or_busy or arm.queue.is_free else None

    def answer_now(self, arm: Arm, asked: Joined) -> ServedTogether | None:
        """Answer requests to a plain arm in one batch before anything else happens.

        Whoever gets an answer from here tells `remember_together`.

        Returns:
            The answers; None asks for `submit`: the model would hold up the event loop, it failed
            on one of the requests, or time was up.
        """
        began = time.perf_counter()
        if began - asked.arrived[0] >= self._timeout_s:
            return None
        rows = sum(asked.n_rows)
        outputs = arm.queue.run_now(asked.feeds, rows)
        if outputs is None:
            return None
        ended = time.perf_counter()
        prefix, numbers = self._prefix, self._numbers
        return ServedTogether(
            arm,
            [given or f"{prefix}-{next(numbers):x}" for given in asked.ids],
            asked.feeds,
            outputs,
            asked.n_rows,
            [(began - arrived) * 1e3 for arrived in asked.arrived],
            (ended - began) * 1e3,
            [(ended - arrived) * 1e3 for arrived in asked.arrived],
            rows,
            time.time(),
            asked.trace_ids,
            asked.callers,
            outputs.parts_ms if isinstance(outputs, Outputs) else None,
        )

    def remember_together(self, served: ServedTogether) -> None:
        """Tell the observers of requests that `answer_now` answered."""
        for observer in self._observers:
            try:
                observer(served)
            except Exception:  # noqa: BLE001 (logged)
                # Requests that were not answered yet must not pay for it.
                _log.exception("%d requests are not remembered everywhere", len(served))

    async def infer(self, request: InferenceRequest) -> Answer:
        """Answer one request, and mirror it to the shadow arm when there is one.

        Raises:
            NotFoundError: The version does not exist.
            SignatureError: The inputs do not fit.
            OverloadedError: Too many requests wait already.
            TimeoutError: It took too long.
            ModelError: The model failed on it.
        """
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

        def done(ending: Answer | Exception) -> None:
            if future.done():
                return
            if isinstance(ending, Exception):
                future.set_exception(ending)
            else:
                future.set_result(ending)

        call = self.submit(request, done)
        try:
            return await future
        except asyncio.CancelledError:
            call.cancel()
            raise

    async def drain(self) -> None:
        """Wait for what is under way, mirrored requests included, and tell the observers."""
        while self.n_pending or self._shadows or self._n_held:
            await asyncio.sleep(0.002)
        self._tell_observers()
        for observer in self._observers:
            observer(())
        for arm in self.arms.values():
            arm.queue.rest()

    def close(self) -> None:
        """Free the models."""
        for arm in self.arms.values():
            arm.close()
        self._tell_observers()

    def remember(self, served: ServedRequest) -> None:
        """Tell the observers of a request, most of them together with others of this tick."""
        for observer in self._prompt:
            try:
                observer((served,))
            except Exception:  # noqa: BLE001 (logged)
                _log.exception("request %s is not remembered everywhere", served.id)
        if not self._served:
            asyncio.get_running_loop().call_soon(self._tell_observers)
        self._served.append(served)

    def _tell_observers(self) -> None:
        served, self._served = self._served, []
        if served:
            for observer in self._later:
                observer(served)
        if self._held:
            self._commit()

    def hold(self, call: Call, answer: Answer) -> None:
        """Keep an answer back until what is remembered of it is safe."""
        self._held.append((call, answer))
        self._n_held += 1

    def _commit(self) -> None:
        """Have the requests of this tick made safe together, and then answer them."""
        held, self._held = self._held, []
        loop = asyncio.get_running_loop()
        waits = len(self._durable)
        problems: list[Exception] = []

        def release(problem: Exception | None) -> None:
            nonlocal waits
            waits -= 1
            if problem is not None:
                problems.append(problem)
            if waits == 0:
                self._n_held -= len(held)
                for call, answer in held:
                    call.tell(problems[0] if problems else answer)

        def done(problem: Exception | None) -> None:
            loop.call_soon_threadsafe(release, problem)

        for observer in self._durable:
            observer.commit(done)

    def _mirror(self, request: InferenceRequest, call_id: str, arm: Arm, deadline: float) -> None:
        def done(ending: Answer | Exception) -> None:
            self._shadows -= 1
            if isinstance(ending, Exception):
                _log.debug("shadow %s failed on %s: %s", arm.name, call_id, ending)

        self._shadows += 1
        try:
            Call(self, request, call_id, arm, done).start(deadline)
        except Exception as exc:  # noqa: BLE001 (observed by the call; nobody waits for the answer)
            done(exc)


def _unheard(ending: Answer | Exception) -> None:
    """Take the place of a caller that is gone."""
