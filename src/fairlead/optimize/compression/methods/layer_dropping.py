"""Whole blocks of an encoder left out: those that change what flows through them least.

Block influence is one minus the cosine between what a block is given and what it gives (Men et
al., ShortGPT, 2024). Blocks are found by structure: the longest list of alike modules.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from functools import partial
from typing import Any

from fairlead.backends.torch_material import TorchMaterial, as_tensors
from fairlead.backends.torch_structure import drop_blocks, find_blocks
from fairlead.core.errors import ModelError
from fairlead.optimize.compression.bench import Bench, Found
from fairlead.optimize.compression.stages import Cut, in_stages, material_of

__all__ = ["block_influence", "layer_dropping"]

METHOD = "layer-dropping"


def layer_dropping(bench: Bench) -> Found:
    """Leave out ever more blocks while training wins the quality back.

    Raises:
        ConfigError: No module was given.
    """
    material = material_of(bench, METHOD)
    found = find_blocks(material.module)
    if found is None:
        return Found(METHOD, reason="it has no list of alike blocks, as an encoder has it")
    n_blocks, stages = len(found[1]), bench.config.stages
    most = max(int(n_blocks * bench.config.max_ratio), 1)
    counts = sorted({max(round(most * k / stages), 1) for k in range(1, stages + 1)})
    cuts = [
        Cut(
            f"{gone} of {n_blocks} blocks left out",
            partial(_cut, material, n_blocks - gone),
        )
        for gone in counts
        if gone < n_blocks
    ]
    return in_stages(bench, METHOD, cuts)


def _cut(
    material: TorchMaterial,
    n_kept: int,
    module: Any,  # noqa: ANN401
) -> Sequence[tuple[str, str, list[int]]]:
    found = find_blocks(module)
    if found is None:
        raise ModelError("its blocks are no longer a list", hint="drop fewer layers")
    path = found[0]
    blocks = module.get_submodule(path)
    influence = block_influence(module, blocks, material.example(64))
    order = sorted(range(len(blocks)), key=lambda place: -influence[place])
    kept = sorted(order[:n_kept])
    drop_blocks(module, path, kept)
    return [("blocks", path, kept)]


def block_influence(module: Any, blocks: Any, example: tuple[Any, ...]) -> list[float]:  # noqa: ANN401
    """Return how much every block changes the direction of what flows through it, 0 to 2."""
    torch = importlib.import_module("torch")
    seen = [0.0] * len(blocks)
    hooks = []

    def watch(place: int, _block: Any, given: Any, out: Any) -> None:  # noqa: ANN401
        before, after = given[0], as_tensors(out)[0]
        if getattr(before, "shape", None) == getattr(after, "shape", ()):
            same = torch.nn.functional.cosine_similarity(
                before.flatten(1).float(), after.flatten(1).float(), dim=1
            )
            seen[place] = float(1 - same.mean())
        else:
            seen[place] = 2.0

    for place, block in enumerate(blocks):
        hooks.append(block.register_forward_hook(partial(watch, place)))
    try:
        with torch.no_grad():
            module.eval()(*example)
    finally:
        for hook in hooks:
            hook.remove()
    return seen
