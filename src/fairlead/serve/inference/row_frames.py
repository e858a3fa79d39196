"""Answers to requests that ran together, written together: one look at the numbers of them all."""

from __future__ import annotations

import orjson

from fairlead.core.ports import Array
from fairlead.core.signature import STRING, Signature
from fairlead.serve.inference.answer_frames import AnswerFrames
from fairlead.serve.inference.openinference import InferMessage
from fairlead.serve.inference.served import ServedTogether

__all__ = ["RowFrames"]

_MAX_FORMS = 64
_ALL_AS_JSON = InferMessage("", {}, {}, False)


class RowFrames(AnswerFrames):
    """Writes the answers of one version of a model, also many at once."""

    def __init__(self, model: str, version: str, signature: Signature) -> None:
        """Write down what does not change; see `AnswerFrames`."""
        super().__init__(model, version, signature)
        self._has_texts = any(spec.dtype in {STRING, "bfloat16"} for spec in signature.outputs)
        self._forms: dict[tuple[tuple[int, ...], ...], bytes] = {}

    def write_all(self, served: ServedTogether) -> list[bytes]:
        """Write the answers to requests that ran together and want all outputs, as JSON."""
        is_plain = served.batch_rows == len(served.ids) and not served.parts_ms
        rows = self._single_rows(served) if is_plain and not self._has_texts else None
        if rows is None:
            return self._write_each(served)
        key = tuple([served.outputs[name].shape[1:] for name in self._names])
        form = self._forms.get(key)
        if form is None:
            form = self._form(served.outputs)
            if len(self._forms) < _MAX_FORMS:
                self._forms[key] = form
        return [form % row for row in zip(map(orjson.dumps, served.ids), *rows, strict=True)]

    def _write_each(self, served: ServedTogether) -> list[bytes]:
        bodies = []
        start = 0
        for request_id, n_rows in zip(served.ids, served.n_rows, strict=True):
            end = start + n_rows
            share = {name: array[start:end] for name, array in served.outputs.items()}
            bodies.append(self.write(_ALL_AS_JSON, request_id, share, served.parts_ms)[0])
            start = end
        return bodies

    def _single_rows(self, served: ServedTogether) -> list[list[bytes]] | None:
        """Return for each output the numbers of each row as JSON, or None where they are none."""
        found = []
        for name in self._names:
            array = served.outputs[name]
            depth = array.ndim
            if depth not in (1, 2) or len(array) != served.batch_rows:
                return None
            try:
                text = orjson.dumps(array, option=orjson.OPT_SERIALIZE_NUMPY)
            except orjson.JSONEncodeError:  # memory that is laid out otherwise
                return None
            found.append(text[depth:-depth].split(b"," if depth == 1 else b"],["))
        return found

    def _form(self, outputs: dict[str, Array]) -> bytes:
        """Return an answer of one row with `%b` in the place of its id and of all numbers."""
        frames = [self._frame(name, outputs[name][:1]).replace(b"%", b"%%") for name in self._names]
        middle = self._middle.replace(b"%", b"%%")
        return b'{"id":%%b%b%b[%%b]}]}' % (middle, b"[%b]},".join(frames))
