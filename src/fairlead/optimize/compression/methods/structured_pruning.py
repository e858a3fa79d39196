"""Channels removed with all that depends on them, in several cuts, each followed by training.

Iterative structured pruning over a dependency graph (Fang et al., DepGraph, CVPR 2023), the
original as the teacher. It stops where the budget breaks, and hands back the last cut before.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import islice
from typing import Any

from fairlead.backends.torch_structure import prune_channels
from fairlead.backends.torch_training import loss_of
from fairlead.core.errors import ModelError
from fairlead.optimize.compression.bench import Bench, Found
from fairlead.optimize.compression.stages import Cut, in_stages, material_of

__all__ = ["channel_cuts", "structured_pruning"]

METHOD = "structured-pruning"
_TAYLOR_BATCHES = 8


def structured_pruning(bench: Bench) -> Found:
    """Remove ever more channels while training wins the quality back.

    Raises:
        ConfigError: No module was given.
        MissingExtraError: torch-pruning is not installed.
    """
    return in_stages(bench, METHOD, channel_cuts(bench, METHOD))


def channel_cuts(bench: Bench, method: str) -> list[Cut]:
    """Return the stages: the share of channels removed grows evenly up to `max_ratio`."""
    material_of(bench, method)
    stages, largest = bench.config.stages, bench.config.max_ratio
    cuts, before = [], 0.0
    for number in range(1, stages + 1):
        # The first cut is the largest: what half the channels cost, training wins back.
        ratio = largest * (number + 1) / (stages + 1)
        step = 1 - (1 - ratio) / (1 - before)
        name = f"{ratio:.0%} of the channels removed"
        cuts.append(Cut(name, partial(_cut, bench, method, step)))
        before = ratio
    return cuts


def _cut(
    bench: Bench,
    method: str,
    ratio: float,
    module: Any,  # noqa: ANN401
) -> Sequence[tuple[str, str, list[int]]]:
    material, config = material_of(bench, method), bench.config
    cpu = _on_cpu(material)
    removed = 0
    # Few channels, rounded down, would be none: then they are not rounded.
    for round_to in dict.fromkeys((config.round_to, 1)):
        removed = removed or prune_channels(
            module,
            material.example(),
            ratio,
            importance=config.importance,
            is_global=config.is_global,
            round_to=round_to,
            batches=islice(material.batches(), _TAYLOR_BATCHES),
            loss=lambda inputs, targets, one: loss_of(cpu, inputs, targets, one),
        )
    if not removed:
        raise ModelError(
            "no channel of it may go: every layer is tied to its inputs or outputs, or too small",
            hint="use distillation into a student of your own (--student), or low-rank",
        )
    return ()


def _on_cpu(material: Any) -> Any:  # noqa: ANN401
    from dataclasses import replace

    return replace(material, device="cpu")
