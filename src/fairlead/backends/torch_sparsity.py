"""Zeros in the weights of torch modules: anywhere, or N of M neighbours."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

__all__ = ["keep_zeros", "sparsity_of", "zero_masks"]

_SMALLEST = 64


def zero_masks(module: Any, ratio: float, *, pattern: str) -> dict[str, Any]:  # noqa: ANN401
    """Choose the weights of matrices and convolutions that become zero, by magnitude.

    Args:
        module: The module.
        ratio: Share of the weights that become zero, over all layers; with a pattern, ignored.
        pattern: `unstructured`, or `N:M`: of M neighbours along the inputs the N largest stay.

    Returns:
        Name of the parameter → mask of what stays, bool.
    """
    torch = importlib.import_module("torch")
    weights = {
        name: p.detach()
        for name, p in module.named_parameters()
        if p.ndim >= 2 and p.numel() >= _SMALLEST
    }
    if pattern != "unstructured":
        n_kept, of = map(int, pattern.split(":"))
        return {
            name: _of_neighbours(w, n_kept, of)
            for name, w in weights.items()
            if w[0].numel() % of == 0
        }
    if not weights:
        return {}
    flat = torch.cat([w.abs().flatten() for w in weights.values()])
    n_zero = int(ratio * flat.numel())
    limit = flat.kthvalue(n_zero).values if n_zero else -1.0
    return {name: w.abs() > limit for name, w in weights.items()}


def _of_neighbours(weight: Any, n_kept: int, of: int) -> Any:  # noqa: ANN401
    torch = importlib.import_module("torch")
    groups = weight.abs().reshape(-1, of)
    best = groups.topk(n_kept, dim=1).indices
    mask = torch.zeros_like(groups, dtype=torch.bool).scatter_(1, best, value=True)
    return mask.reshape(weight.shape)


def keep_zeros(module: Any, masks: dict[str, Any]) -> Callable[[], None]:  # noqa: ANN401
    """Return what puts the zeros back after every step of training."""
    torch = importlib.import_module("torch")

    def put_back() -> None:
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                if name in masks:
                    parameter.mul_(masks[name].to(parameter.device))

    return put_back


def sparsity_of(module: Any) -> float:  # noqa: ANN401
    """Return the share of zeros among the weights of matrices and convolutions."""
    weights = [p for p in module.parameters() if p.ndim >= 2]
    total = sum(p.numel() for p in weights)
    zeros = sum(int((p == 0).sum()) for p in weights)
    return float(zeros / max(total, 1))
