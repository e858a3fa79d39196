"""Requests that were read before, but for their id and their numbers.

Clients of a model send the same message again and again. What stands around the id and the raw
contents of a request is remembered once it was read with all care, and only after trials have shown
that another id and other contents of the same length change nothing else: protobuf is read from
the front to the back, so what follows the same bytes means the same.
"""

from __future__ import annotations

from typing import NamedTuple
from weakref import ReferenceType, ref

from fairlead.core.errors import FairleadError
from fairlead.serve.inference.arms import Arm
from fairlead.serve.inference.grpc.messages import InferCall, bytes_field, plain_dtype
from fairlead.serve.inference.grpc.schema import Message

__all__ = ["KnownMessage", "KnownMessages"]

_MAX_KNOWN = 8
_MAX_FRAME_BYTES = 1024
_ID_TAG = 0x1A
_SHORT = 0x80
"""Sizes below it are one byte in protobuf."""
_TRIAL_IDS = ("", "a", "trial")
_UNLEARNED = 15
"""After a message that was new, so many others are only read before the next one is learned."""


class KnownMessage(NamedTuple):
    """What stands around the id and the numbers of a request.

    Attributes:
        before: The bytes before the id.
        behind: The bytes between the id and the raw contents.
        n_bytes: Bytes of the raw contents.
        n_rows: Rows of the request.
        model: The model it names, or None.
        version: The version it names, or None.
        outputs: The outputs it asks for, or None for all.
        arm: The arm whose signature it was checked against.
    """

    before: bytes
    behind: bytes
    n_bytes: int
    n_rows: int
    model: str | None
    version: str | None
    outputs: tuple[str, ...] | None
    arm: ReferenceType[Arm]

    def read(self, raw: bytes) -> tuple[str, bytes] | None:
        """Return the id and the raw contents of a message like this one; else None."""
        start = len(raw) - self.n_bytes
        behind = self.behind
        at = start - len(behind)
        if at < 0 or not raw.startswith(self.before) or not raw.startswith(behind, at):
            return None
        first = len(self.before)
        if at == first:
            return "", raw[start:]
        size = at - first - 2
        if size < 0 or raw[first] != _ID_TAG or raw[first + 1] != size or size >= _SHORT:
            return None
        try:
            return raw[first + 2 : at].decode(), raw[start:]
        except UnicodeDecodeError:
            return None


class KnownMessages:
    """A bounded list of them, the one that was of use last in front."""

    def __init__(self, kind: type[Message]) -> None:
        """Know none.

        Args:
            kind: `ModelInferRequest`.
        """
        self._kind = kind
        self._known: list[KnownMessage] = []
        self._n_new = 0

    def find(self, raw: bytes) -> tuple[KnownMessage, str, bytes] | None:
        """Return what a message is like, its id and its raw contents; None where it is new."""
        for place, known in enumerate(self._known):
            found = known.read(raw)
            if found is not None:
                if place:
                    self._known.insert(0, self._known.pop(place))
                return known, *found
        return None

    def learn(self, raw: bytes, request: Message, asked: InferCall, arm: Arm) -> None:
        """Remember a message that an arm takes, if it is one of which nothing else changes."""
        self._n_new += 1
        if self._n_new & _UNLEARNED != 1 or not asked.is_raw or asked.parameters:
            return
        known = self._known_of(raw, request, asked, arm)
        if known is not None and self._is_alike(known, request):
            self._known = [known, *self._known][:_MAX_KNOWN]

    def forget(self, known: KnownMessage) -> None:
        """Forget what an arm took that is no longer there."""
        self._known = [other for other in self._known if other is not known]

    def _known_of(
        self, raw: bytes, request: Message, asked: InferCall, arm: Arm
    ) -> KnownMessage | None:
        signature = arm.signature
        if len(asked.feeds) != 1 or len(signature.inputs) != 1:
            return None
        (array,) = asked.feeds.values()
        spec = signature.inputs[0]
        if plain_dtype(request.inputs[0].datatype) != spec.numpy_dtype or -1 in spec.shape[1:]:
            return None
        try:
            _, n_rows = arm.intake.check(asked.feeds)
        except FairleadError:
            return None
        n_bytes = array.nbytes
        # The bytes before the id: the model's name and version, as every client writes them first.
        named = self._kind(model_name=request.model_name, model_version=request.model_version)
        before = bytes(named.SerializeToString())
        behind = raw[len(before) : len(raw) - n_bytes].removeprefix(
            bytes_field(_ID_TAG, request.id.encode()) if request.id else b""
        )
        if not n_bytes or len(before) + len(behind) > _MAX_FRAME_BYTES:
            return None
        return KnownMessage(
            before,
            behind,
            n_bytes,
            n_rows,
            request.model_name or None,
            request.model_version or None,
            asked.outputs,
            ref(arm),
        )

    def _is_alike(self, known: KnownMessage, request: Message) -> bool:
        """Try whether other ids and contents change the message in these and in nothing else."""
        from google.protobuf.message import DecodeError

        expected = self._kind()
        expected.CopyFrom(request)
        for number, request_id in enumerate(_TRIAL_IDS):
            contents = bytes([number + 1]) * known.n_bytes
            expected.id = request_id
            expected.raw_input_contents[0] = contents
            field = bytes_field(_ID_TAG, request_id.encode()) if request_id else b""
            try:
                found = self._kind.FromString(known.before + field + known.behind + contents)
            except DecodeError:
                return False
            if found != expected or len(found.raw_input_contents) != 1:
                return False
        return True
