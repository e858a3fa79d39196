"""Code before and after a model, packed with it: an ensemble of up to three steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from fairlead.core.bundle import Bundle
from fairlead.core.dataset import Dataset, bind
from fairlead.core.ensemble import EnsembleDraft, StepDraft
from fairlead.core.files import user_path

if TYPE_CHECKING:
    from fairlead.backends.converted import Converted

__all__ = ["wrap"]


def wrap(
    rows: Dataset,
    work: Path,
    *,
    pack_model: Callable[[Dataset, Sequence[str], Path], Bundle],
    preprocess: str | None,
    postprocess: str | None,
    features: Sequence[str] = (),
    trust: bool = False,
) -> Converted:
    """Put functions before and after a model.

    Args:
        rows: What a request holds, and the labels of the whole.
        work: Empty folder.
        pack_model: Packs the model itself with the rows that reach it and its feature columns.
        preprocess: `file.py:name` of what turns the columns of a request into those of the model.
        postprocess: `file.py:name` of what turns the model's outputs into the answer.
        features: Columns of the request, or of the model when there is no `preprocess`.
        trust: Whether code that came with the model may run.

    Raises:
        NotFoundError: There is no such file or function.
        ModelError: A function fails, or gives what does not fit.
    """
    from fairlead.backends.ensemble_packing import convert_ensemble

    reached = rows if preprocess is None else _preprocessed(preprocess, rows, work, features)
    model = pack_model(reached, () if preprocess else features, work / "model")
    steps = [StepDraft(name="model", bundle=str(model.path))]
    if preprocess is not None:
        steps.insert(0, StepDraft(name="preprocess", code=_absolute(preprocess)))
    if postprocess is not None:
        steps.append(StepDraft(name="postprocess", code=_absolute(postprocess)))
    draft = EnsembleDraft(steps=tuple(steps))
    columns = features if preprocess else ()
    made = convert_ensemble(draft, rows, work, base=Path.cwd(), trust=trust, features=columns)
    named = {"pre-processing": preprocess, "post-processing": postprocess}
    changes = tuple(f"{what} by {code}" for what, code in named.items() if code)
    return replace(made, changes=(*model.provenance.changes, *changes))


def _preprocessed(code: str, rows: Dataset, work: Path, features: Sequence[str]) -> Dataset:
    """Return the rows as they reach the model."""
    from fairlead.backends.python_models import convert_python
    from fairlead.measure.quality import run_batches

    made = convert_python(_absolute(code), rows, work / "before", features=features)
    try:
        feeds = bind(rows, made.signature, feature_columns=made.feature_columns)
        columns = run_batches(made.runner, feeds)
    finally:
        made.runner.close()
    return Dataset(columns, rows.labels, rows.label_name, f"{rows.source} through {code}")


def _absolute(reference: str) -> str:
    """Return a reference to code with the path of its file made absolute."""
    where, _, name = reference.rpartition(":")
    return f"{user_path(where).resolve()}:{name}" if where.endswith(".py") else reference
