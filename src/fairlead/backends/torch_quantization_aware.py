"""Quantization-aware training: the module computes with 8-bit values while it learns.

Weights pass through int8 with one scale per output channel, what flows into a layer through
uint8 with a range that follows a moving average; gradients pass straight through both (Jacob et
al., CVPR 2018). The numbers are those of the QDQ pairs that are written afterwards.
"""

from __future__ import annotations

import importlib
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

__all__ = ["FakeQuantized", "fold_batch_norms"]

Untyped = Any
"""Something of torch, which has no types."""

_MOMENTUM = 0.05
_TINY = 1e-12


def fold_batch_norms(module: Untyped) -> Untyped:
    """Return a module whose BatchNorms are part of the convolutions before them.

    A module that cannot be traced is returned as it is.
    """
    optimization = importlib.import_module("torch.fx.experimental.optimization")
    with suppress(Exception):  # fx traces what it can; control flow it cannot
        return optimization.fuse(module.eval())
    return module


@dataclass
class FakeQuantized:
    """A module under quantization-aware training.

    Attributes:
        module: The module; its layers compute in 8 bits until `release`.
        ranges: Name of a layer → (low, high) of what flows into it.
    """

    module: Untyped
    ranges: dict[str, tuple[float, float]] = field(default_factory=dict)
    _hooks: list[Untyped] = field(default_factory=list, repr=False)
    _layers: dict[str, Untyped] = field(default_factory=dict, repr=False)
    _aside: dict[str, Untyped] = field(default_factory=dict, repr=False)

    @classmethod
    def wrap(cls, module: Untyped) -> FakeQuantized:
        """Let the convolutions and matrix products of a module compute in 8 bits, in place."""
        torch = importlib.import_module("torch")
        kinds = (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Linear)
        made = cls(module)
        inside_attention = {
            child for part in module.modules()
            if isinstance(part, torch.nn.MultiheadAttention) for child in part.modules()
        }  # fmt: skip
        for name, layer in module.named_modules():
            if not isinstance(layer, kinds) or layer in inside_attention:
                continue
            made._layers[name] = layer
            made._hooks.append(layer.register_forward_pre_hook(made._before(name)))
            made._hooks.append(layer.register_forward_hook(made._after(name)))
        return made

    def _before(self, name: str) -> Untyped:
        def hook(layer: Untyped, inputs: tuple[Untyped, ...]) -> tuple[Untyped, ...]:
            source = inputs[0]
            if layer.training or name not in self.ranges:
                self._follow(name, source)
            # The parameter steps aside for one call; the optimiser goes on holding it.
            self._aside[name] = layer._parameters.pop("weight")
            layer.weight = _int8(self._aside[name])
            return (_uint8(source, *self.ranges[name]), *inputs[1:])

        return hook

    def _after(self, name: str) -> Untyped:
        def hook(layer: Untyped, _inputs: Untyped, _out: Untyped) -> None:
            layer.__dict__.pop("weight", None)
            layer._parameters["weight"] = self._aside.pop(name)

        return hook

    def _follow(self, name: str, source: Untyped) -> None:
        low = min(float(source.detach().min()), 0.0)
        high = max(float(source.detach().max()), 0.0)
        before = self.ranges.get(name)
        if before is not None:
            low = before[0] + _MOMENTUM * (low - before[0])
            high = before[1] + _MOMENTUM * (high - before[1])
        self.ranges[name] = (low, high)

    def release(self) -> dict[str, tuple[float, float]]:
        """Let the module compute in float again; return weight name → range of its input."""
        for hook in self._hooks:
            hook.remove()
        return {f"{name}.weight": self.ranges[name] for name in self._layers if name in self.ranges}


def _int8(weight: Untyped) -> Untyped:
    """Round a weight to int8 with one scale per output channel; gradients pass straight."""
    torch = importlib.import_module("torch")
    scale = weight.detach().abs().flatten(1).amax(dim=1).clamp_min(_TINY) / 127.0
    zero = torch.zeros(len(scale), dtype=torch.int32, device=weight.device)
    return torch.fake_quantize_per_channel_affine(weight, scale, zero, 0, -127, 127)


def _uint8(values: Untyped, low: float, high: float) -> Untyped:
    torch = importlib.import_module("torch")
    scale = max(high - low, _TINY) / 255.0
    zero = round(min(max(-low / scale, 0), 255))
    return torch.fake_quantize_per_tensor_affine(values, scale, zero, 0, 255)
