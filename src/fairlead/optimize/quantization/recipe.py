"""One quantized version of a model, and how to make it again with some layers left in float."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from fairlead.core.bundle import RuntimeSettings

__all__ = ["Recipe"]


@dataclass(frozen=True)
class Recipe:
    """One quantized version of a model.

    Attributes:
        method: Id of the method that made it.
        name: What was quantized, for people.
        model: The quantized model.
        runtime: Settings it runs with, when they are not those of the original.
        n_weights: Weights that are stored in fewer bits.
        layers: Layers that compute in 8 bits, by name; empty where layers cannot be chosen.
        rebuild: Layers to leave in float → model; None where layers cannot be chosen.
        simulate: Makes a graph in which an extra input turns every layer on or off.
    """

    method: str
    name: str
    model: bytes = field(repr=False)
    n_weights: int
    runtime: RuntimeSettings | None = None
    layers: tuple[str, ...] = ()
    rebuild: Callable[[frozenset[str]], bytes] | None = field(default=None, repr=False)
    simulate: Callable[[], Any] | None = field(default=None, repr=False)

    @property
    def title(self) -> str:
        """Method and runtime, unique among the recipes of one search."""
        if self.runtime is None:
            return f"{self.method} ({self.name})"
        runs_on = self.runtime.execution_provider.removesuffix("ExecutionProvider")
        precision = self.runtime.float_precision
        rest = "" if precision == "fp32" else f", {precision}"
        return f"{self.method} ({self.name}) on {runs_on}{rest}"
