"""The methods of the Open Inference Protocol: decode, delegate, encode."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import aclosing
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from fairlead.backends.openinference import datatype_of
from fairlead.core.errors import (
    DataError,
    OverloadedError,
    RateLimitedError,
    UnavailableError,
)
from fairlead.core.signature import TensorSpec
from fairlead.core.version import __version__
from fairlead.serve.inference.arms import Arm, free_signature
from fairlead.serve.inference.busy_poll import BusyPoll
from fairlead.serve.inference.dataplane import Answer, Dataplane, InferenceRequest
from fairlead.serve.inference.grpc.call import Call, OnMessage
from fairlead.serve.inference.grpc.doorman import Doorman
from fairlead.serve.inference.grpc.known_messages import KnownMessages
from fairlead.serve.inference.grpc.messages import (
    AnswerMessages,
    InferCall,
    parameters_of,
    read_request,
)
from fairlead.serve.inference.grpc.schema import INFERENCE, Message, schema
from fairlead.serve.inference.grpc.status import code_of, explain
from fairlead.serve.inference.grpc.turns import Turns
from fairlead.serve.inference.http.asking import Asking, deadline_of, priority_of
from fairlead.serve.inference.model_configuration import configuration_of
from fairlead.serve.inference.openinference import platform_of
from fairlead.serve.inference.problems import status_of
from fairlead.serve.inference.streaming import is_streaming, stream_answers

if TYPE_CHECKING:
    from fairlead.serve.inference.service import Service

from fairlead.serve.inference.security.callers import MAY_PROBE

__all__ = ["InferenceMethods"]

_log = logging.getLogger(__name__)
_EXTENSIONS = (
    "model_repository",
    "model_repository(unload_dependents)",
    "model_configuration",
    "statistics",
)
_FINAL = "triton_final_response"
_WANTS_FINAL = "triton_enable_empty_final_response"
_NO_HEADERS = Asking()
_FLYING = 64
"""Requests of one stream that are under way at once."""

Spawn = Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]


class InferenceMethods:
    """Answers the calls of `inference.GRPCInferenceService`."""

    def __init__(self, service: Service, doorman: Doorman, spawn: Spawn) -> None:
        """Prepare.

        Args:
            service: Whose models answer.
            doorman: Decides who may call.
            spawn: Runs what cannot be done at once.
        """
        self._service = service
        self._repository = service.repository
        self._doorman = doorman
        self._spawn = spawn
        self._answers: WeakKeyDictionary[Arm, AnswerMessages] = WeakKeyDictionary()
        messages = schema().messages
        self._messages = {
            name.removeprefix("inference."): kind
            for name, kind in messages.items()
            if name.startswith("inference.")
        }
        self._request = self._messages["ModelInferRequest"]
        self._known = KnownMessages(self._request)
        self.turns = Turns(
            self._repository,
            self._known,
            self._answers_of,
            self._infer_alone,
            self._fail,
            BusyPoll(service.busy_poll_s),
        )
        """Serves calls that come together."""

    def table(self) -> dict[str, OnMessage]:
        """Return path → who takes the message of a unary call."""
        simple: dict[str, Callable[[Message], Awaitable[Message]]] = {
            "ServerLive": self._server_live,
            "ServerReady": self._server_ready,
            "ServerMetadata": self._server_metadata,
            "ModelReady": self._model_ready,
            "ModelMetadata": self._model_metadata,
            "ModelConfig": self._model_config,
            "ModelStatistics": self._model_statistics,
            "RepositoryIndex": self._repository_index,
            "RepositoryModelLoad": self._repository_load,
            "RepositoryModelUnload": self._repository_unload,
        }
        found = {f"/{INFERENCE}/{name}": self._simple(name, do) for name, do in simple.items()}
        return {**found, f"/{INFERENCE}/ModelInfer": self.infer}

    # Inference.

    def infer(self, call: Call, raw: bytes) -> None:
        """Answer one request, together with others that come in the same turn; never raises."""
        if call.head.is_usual and self._doorman.is_open:
            self.turns.add(call, raw)
        else:
            self._infer_alone(call, raw)

    def _infer_alone(self, call: Call, raw: bytes) -> None:
        """Answer one request through the queue; never raises."""
        try:
            request = self._read(self._request, raw)
            admission = self._doorman.admit(call, request.model_name or None)
            if admission is not None:
                self._spawn(self._infer_later(call, request, admission))
                return
            try:
                self._submit(call, request, raw)
            except UnavailableError:
                self._spawn(self._infer_later(call, request, None))
        except Exception as exc:  # noqa: BLE001 (becomes the answer)
            self._reject(call, exc)

    async def _infer_later(
        self, call: Call, request: Message, admission: Awaitable[None] | None
    ) -> None:
        """Answer a request that has to wait, for a key or for its model."""
        try:
            if admission is not None:
                await admission
            await self._repository.obtain(*_model_of(request))
            self._submit(call, request)
        except Exception as exc:  # noqa: BLE001 (becomes the answer)
            self._reject(call, exc)

    def _submit(self, call: Call, request: Message, raw: bytes = b"") -> None:
        plane = self._repository.dataplane(*_model_of(request))
        plane.check_room()
        asked = read_request(request)
        prepared = self._prepare(call, plane, request, asked)

        def done(ending: Answer | Exception) -> None:
            if isinstance(ending, Exception):
                self._fail(call, ending)
            else:
                answers = self._answers_of(ending.arm)
                call.respond(answers.write(asked, ending.id, ending.outputs, ending.told))

        call.on_gone = plane.submit(prepared, done).cancel
        if raw:
            arm = plane.plain_arm(request.model_version or None, or_busy=True)
            if arm is not None:
                self._known.learn(raw, request, asked, arm)

    def _prepare(
        self, call: Call, plane: Dataplane, request: Message, asked: InferCall
    ) -> InferenceRequest:
        """Return the request as the dataplane takes it.

        Raises:
            SignatureError: It asks for an output that the model does not have.
        """
        version = request.model_version or None
        if asked.outputs is not None:
            arm = plane.choose_arm(version) if version else plane.baseline
            for name in asked.outputs:
                arm.signature.output(name)
        metadata = call.head.metadata
        deadline = call.deadline
        if asked.parameters:
            named = deadline_of(_NO_HEADERS, asked.parameters, call.arrived)
            deadline = min((one for one in (deadline, named) if one is not None), default=None)
        trace = metadata.get("traceparent", "").split("-")
        return InferenceRequest(
            asked.feeds,
            call.arrived,
            asked.id or metadata.get("x-request-id", "")[:256],
            version,
            trace[1] if len(trace) == 4 and len(trace[1]) == 32 else "",
            metadata.get("fairlead-probe") == "1" and call.caller in MAY_PROBE,
            deadline,
            priority_of(asked.parameters),
            call.caller,
            asked.outputs,
            asked.parameters,
        )

    async def stream(self, call: Call) -> None:
        """Answer a stream of requests, in their order; several are under way at once."""
        flying: asyncio.Queue[asyncio.Task[None] | None] = asyncio.Queue(_FLYING)
        reader = asyncio.ensure_future(self._read_stream(call, flying))
        try:
            while (task := await flying.get()) is not None:
                await task
            await reader
            call.finish()
        except Exception as exc:  # noqa: BLE001 (becomes the answer)
            self._fail(call, exc)
        finally:
            reader.cancel()
            while not flying.empty():
                left = flying.get_nowait()
                if left is not None:
                    left.cancel()

    async def _read_stream(
        self, call: Call, flying: asyncio.Queue[asyncio.Task[None] | None]
    ) -> None:
        before: asyncio.Task[None] | None = None
        try:
            while (raw := await call.next()) is not None:
                before = asyncio.ensure_future(self._answer_streamed(call, raw, before))
                await flying.put(before)
        finally:
            await flying.put(None)

    async def _answer_streamed(
        self, call: Call, raw: bytes, before: asyncio.Task[None] | None
    ) -> None:
        """Answer one request of a stream; its pieces follow those of the request before."""
        response = self._messages["ModelStreamInferResponse"]
        request_id = ""
        try:
            request = self._read(self._request, raw)
            request_id = request.id
            admission = self._doorman.admit(call, request.model_name or None)
            if admission is not None:
                await admission
            plane = await self._repository.obtain(*_model_of(request))
            asked = read_request(request)
            prepared = self._prepare(call, plane, request, asked)
            pieces = self._pieces(plane, asked, prepared)
            async with aclosing(pieces):
                async for piece in pieces:
                    if before is not None and not before.done():
                        await asyncio.wait({before})
                    call.send(response(infer_response=piece).SerializeToString())
                    await call.ready()
        except Exception as exc:  # noqa: BLE001 (becomes a message of the stream)
            self._count(exc)
            if before is not None and not before.done():
                await asyncio.wait({before})
            failed = response(error_message=f"[{code_of(exc).name}] {explain(exc)}")
            failed.infer_response.id = request_id
            call.send(failed.SerializeToString())

    async def _pieces(
        self, plane: Dataplane, asked: InferCall, prepared: InferenceRequest
    ) -> AsyncGenerator[Message]:
        """Yield the messages that answer one request of a stream."""
        kind = self._messages["ModelInferResponse"]
        is_in_pieces = any(is_streaming(arm) for arm in plane.arms.values())
        wants_final = asked.parameters.get(_WANTS_FINAL) is True
        last: Answer | None = None
        async with aclosing(stream_answers(plane, prepared)) as answers:
            async for answer in answers:
                chosen = asked._replace(outputs=tuple(answer.outputs))
                piece = kind.FromString(
                    self._answers_of(answer.arm).write(chosen, answer.id, answer.outputs)
                )
                piece.parameters[_FINAL].bool_param = not is_in_pieces
                last = answer
                yield piece
        if is_in_pieces and wants_final and last is not None:
            final = kind(model_name=last.arm.model, model_version=last.arm.version, id=last.id)
            final.parameters[_FINAL].bool_param = True
            yield final

    def _answers_of(self, arm: Arm) -> AnswerMessages:
        found = self._answers.get(arm)
        if found is None:
            found = AnswerMessages(arm.model, arm.version, arm.name, arm.signature)
            self._answers[arm] = found
        return found

    # Everything else.

    def _simple(self, name: str, do: Callable[[Message], Awaitable[Message]]) -> OnMessage:
        """Return who answers a call that is not in a hurry."""
        kind = self._messages[f"{name}Request"]

        async def answer(call: Call, raw: bytes) -> None:
            try:
                request = self._read(kind, raw)
                model = getattr(request, "model_name", None) or getattr(request, "name", None)
                admission = self._doorman.admit(call, model or None)
                if admission is not None:
                    await admission
                deadline = call.deadline
                loop = asyncio.get_running_loop()
                at = None if deadline is None else loop.time() + deadline - call.arrived
                async with asyncio.timeout_at(at):
                    response = await do(request)
                call.respond(response.SerializeToString())
            except Exception as exc:  # noqa: BLE001 (becomes the answer)
                self._fail(call, exc)

        def on_message(call: Call, raw: bytes) -> None:
            call.on_gone = self._spawn(answer(call, raw)).cancel

        return on_message

    async def _server_live(self, _: Message) -> Message:
        return self._messages["ServerLiveResponse"](live=True)

    async def _server_ready(self, _: Message) -> Message:
        return self._messages["ServerReadyResponse"](ready=self._service.is_ready)

    async def _server_metadata(self, _: Message) -> Message:
        kind = self._messages["ServerMetadataResponse"]
        return kind(name="fairlead", version=__version__, extensions=_EXTENSIONS)

    async def _model_ready(self, request: Message) -> Message:
        is_ready = self._repository.is_ready(request.name or None, request.version or None)
        kind = self._messages["ModelReadyResponse"]
        return kind(ready=is_ready and not self._service.is_draining)

    async def _model_metadata(self, request: Message) -> Message:
        name = request.name or self._repository.default_name
        version = request.version or None
        bundle = self._repository.bundle(name, version)
        signature = free_signature(bundle.signature)
        versions = (version,) if version else self._repository.versions(name)
        found = self._messages["ModelMetadataResponse"](
            name=name,
            versions=versions,
            platform=platform_of(bundle.manifest.kind),
        )
        _describe(found.inputs, signature.inputs)
        _describe(found.outputs, signature.outputs)
        return found

    async def _model_config(self, request: Message) -> Message:
        name, version = request.name or None, request.version or None
        plane = await self._repository.obtain(name, version)
        document = configuration_of(
            plane.choose_arm(version) if version else plane.baseline,
            version_policy=self._repository.version_policy,
            n_workers=self._service.bus.n_workers,
            has_cache=plane.cache is not None,
        )
        return _filled(self._messages["ModelConfigResponse"](), {"config": document})

    async def _model_statistics(self, request: Message) -> Message:
        guard = self._service.guard
        if not request.name and guard is not None and not guard.is_open:
            raise DataError("the call names no model", hint="set name")
        body = {"model": request.name or None, "version": request.version or None}
        document = await self._service.bus.ask("statistics.read", body)
        return _filled(self._messages["ModelStatisticsResponse"](), document)

    async def _repository_index(self, request: Message) -> Message:
        found = self._messages["RepositoryIndexResponse"]()
        # As in the protocol: false, the default, asks for all models.
        for state in self._repository.index(request.ready or None):
            found.models.add(**state._asdict())
        return found

    async def _repository_load(self, request: Message) -> Message:
        await self._change("repository.load", request)
        return self._messages["RepositoryModelLoadResponse"]()

    async def _repository_unload(self, request: Message) -> Message:
        await self._change("repository.unload", request)
        return self._messages["RepositoryModelUnloadResponse"]()

    async def _change(self, op: str, request: Message) -> None:
        # Older clients of the protocol have the name in the first field.
        name = request.model_name or request.repository_name
        if not name:
            raise DataError("the model has no name", hint="set model_name")
        body = {"name": name, "parameters": parameters_of(request.parameters)}
        await self._service.bus.broadcast(op, body, keep=f"repository/{name}")

    def _read(self, kind: type[Message], raw: bytes) -> Message:
        from google.protobuf.message import DecodeError

        try:
            return kind.FromString(raw)
        except DecodeError as exc:
            raise DataError(
                f"this is no {kind.DESCRIPTOR.name}: {exc}",
                hint="check that client and server speak the same protocol",
            ) from exc

    def _reject(self, call: Call, error: Exception) -> None:
        self._count(error)
        self._fail(call, error)

    def _count(self, error: Exception) -> None:
        if self._service.metrics is not None:
            self._service.metrics.count_rejected(status_of(error))

    def _fail(self, call: Call, error: Exception) -> None:
        if status_of(error) == 500:
            _log.error("a call of %s failed", call.head.path, exc_info=error)
        wait_s = None
        if isinstance(error, OverloadedError | RateLimitedError):
            wait_s = error.retry_after_s
        call.fail(error, retry_after_s=wait_s)


def _model_of(request: Message) -> tuple[str | None, str | None]:
    return request.model_name or None, request.model_version or None


def _filled(message: Message, document: dict[str, Any]) -> Message:
    """Return a message with what its form in JSON says."""
    from google.protobuf.json_format import ParseDict

    return ParseDict(document, message)


def _describe(tensors: Message, specs: tuple[TensorSpec, ...]) -> None:
    for spec in specs:
        tensors.add(name=spec.name, datatype=datatype_of(spec.dtype), shape=spec.shape)
