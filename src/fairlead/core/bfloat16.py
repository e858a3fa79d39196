"""bfloat16 without a library: numpy has no such dtype, so arrays hold the bits as uint16.

A bfloat16 is the upper half of a float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["BFLOAT16", "bits_of", "numbers_of"]

BFLOAT16 = "bfloat16"
"""The dtype of a tensor whose arrays hold bits of bfloat16 numbers."""


def numbers_of(bits: NDArray[Any]) -> NDArray[np.float32]:
    """Return the numbers that bits stand for."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def bits_of(numbers: NDArray[Any]) -> NDArray[np.uint16]:
    """Round numbers to the nearest bfloat16, to the even one between two; return the bits."""
    with np.errstate(over="ignore"):
        narrow = np.ascontiguousarray(numbers, np.float32)
    bits = narrow.view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(narrow), 0x7FC0, rounded).astype(np.uint16).reshape(numbers.shape)
