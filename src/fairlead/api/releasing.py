"""Releases a bundle to the registry when it is not worse than the champion on the same rows."""

from __future__ import annotations

from pathlib import Path

from fairlead.api.context import Context
from fairlead.api.tracking import list_versions, register, resolve, set_alias
from fairlead.backends.runners import open_runner
from fairlead.core.bundle import Bundle
from fairlead.core.comparison import ComparisonGate
from fairlead.core.dataset import Dataset
from fairlead.core.errors import NotFoundError
from fairlead.core.evidence import Evidence
from fairlead.core.ports import Array
from fairlead.core.report import Finding, Measure, Outcome, Report
from fairlead.core.run import ModelVersion
from fairlead.measure.answers import judge_answers
from fairlead.measure.budget import QualityDrop
from fairlead.measure.quality import predict

__all__ = ["release"]

_SKILL = "mlops-pipeline-automation"


def release(
    bundle: str | Path,
    data: Dataset,
    *,
    name: str,
    alias: str = "champion",
    max_drop: float = 0.01,
    gate: ComparisonGate | None = None,
    context: Context | None = None,
) -> Outcome[Bundle]:
    """Register a bundle and move the alias to it, unless the champion is better.

    The comparison with its original that the challenger carries must hold. Then both models
    predict the same rows; the challenger may lose at most `max_drop` of quality against the
    champion, by the paired test that guards every optimisation.

    Args:
        bundle: The challenger.
        data: Rows that neither was trained on, with labels where they are known.
        name: Name of the registered model.
        alias: The alias that marks the champion.
        max_drop: Largest loss allowed, as a ratio.
        gate: What the stored comparison must say; its defaults when None.
        context: Workspace; opened from the environment when None.

    Returns:
        The bundle behind the alias now; the report is refused when the champion stays.

    Raises:
        DataError: The rows do not fit one of the models.
        WorkspaceError: The registry cannot be written.
    """
    ctx = context or Context.open()
    challenger = Bundle.open(bundle)
    champion = _champion(f"{name}@{alias}", ctx)
    made_by = challenger.provenance.made_by
    reasons = (gate or ComparisonGate()).refusals(challenger.comparison(), made_by=made_by)
    if reasons:
        report = _report(name, alias, None, f"was refused: {'; '.join(reasons)}", "refused")
        return ctx.record(Outcome(champion or challenger, report))
    if champion is not None and champion.digest == challenger.digest:
        return Outcome(champion, _report(name, alias, None, "is the champion already", "kept"))
    drop = None if champion is None else _compare(champion, challenger, data, max_drop)
    if champion is not None and drop is not None and not drop.is_within():
        said = f"lost {drop.value:.4f} against the champion, more than {max_drop:.4f}"
        report = _report(name, alias, drop, said, "refused")
        return ctx.record(Outcome(champion, report, _evidence(challenger, drop)))
    number = _promote(challenger, name, alias, ctx)
    said = f"is version {number} now" + ("; there was no champion" if champion is None else "")
    report = _report(name, alias, drop, said, "done")
    return ctx.record(Outcome(challenger, report, _evidence(challenger, drop)))


def _champion(reference: str, ctx: Context) -> Bundle | None:
    try:
        return resolve(reference, context=ctx)
    except NotFoundError:
        return None


def _promote(challenger: Bundle, name: str, alias: str, ctx: Context) -> int:
    """Let the alias point at the challenger; registered bytes keep the version they have."""
    known = _versions(name, ctx)
    mine = next((item for item in known if item.bundle_digest == challenger.digest), None)
    if mine is None:
        return register(challenger.path, name=name, alias=alias, context=ctx).noun.version
    return set_alias(name, mine.version, alias, context=ctx).noun.version


def _versions(name: str, ctx: Context) -> list[ModelVersion]:
    try:
        return list_versions(name, context=ctx)
    except NotFoundError:
        return []


def _compare(champion: Bundle, challenger: Bundle, data: Dataset, budget: float) -> QualityDrop:
    before, after = _answers(champion, data), _answers(challenger, data)
    return judge_answers(challenger.manifest, before, after, data.labels, budget=budget)


def _answers(bundle: Bundle, data: Dataset) -> dict[str, Array]:
    runner = open_runner(bundle, trust=bundle.manifest.needs_trust)
    try:
        return predict(runner, bundle.manifest, data)
    finally:
        runner.close()


def _report(name: str, alias: str, drop: QualityDrop | None, said: str, verdict: str) -> Report:
    measures: tuple[Measure, ...] = ()
    if drop is not None:
        measures = (
            Measure(
                name=f"{drop.metric} against the champion",
                value=drop.value,
                unit="ratio",
                ci_high=drop.upper,
                ci_low=min(drop.value, drop.upper),
                note=f"{drop.n_worse} rows worse, {drop.n_better} better of {drop.n_rows}",
            ),
        )
    level = "alert" if verdict == "refused" else "good"
    return Report.model_validate(
        {
            "skill": _SKILL,
            "title": "Release",
            "summary": f"{name}: the bundle {said} ({alias}).",
            "verdict": verdict,
            "measures": measures,
            "findings": (Finding(level=level, text=f"the bundle {said}"),),
        }
    )


def _evidence(challenger: Bundle, drop: QualityDrop | None) -> tuple[Evidence, ...]:
    if drop is None:
        return ()
    return (
        Evidence(
            metric="champion_drop_ratio",
            value=drop.value,
            unit="ratio",
            method="both models on the same rows, paired",
            subject=challenger.digest,
            sample_size=drop.n_rows,
            skill=_SKILL,
        ),
    )
