"""Zeros among the weights, kept through training: N of M neighbours, or anywhere.

By magnitude (Zhu & Gupta, 2017; 2:4: Mishra et al., 2021). Dense CPU kernels multiply zeros like
other numbers, so nothing gets faster here; compressed files get smaller, and GPUs with sparse
tensor cores run 2:4 faster after a conversion of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from fairlead.backends.torch_sparsity import keep_zeros, zero_masks
from fairlead.core.errors import ModelError
from fairlead.optimize.compression.bench import Bench, Found
from fairlead.optimize.compression.stages import Cut, in_stages, material_of

__all__ = ["sparsity"]

METHOD = "sparsity"
_PLAIN = (
    "zeros do not make dense CPU kernels faster and the file has as many bytes as before: what "
    "shrinks is its compressed size, and time only on hardware with sparse kernels"
)


def sparsity(bench: Bench) -> Found:
    """Put zeros into the weights while training wins the quality back.

    Raises:
        ConfigError: No module was given.
    """
    material_of(bench, METHOD)
    config = bench.config
    if config.pattern != "unstructured":
        cut = Cut(
            f"{config.pattern} sparsity",
            partial(_cut, config.pattern, 0.0),
            after_step=_put_back,
            is_asked=True,
            notes=(_PLAIN,),
        )
        return in_stages(bench, METHOD, [cut])
    ratios = [config.max_ratio * k / config.stages for k in range(1, config.stages + 1)]
    cuts = [
        Cut(
            f"{ratio:.0%} of the weights are zero",
            partial(_cut, config.pattern, ratio),
            after_step=_put_back,
            is_asked=True,
            notes=(_PLAIN,),
        )
        for ratio in ratios
    ]
    return in_stages(bench, METHOD, cuts)


def _cut(pattern: str, ratio: float, module: Any) -> Sequence[tuple[str, str, list[int]]]:  # noqa: ANN401
    masks = zero_masks(module, ratio, pattern=pattern)
    if not masks:
        raise ModelError(
            f"none of its weights can hold the pattern {pattern}",
            hint="use --set pattern=unstructured",
        )
    keep_zeros(module, masks)()
    return ()


def _put_back(module: Any) -> Callable[[], None]:  # noqa: ANN401
    """Keep zero what is zero now; a checkpoint brings its zeros along."""
    masks = {name: p.detach() != 0 for name, p in module.named_parameters() if p.ndim >= 2}
    return keep_zeros(module, masks)
