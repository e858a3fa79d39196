"""`serve export edge`: a folder that runs a bundle with ONNX Runtime and numpy alone."""

from __future__ import annotations

from pathlib import Path

from fairlead.api.context import Context
from fairlead.core.bundle import Bundle
from fairlead.core.dataset import Array
from fairlead.core.errors import ConflictError, IntegrityError
from fairlead.core.files import new_folder, refuse_taken, user_path
from fairlead.core.report import Finding, Measure, Outcome, Report

__all__ = ["export_edge"]

_SKILL = "model-serving-patterns"


def export_edge(
    bundle: str | Path,
    *,
    out: str | Path,
    as_zip: bool = False,
    replace: bool = False,
    context: Context | None = None,
) -> Outcome[Path]:
    """Write a folder that runs a bundle with ONNX Runtime and numpy alone, and try it.

    Args:
        bundle: An ONNX bundle, or an ensemble of such.
        out: Folder to create.
        as_zip: Whether to write a zip file beside the folder too.
        replace: Whether an earlier export may be replaced.
        context: Surroundings of the call.

    Returns:
        The folder; the report says how its answers compare with the bundle's.

    Raises:
        ModelError: The bundle needs more than ONNX Runtime.
        ConflictError: The target exists and may not be replaced.
        IntegrityError: The exported folder answers otherwise than the bundle.
        WorkspaceError: The target cannot be written.
    """
    from fairlead.backends.edge import write_edge, zip_folder
    from fairlead.core.signature import conform
    from fairlead.serve.inference.arms import free_signature
    from fairlead.serve.inference.examples import example_feeds

    ctx = (context or Context.open()).ready_to_record()
    source = Bundle.open(bundle)
    target = user_path(out)
    archive = target.with_name(target.name + ".zip")
    refuse_taken(target, replace=replace, marker="SHA256SUMS")
    if as_zip and archive.exists() and not replace:
        raise ConflictError(f"{archive} already exists", hint="give --replace, or remove it")
    signature = free_signature(source.signature)
    feeds = conform(example_feeds(source, signature, 3), signature)
    with new_folder(target, what="the export", replace=replace, marker="SHA256SUMS") as folder:
        write_edge(source, folder, feeds)
        difference = _compare(source, folder, feeds)
    files = {"folder": str(target.resolve())}
    if as_zip:
        zip_folder(target, archive)
        files["zip"] = str(archive.resolve())
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    report = Report(
        skill=_SKILL,
        title=f"Edge export of {source.name}",
        summary=f"{target} runs {source.name} {source.version} with ONNX Runtime and numpy alone.",
        measures=(
            Measure(name="size", value=float(size), unit="bytes"),
            Measure(name="answer_difference", value=difference,
                    note="largest difference between run.py and the bundle on example rows"),
        ),
        findings=(
            Finding(level="good", text="run.py gave the same answers as the bundle",
                    advice=f"try it: python {target}/run.py {target}/example.json"),
        ),
        files=files,
        details={"bundle_digest": source.digest, "version": source.version},
    )  # fmt: skip
    return ctx.record(Outcome(target, report))


def _compare(bundle: Bundle, folder: Path, feeds: dict[str, Array]) -> float:
    """Ask the exported program and the bundle the same; return the largest difference.

    Raises:
        IntegrityError: They differ by more than rounding.
    """
    import numpy as np

    from fairlead.backends.edge_program import EdgeModel
    from fairlead.backends.runners import open_runner
    from fairlead.measure.quality import run_batches

    runner = open_runner(bundle)
    try:
        expected = run_batches(runner, feeds)
    finally:
        runner.close()
    found = EdgeModel(folder).predict(dict(feeds))
    worst = 0.0
    for name, array in expected.items():
        if array.dtype.kind == "f":
            gap = np.abs(array.astype(np.float64) - found[name].astype(np.float64))
            worst = max(worst, float(np.nan_to_num(gap).max(initial=0.0)))
        elif not bool(np.all(array == found[name])):
            worst = float("inf")
    if worst > 1e-4:
        raise IntegrityError(
            f"the exported program's answer differs from the bundle's by {worst:g}",
            hint="report it with the bundle, if you can",
        )
    return worst
