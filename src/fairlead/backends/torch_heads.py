"""Attention with fewer heads: which heads matter least, and modules without them.

Found by structure: `torch.nn.MultiheadAttention`, and modules that hold three projections of one
size, as encoders of the transformers library have them.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from functools import cache
from typing import Any

__all__ = ["drop_heads", "find_attention", "head_weights"]

Tensor = Any
"""A `torch.Tensor` or a module; the library is untyped."""

_PROJECTIONS = (
    ("query", "key", "value"),
    ("q_lin", "k_lin", "v_lin"),
    ("q_proj", "k_proj", "v_proj"),
)
_COUNTS = ("num_attention_heads", "num_heads", "n_heads")
_OUT = ("out_lin", "out_proj", "o_proj")


def find_attention(module: Any) -> Iterator[tuple[str, int]]:  # noqa: ANN401 (untyped library)
    """Yield name and number of heads of every attention that can lose heads."""
    torch = importlib.import_module("torch")
    for name, part in module.named_modules():
        if isinstance(part, torch.nn.MultiheadAttention):
            if part._qkv_same_embed_dim and part.bias_k is None and not part.add_zero_attn:
                yield name, part.num_heads
        elif type(part).__name__ == "SlimAttention":
            yield name, part.num_heads
        elif _projections(part) and _out_layer(module, name) is not None:
            yield name, getattr(part, _count_name(part))


def _projections(part: Any) -> tuple[Any, ...] | None:  # noqa: ANN401
    for names in _PROJECTIONS:
        found = tuple(getattr(part, name, None) for name in names)
        if all(hasattr(item, "in_features") for item in found) and _count_name(part):
            return found
    return None


def _count_name(part: Any) -> str:  # noqa: ANN401
    return next((name for name in _COUNTS if isinstance(getattr(part, name, None), int)), "")


def _out_layer(module: Any, name: str) -> Any:  # noqa: ANN401
    """Return the projection behind the heads: in the module, or beside it."""
    part = module.get_submodule(name)
    for key in _OUT:
        if hasattr(getattr(part, key, None), "in_features"):
            return getattr(part, key)
    parent = module.get_submodule(name.rpartition(".")[0])
    return getattr(getattr(parent, "output", None), "dense", None)


def head_weights(module: Any, name: str) -> list[float]:  # noqa: ANN401
    """Return what every head of an attention can add: the norms of its values and its outlet."""
    part = module.get_submodule(name)
    heads, value, out = _value_and_out(module, name, part)
    width = value.shape[0] // heads
    rows, columns = value.detach().split(width, dim=0), out.detach().split(width, dim=1)
    return [float((c @ r).norm()) for r, c in zip(rows, columns, strict=True)]


def _value_and_out(module: Any, name: str, part: Any) -> tuple[int, Any, Any]:  # noqa: ANN401
    torch = importlib.import_module("torch")
    if isinstance(part, torch.nn.MultiheadAttention):
        return part.num_heads, part.in_proj_weight.chunk(3)[2], part.out_proj.weight
    if type(part).__name__ == "SlimAttention":
        return part.num_heads, part.value.weight, part.out.weight
    projections = _projections(part)
    assert projections is not None  # noqa: S101 (it was found by its projections)
    out = _out_layer(module, name)
    return getattr(part, _count_name(part)), projections[2].weight, out.weight


def drop_heads(module: Any, name: str, kept: list[int]) -> None:  # noqa: ANN401
    """Keep only some heads of an attention, in place."""
    torch = importlib.import_module("torch")
    part = module.get_submodule(name)
    if isinstance(part, torch.nn.MultiheadAttention):
        parent = module.get_submodule(name.rpartition(".")[0])
        part = _slim_kind()(part)
        setattr(parent, name.rpartition(".")[2], part)
    if type(part).__name__ == "SlimAttention":
        layers, out = (part.query, part.key, part.value), part.out
    else:
        layers, out = _projections(part) or (), _out_layer(module, name)
    count = _count_name(part)
    heads = getattr(part, count)
    width = layers[0].out_features // heads
    rows = torch.cat([torch.arange(h * width, (h + 1) * width) for h in kept])
    for layer in layers:
        _take(layer, rows, dim=0)
    _take(out, rows, dim=1)
    setattr(part, count, len(kept))
    for key in ("all_head_size", "dim"):
        if getattr(part, key, None) == heads * width and key != "dim":
            setattr(part, key, len(kept) * width)


def _take(layer: Any, places: Any, *, dim: int) -> None:  # noqa: ANN401
    torch = importlib.import_module("torch")
    layer.weight = torch.nn.Parameter(layer.weight.detach().index_select(dim, places))
    if dim == 0 and layer.bias is not None:
        layer.bias = torch.nn.Parameter(layer.bias.detach()[places])
    layer.out_features, layer.in_features = layer.weight.shape


@cache
def _slim_kind() -> Any:  # noqa: ANN401
    """Return the class of attention whose heads need not fill its width."""
    torch = importlib.import_module("torch")

    class SlimAttention(torch.nn.Module):  # type: ignore[misc, name-defined]
        """Multi-head attention made from torch's own, with projections as layers."""

        def __init__(self, old: Tensor) -> None:
            super().__init__()
            width = old.embed_dim
            self.num_heads, self.batch_first, self.dropout = (
                old.num_heads, old.batch_first, old.dropout,
            )  # fmt: skip
            # Encoder layers ask for these before they take their fast path, which is not for it.
            self.in_proj_bias, self._qkv_same_embed_dim = None, False
            biases = [None] * 3 if old.in_proj_bias is None else old.in_proj_bias.chunk(3)
            made = []
            for weight, bias in zip(old.in_proj_weight.chunk(3), biases, strict=True):
                layer = torch.nn.Linear(width, width, bias=bias is not None)
                layer.weight = torch.nn.Parameter(weight.detach().clone())
                if bias is not None:
                    layer.bias = torch.nn.Parameter(bias.detach().clone())
                made.append(layer)
            self.query, self.key, self.value = made
            self.out = torch.nn.Linear(width, width, bias=old.out_proj.bias is not None)
            self.out.load_state_dict(old.out_proj.state_dict())

        def forward(
            self, query: Tensor, key: Tensor, value: Tensor, key_padding_mask: Tensor = None,
            need_weights: bool = False, attn_mask: Tensor = None,
            average_attn_weights: bool = True, is_causal: bool = False,
        ) -> tuple[Tensor, None]:  # fmt: skip
            del need_weights, average_attn_weights
            if not self.batch_first:
                query, key, value = (t.transpose(0, 1) for t in (query, key, value))
            q, k, v = (
                layer(t).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
                for layer, t in ((self.query, query), (self.key, key), (self.value, value))
            )
            mask = _mask(attn_mask, key_padding_mask)
            out = torch.nn.functional.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, is_causal=is_causal and mask is None,
                dropout_p=self.dropout if self.training else 0.0,
            )  # fmt: skip
            out = self.out(out.transpose(1, 2).flatten(2))
            return (out if self.batch_first else out.transpose(0, 1)), None

    return SlimAttention


def _mask(attention: Any, padding: Any) -> Any:  # noqa: ANN401
    """Join both masks of torch's attention into one that is added."""
    torch = importlib.import_module("torch")
    found: Any = None
    if attention is not None:
        found = _added(attention, torch)
        found = found if found.ndim < 3 else found[:, None]
    if padding is not None:
        added = _added(padding, torch)[:, None, None, :]
        found = added if found is None else found + added
    return found


def _added(mask: Any, torch: Any) -> Any:  # noqa: ANN401
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=torch.float32).masked_fill(mask, float("-inf"))
