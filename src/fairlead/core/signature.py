"""Names, dtypes and shapes of what a model takes and gives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fairlead.core.bfloat16 import BFLOAT16, bits_of, numbers_of
from fairlead.core.errors import SignatureError
from fairlead.core.values import Value

if TYPE_CHECKING:
    Array = NDArray[np.generic]

__all__ = ["STRING", "Signature", "TensorSpec", "conform"]

STRING = "string"
"""The dtype of text tensors; arrays of it have numpy dtype `object` and hold `str`."""

_KINDS = {
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
    "float16", "float32", "float64", "bfloat16", STRING,
}  # fmt: skip


class TensorSpec(Value):
    """One named tensor.

    `dtype` is a numpy name (`float32`) or `string`; `shape` uses -1 for a free dimension, the
    batch dimension first.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        """The dtype of arrays that hold this tensor; `object` for strings."""
        if self.dtype == STRING:
            return np.dtype(object)
        if self.dtype == BFLOAT16:
            return np.dtype(np.uint16)
        return np.dtype(self.dtype)

    def numbers(self, array: Array) -> Array:
        """Return what an array of this tensor stands for; bits of bfloat16 become numbers."""
        is_bits = self.dtype == BFLOAT16 and array.dtype == np.uint16
        return numbers_of(array) if is_bits else array

    @property
    def has_free_batch(self) -> bool:
        """Whether the first dimension may have any length."""
        return bool(self.shape) and self.shape[0] == -1

    def __str__(self) -> str:
        dims = ", ".join("?" if size == -1 else str(size) for size in self.shape)
        return f"{self.name}: {self.dtype}[{dims}]"


class Signature(Value):
    """The inputs and outputs of a model, in order."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def input(self, name: str) -> TensorSpec:
        """Return the input of that name.

        Raises:
            SignatureError: There is none; the message lists the ones there are.
        """
        return _by_name(self.inputs, name, "input")

    def output(self, name: str) -> TensorSpec:
        """Return the output of that name.

        Raises:
            SignatureError: There is none; the message lists the ones there are.
        """
        return _by_name(self.outputs, name, "output")

    def output_numbers(self, name: str, array: Array) -> Array:
        """Return what an output stands for; see `TensorSpec.numbers`."""
        return next((s.numbers(array) for s in self.outputs if s.name == name), array)


def _by_name(specs: tuple[TensorSpec, ...], name: str, what: str) -> TensorSpec:
    for spec in specs:
        if spec.name == name:
            return spec
    known = ", ".join(f"`{spec.name}`" for spec in specs)
    raise SignatureError(
        f"the model has no {what} named `{name}`", hint=f"its {what}s are {known or 'none'}"
    )


def conform(feeds: Mapping[str, Array], signature: Signature) -> dict[str, Array]:
    """Check a batch against a signature and cast what can be cast without loss of meaning.

    Integers become floats and floats change width; text never becomes a number. For a bfloat16
    input an array of uint16 holds its bits, and every other array its numbers.

    Args:
        feeds: One array per input, first dimension the batch.
        signature: What the model takes.

    Returns:
        The same arrays in the dtypes of the signature, in its order.

    Raises:
        SignatureError: An input is missing, unknown, or of a dtype or shape that does not fit.
    """
    unknown = sorted(set(feeds) - {spec.name for spec in signature.inputs})
    if unknown:
        _by_name(signature.inputs, unknown[0], "input")
    ready: dict[str, Array] = {}
    for spec in signature.inputs:
        if spec.name not in feeds:
            raise SignatureError(
                f"input `{spec.name}` is missing; found {sorted(feeds) or 'nothing'}",
                hint=f"send {spec}",
            )
        ready[spec.name] = _conform_one(feeds[spec.name], spec)
    _check_batch(ready, signature)
    return ready


def _conform_one(array: Array, spec: TensorSpec) -> Array:
    if array.ndim != len(spec.shape) or any(
        want not in (-1, got) for want, got in zip(spec.shape, array.shape, strict=False)
    ):
        raise SignatureError(
            f"input `{spec.name}` has shape {list(array.shape)}, expected {spec}",
            hint="reshape the rows, or check that the columns are the ones the model was made for",
        )
    want = spec.numpy_dtype
    if array.dtype == want:
        return array
    if spec.dtype == BFLOAT16 and array.dtype.name == BFLOAT16:  # of the library `ml_dtypes`
        return array.view(np.uint16)
    if spec.dtype == BFLOAT16 and array.dtype.kind in "biuf":
        return bits_of(array)
    if _is_castable(array, want):
        return array.astype(want)
    raise SignatureError(
        f"input `{spec.name}` has dtype {array.dtype}, expected {spec.dtype}",
        hint=f"convert the values to {spec.dtype} before you send them",
    )


def _is_castable(array: Array, want: np.dtype[Any]) -> bool:
    if want.kind == "O":
        return array.dtype.kind in "OUS"
    if array.dtype.kind not in "biuf":
        return False
    if array.dtype.kind == "f" and want.kind in "iub":
        values = array.astype(np.float64)
        return want.kind != "b" and bool(np.all(values == np.round(values)))
    return True


def _check_batch(ready: Mapping[str, Array], signature: Signature) -> None:
    sizes = {
        spec.name: ready[spec.name].shape[0] for spec in signature.inputs if spec.has_free_batch
    }
    if len(set(sizes.values())) > 1:
        raise SignatureError(
            f"inputs have different numbers of rows: {sizes}",
            hint="send the same number of rows for every input",
        )
