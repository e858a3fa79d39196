"""Which columns of a dataset a model takes, when the model itself does not name them."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from fairlead.core.dataset import Array, Dataset
from fairlead.core.errors import DataError
from fairlead.core.signature import STRING, Signature, TensorSpec

__all__ = ["choose_features", "named_features"]

_IDENTIFIER = re.compile(r"(^|[_\s.-])(id|idx|index|key|uuid|guid|rowid)($|[_\s.-])|^unnamed", re.I)
_SHOWN = 12


def named_features(dataset: Dataset, names: Sequence[str]) -> tuple[str, ...]:
    """Return the names when the dataset has all of them; other columns do not matter.

    Raises:
        DataError: A column is missing.
    """
    missing = [name for name in names if name not in dataset.columns]
    if missing:
        raise DataError(
            f"{dataset.source} lacks {len(missing)} of the model's {len(names)} features: "
            f"{_shown(missing)}; it has {_shown(list(dataset.columns))}",
            hint="give data with the columns that the model was trained on",
        )
    return tuple(names)


def choose_features(
    dataset: Dataset, signature: Signature, names: Sequence[str] = ()
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Choose the columns of a single stacked input.

    Args:
        dataset: The rows.
        signature: What the model takes.
        names: Columns that the model or the user names; when empty, the columns of the right
            kind in the order of the file. Where these are too many, whole-number columns that
            are named like an identifier and hold another value in every row are left out.

    Returns:
        The columns, empty when the inputs are columns themselves; and what was assumed.

    Raises:
        DataError: A named column is missing, or the number of values per row does not fit.
    """
    if len(signature.inputs) != 1:
        return (), ()
    spec = signature.inputs[0]
    if not names and spec.name in dataset.columns:
        return (), ()
    wanted = int(np.prod(spec.shape[1:])) if all(size > 0 for size in spec.shape[1:]) else None
    if names:
        chosen = named_features(dataset, names)
        _check_width(dataset, chosen, spec, wanted)
        return chosen, ()
    kinds = "OUS" if spec.dtype == STRING else "biuf"
    chosen = tuple(name for name, array in dataset.columns.items() if array.dtype.kind in kinds)
    excess = _width(dataset, chosen) - (wanted or 0)
    if wanted and excess > 0:
        identifiers = [name for name in chosen if _is_identifier(name, dataset.columns[name])]
        if len(identifiers) == excess:
            rest = tuple(name for name in chosen if name not in identifiers)
            note = f"left out {_shown(identifiers)}: named like an identifier, no value repeats"
            return rest, (note,)
    _check_width(dataset, chosen, spec, wanted)
    return chosen, ()


def _width(dataset: Dataset, names: Sequence[str]) -> int:
    return sum(int(np.prod(dataset.columns[name].shape[1:])) for name in names)


def _check_width(
    dataset: Dataset, names: tuple[str, ...], spec: TensorSpec, wanted: int | None
) -> None:
    found = _width(dataset, names)
    if found == wanted or (wanted is None and found):
        return
    kind = "text" if spec.dtype == STRING else "numeric"
    raise DataError(
        f"{dataset.source} has {found} values per row in {len(names)} {kind} columns "
        f"({_shown(names)}), but the model takes {wanted or 'some'}: {spec}",
        hint="name the features in order with --features, and the label with --labels",
    )


def _is_identifier(name: str, array: Array) -> bool:
    is_whole = array.dtype.kind in "iu" and array.ndim == 1
    return is_whole and bool(_IDENTIFIER.search(name)) and len(np.unique(array)) == len(array)


def _shown(names: Sequence[str]) -> str:
    text = ", ".join(f"`{name}`" for name in names[:_SHOWN])
    return (text or "none") + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
