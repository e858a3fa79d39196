"""Cuts through torch modules: channels with all that depends on them, layers, heads.

What was cut is written down as text, so that the same module can be cut the same way again and
filled with the weights of a checkpoint, without a pickle.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterable
from typing import Any

from fairlead.backends.torch_heads import drop_heads
from fairlead.backends.torch_material import Batch, as_tensors
from fairlead.core.errors import ModelError
from fairlead.core.extras import requires

__all__ = [
    "count_work",
    "drop_blocks",
    "find_blocks",
    "prune_channels",
    "restore_structure",
    "structure_of",
]

_SIZES = (
    "in_channels",
    "out_channels",
    "in_features",
    "out_features",
    "num_features",
    "groups",
    "normalized_shape",
    "embed_dim",
    "kdim",
    "vdim",
    "head_dim",
    "num_heads",
    "num_attention_heads",
    "n_heads",
    "attention_head_size",
    "all_head_size",
    "hidden_size",
    "input_size",
    "num_parameters",
    "num_channels",
)
_PRUNING = "structured pruning"


def count_work(module: Any, example: tuple[Any, ...]) -> tuple[int, int]:  # noqa: ANN401
    """Return multiplications per row, as far as layers are known, and parameters."""
    torch = importlib.import_module("torch")
    counts = [0]

    def count(layer: Any, _inputs: Any, out: Any) -> None:  # noqa: ANN401
        weight = getattr(layer, "weight", None)
        if weight is None or weight.ndim < 2 or not hasattr(out, "numel"):
            return
        per_output = weight[0].numel()
        counts[0] += out.numel() // max(len(out), 1) * per_output

    kinds = (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d, torch.nn.Linear)
    hooks = [m.register_forward_hook(count) for m in module.modules() if isinstance(m, kinds)]
    try:
        with torch.no_grad():
            module(*example)
    finally:
        for hook in hooks:
            hook.remove()
    return counts[0], sum(p.numel() for p in module.parameters())


def prune_channels(
    module: Any,  # noqa: ANN401 (untyped library)
    example: tuple[Any, ...],
    ratio: float,
    *,
    importance: str,
    is_global: bool,
    round_to: int,
    batches: Iterable[Batch],
    loss: Callable[[tuple[Any, ...], Any, Any], Any],
) -> int:
    """Remove channels from all layers that allow it, in place, with what depends on them.

    Dependencies are found by Torch-Pruning (Fang et al., DepGraph, CVPR 2023); layers that give
    the module's outputs keep their channels.

    Args:
        module: The module.
        example: Inputs of two rows.
        ratio: Share of the channels to remove, of those that are there.
        importance: `taylor`, `magnitude`, `bn-scale` or `random`.
        is_global: Whether layers compete.
        round_to: Channels left are a multiple of this.
        batches: A few batches, for `taylor`.
        loss: Inputs, targets and module → loss, for `taylor`.

    Returns:
        Channels that were removed.

    Raises:
        ModelError: The module cannot be traced, or has no channel that may go.
        MissingExtraError: torch-pruning is not installed.
    """
    with requires("torch", needed_by=_PRUNING):
        tp = importlib.import_module("torch_pruning")
    module.train(mode=False)
    before = _shapes_of_outputs(module, example)
    n_before = _channels(module)
    for parameter in module.parameters():
        parameter.requires_grad_(True)
    try:
        ignored = _output_layers(module, example)
        pruner = tp.pruner.BasePruner(
            module,
            example,
            importance=_importance(tp, importance),
            pruning_ratio=ratio,
            global_pruning=is_global,
            max_pruning_ratio=min(0.95, 1.5 * ratio) if is_global else 1.0,
            round_to=round_to,
            ignored_layers=ignored,
            num_heads=_heads_of(module),
            prune_head_dims=False,
        )
        if importance == "taylor":
            module.zero_grad(set_to_none=True)
            for inputs, targets in batches:
                loss(inputs, targets, module).backward()
        pruner.step()
        module.zero_grad(set_to_none=True)
        after = _shapes_of_outputs(module, example)
    except Exception as exc:
        raise ModelError(
            f"the module cannot be pruned: {type(exc).__name__}: {exc}".splitlines()[0][:300],
            hint="layers must be called as modules, without shapes written into forward()",
        ) from exc
    if after != before:
        raise ModelError(
            f"pruning would change the outputs from {before} to {after}",
            hint="let the outputs come from a layer of their own",
        )
    return n_before - _channels(module)


def _importance(tp: Any, name: str) -> Any:  # noqa: ANN401 (untyped library)
    kinds = tp.importance
    return {
        "taylor": kinds.GroupTaylorImportance,
        "magnitude": kinds.GroupMagnitudeImportance,
        "bn-scale": kinds.BNScaleImportance,
        "random": kinds.RandomImportance,
    }[name]()


def _channels(module: Any) -> int:  # noqa: ANN401
    return sum(len(p) for p in module.parameters() if p.ndim >= 2)


def _shapes_of_outputs(module: Any, example: tuple[Any, ...]) -> list[tuple[int, ...]]:  # noqa: ANN401
    torch = importlib.import_module("torch")
    with torch.no_grad():
        return [tuple(tensor.shape) for tensor in as_tensors(module(*example))]


def _heads_of(module: Any) -> dict[Any, int]:  # noqa: ANN401
    torch = importlib.import_module("torch")
    return {
        layer: layer.num_heads
        for layer in module.modules()
        if isinstance(layer, torch.nn.MultiheadAttention)
    }


def _output_layers(module: Any, example: tuple[Any, ...]) -> list[Any]:  # noqa: ANN401
    """Return the layers nearest to the outputs: their channels are what the module gives."""
    owners = {id(p): m for m in module.modules() for p in m.parameters(recurse=False)}
    outputs = as_tensors(module(*example))
    found: list[Any] = []
    queue, seen = [t.grad_fn for t in outputs if t.grad_fn is not None], set[int]()
    while queue:
        node = queue.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        children = [child for child, _ in node.next_functions if child is not None]
        own = [owners.get(id(v)) for c in children for v in _variables(c)]
        named = [owner for owner in own if owner is not None]
        found += named
        # Behind a layer of its own the channels of the output end; a residual sum goes on.
        if not named:
            queue += children
    return list(dict.fromkeys(found))


def _variables(node: Any) -> list[Any]:  # noqa: ANN401
    """Return the parameter behind a node of the gradient graph, if it is next to it."""
    if hasattr(node, "variable"):
        return [node.variable]
    if type(node).__name__ in {"TBackward0", "TransposeBackward0"}:
        return [c.variable for c, _ in node.next_functions if hasattr(c, "variable")]
    return []


def find_blocks(module: Any) -> tuple[str, Any] | None:  # noqa: ANN401 (untyped library)
    """Return the longest list of alike blocks, as an encoder has it: its name and the list.

    Blocks are alike when they are of one type and their parameters have the same shapes.
    """
    torch = importlib.import_module("torch")
    best: tuple[str, Any] | None = None
    for name, part in module.named_modules():
        if not isinstance(part, torch.nn.ModuleList | torch.nn.Sequential) or len(part) < 2:
            continue
        kinds = {(type(b), tuple(p.shape for p in b.parameters())) for b in part}
        has_weights = any(True for _ in part[0].parameters())
        if len(kinds) == 1 and has_weights and (best is None or len(part) > len(best[1])):
            best = (name, part)
    return best


def drop_blocks(module: Any, path: str, kept: list[int]) -> None:  # noqa: ANN401
    """Keep only some blocks of a list, in place.

    Args:
        module: The module.
        path: Name of the list in it.
        kept: Places of the blocks that stay.
    """
    parent_name, _, name = path.rpartition(".")
    parent = module.get_submodule(parent_name)
    old = module.get_submodule(path)
    setattr(parent, name, type(old)(*[old[i] for i in kept]) if _is_sequential(old)
            else type(old)([old[i] for i in kept]))  # fmt: skip
    for owner in module.modules():
        if getattr(owner, "num_layers", None) == len(old):
            owner.num_layers = len(kept)
    config: Any = getattr(module, "config", None)
    if getattr(config, "num_hidden_layers", None) == len(old):
        config.num_hidden_layers = len(kept)


def _is_sequential(part: Any) -> bool:  # noqa: ANN401
    torch = importlib.import_module("torch")
    return isinstance(part, torch.nn.Sequential)


def structure_of(module: Any, cuts: Iterable[tuple[str, str, list[int]]] = ()) -> str:  # noqa: ANN401
    """Return what rebuilds the shape of a module, as JSON.

    Args:
        module: The module after its cuts.
        cuts: What was thinned out, in order: (`blocks` or `heads`, name, places that stay).
    """
    sizes = {}
    for name, part in module.named_modules():
        found = {
            key: list(value) if isinstance(value, tuple) else value
            for key in _SIZES
            if isinstance(value := part.__dict__.get(key), int | tuple)
        }
        if found:
            sizes[name] = found
    return json.dumps({"cuts": list(cuts), "sizes": sizes})


def restore_structure(module: Any, structure: str, state: dict[str, Any]) -> None:  # noqa: ANN401
    """Cut a fresh module as another one was cut, and fill it with weights, in place.

    Args:
        module: As the factory makes it.
        structure: From `structure_of`.
        state: Name → tensor of the other module.
    """
    torch = importlib.import_module("torch")
    document = json.loads(structure)
    for kind, path, kept in document["cuts"]:
        (drop_blocks if kind == "blocks" else drop_heads)(module, path, kept)
    parts = dict(module.named_modules())
    for name, sizes in document["sizes"].items():
        for key, value in sizes.items():
            setattr(parts[name], key, tuple(value) if isinstance(value, list) else value)
    for name, tensor in state.items():
        owner, _, key = name.rpartition(".")
        part = parts[owner]
        if key in part._parameters:
            part._parameters[key] = torch.nn.Parameter(tensor.clone())
        else:
            part._buffers[key] = tensor.clone()
