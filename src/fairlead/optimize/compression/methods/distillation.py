"""A student learns what the original answers: the user's own, one cut from it, or a dense one.

Knowledge distillation (Hinton, Vinyals & Dean, 2015) with a temperature, on features if wished,
and in stages with teacher assistants for a student that is cut from the module. Without a torch
module the student is a small dense network; see `dense_distillation`.
"""

from __future__ import annotations

from fairlead.backends.torch_structure import count_work
from fairlead.backends.torch_training import Checkpoints, train
from fairlead.optimize.compression.bench import Bench, Found
from fairlead.optimize.compression.methods.dense_distillation import dense_distillation
from fairlead.optimize.compression.methods.structured_pruning import channel_cuts
from fairlead.optimize.compression.stages import (
    Cut,
    in_stages,
    material_of,
    plan_of,
    score_of,
    trained_version,
)

__all__ = ["distillation"]

METHOD = "distillation"


def distillation(bench: Bench) -> Found:
    """Teach a smaller model.

    Raises:
        ModelError: The student cannot be made or exported.
        MissingExtraError: torch-pruning is needed to cut a student and not installed.
    """
    if bench.training is None:
        return dense_distillation(bench)
    if bench.training.student is not None:
        return _given_student(bench)
    return in_stages(bench, METHOD, channel_cuts(bench, METHOD), assistants=True)


def _given_student(bench: Bench) -> Found:
    """Teach the student that the user brought."""
    material = material_of(bench, METHOD)
    assert material.student is not None  # noqa: S101 (the caller has looked)
    student = material.student()
    keeper = None if material.checkpoints is None else Checkpoints(material.checkpoints)
    trained = train(
        student,
        material,
        plan_of(bench),
        teacher=material.copy(),
        score=score_of(bench, material),
        stage=f"{METHOD}-student",
        checkpoints=keeper,
        progress=bench.progress,
    )
    before = count_work(material.module, material.example())
    cut = Cut("the student that was given", lambda _module: ())
    version = trained_version(bench, METHOD, cut, student, trained, before)
    return Found(METHOD, (version,) if bench.is_good(version.model, METHOD) else ())
