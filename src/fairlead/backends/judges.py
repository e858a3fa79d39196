"""The judge that a metric setting names: one of ours, or a function of the user."""

from __future__ import annotations

from fairlead.backends.imports import load_attribute
from fairlead.core.bundle import Bundle
from fairlead.core.errors import ConfigError
from fairlead.measure.judging import Judge

__all__ = ["judge_for"]

_METRICS = ("auto", "cosine", "neighbours")


def judge_for(bundle: Bundle, *, metric: str, budget: float, seed: int) -> Judge:
    """Return what says the drop of quality between two versions of a bundle's model.

    Args:
        bundle: The original.
        metric: `auto`, `cosine`, `neighbours`, or `module:function`, whose naming lets it run.
        budget: Largest drop allowed, as a ratio.
        seed: Seed of bootstrap bounds.

    Raises:
        ConfigError: There is no such metric.
        NotFoundError: The function's module or name does not exist.
    """
    function = None
    if ":" in metric:
        function = load_attribute(metric)
    elif metric not in _METRICS:
        raise ConfigError(
            f"there is no metric `{metric}`",
            hint=f"choose {', '.join(_METRICS)}, or name a function as module:function",
        )
    return Judge(bundle.manifest, budget, metric, function, seed)
