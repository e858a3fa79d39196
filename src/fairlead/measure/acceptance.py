"""What becomes of a changed model: refused, kept as it was, or shipped in a bundle of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fairlead.core.bundle import Bundle, RuntimeSettings, Scores, copy_bundle, derive_bundle
from fairlead.core.comparison import LayerDivergence
from fairlead.core.dataset import Dataset
from fairlead.core.report import Finding, Measure, Outcome, Report, Table, Verdict
from fairlead.measure.comparison import (
    Comparison,
    Goal,
    comparison_evidence,
    comparison_findings,
    comparison_measures,
    decide,
    stored_comparison,
)
from fairlead.measure.quality import evaluate

__all__ = ["Candidate", "conclude", "held_back_rows", "keep"]


@dataclass(frozen=True)
class Candidate:
    """A changed model that waits for the decision.

    Attributes:
        model: Its bytes, ONNX.
        change: What was done, one phrase for the provenance.
        comparison: What was measured about it.
        packages: Versions of the libraries that made it.
        measures: Further numbers for the report.
        tables: Tables for the report.
        findings: Sentences for the report.
        details: Machine-readable rest.
        runtime: Settings it runs with, when they are not the parent's.
        layers: The layers that moved most.
    """

    model: bytes
    change: str
    comparison: Comparison
    packages: Mapping[str, str]
    measures: tuple[Measure, ...] = ()
    tables: tuple[Table, ...] = ()
    findings: tuple[Finding, ...] = ()
    details: Mapping[str, Any] | None = None
    runtime: RuntimeSettings | None = None
    layers: tuple[LayerDivergence, ...] = ()


def held_back_rows(data: Dataset, *, max_rows: int, seed: int) -> Dataset:
    """Return the rows that are judged: all of them, or a sample that is always the same.

    Args:
        data: Rows the model was not trained on.
        max_rows: Most rows to return.
        seed: Seed of the sample.
    """
    if data.n_rows <= max_rows:
        return data
    picks = np.random.default_rng(seed).choice(data.n_rows, size=max_rows, replace=False)
    return data.take(np.sort(picks))


def keep(
    parent: Bundle,
    reason: str,
    *,
    skill: str,
    title: str,
    out: Path,
    advice: str = "",
    measures: tuple[Measure, ...] = (),
    tables: tuple[Table, ...] = (),
) -> Outcome[Bundle]:
    """Hand the parent on as it is: `out` becomes a copy with the same digest.

    Args:
        parent: The bundle that stays.
        reason: Why, as a clause.
        skill: Id of the skill.
        title: Title of the report.
        out: Directory to create.
        advice: What might help instead.
        measures: What was measured before the decision.
        tables: The same, as tables.

    Raises:
        ConflictError: `out` exists.
        WorkspaceError: It cannot be written.
    """
    bundle = copy_bundle(parent, out)
    report = Report(
        skill=skill,
        title=title,
        summary=f"{parent.name} stays as it is: {reason}.",
        verdict="kept",
        measures=(
            Measure(name="size_bytes", value=parent.size_bytes, unit="bytes"),
            *measures,
        ),
        tables=tables,
        findings=(Finding(level="info", text=reason, advice=advice),) if advice else (),
        files={"bundle": str(bundle.path)},
        details={"reason": reason, "digest": bundle.digest},
    )
    return Outcome(bundle, report)


def conclude(
    parent: Bundle,
    candidate: Candidate,
    rows: Dataset,
    *,
    skill: str,
    title: str,
    out: Path,
    goal: Goal,
    allow_unproven: bool,
) -> Outcome[Bundle]:
    """Decide about a candidate and write what follows from it.

    Refused writes nothing and hands the parent back; kept copies the parent; done writes a bundle
    derived from the parent.

    Args:
        parent: The bundle the candidate was made from.
        candidate: The changed model and what was measured.
        rows: The rows it was judged on.
        skill: Id of the skill.
        title: Title of the report.
        out: Directory to create.
        goal: What must get better.
        allow_unproven: Whether a measured drop within the budget is enough.

    Raises:
        ConflictError: `out` exists.
        WorkspaceError: It cannot be written.
    """
    comparison = candidate.comparison
    verdict, reason = decide(comparison, goal=goal, allow_unproven=allow_unproven)
    noun = parent
    if verdict == "kept":
        noun = copy_bundle(parent, out)
    elif verdict == "done":
        noun = derive_bundle(
            parent,
            out,
            made_by=skill,
            change=candidate.change,
            model=candidate.model,
            scores=_scores(parent, comparison, rows),
            packages=candidate.packages,
            runtime=candidate.runtime,
            comparison=stored_comparison(
                comparison,
                parent_digest=parent.digest,
                data_digest=rows.digest,
                layers=candidate.layers,
            ),
        )
    report = _report(parent, noun, candidate, rows, (verdict, reason), skill=skill, title=title)
    subject = noun.digest if verdict == "done" else parent.digest
    labels = {"data": rows.digest, "change": candidate.change, "parent": parent.digest}
    if verdict != "done":
        labels["shipped"] = "no"
    return Outcome(
        noun, report, comparison_evidence(comparison, subject=subject, skill=skill, labels=labels)
    )


def _report(
    parent: Bundle,
    noun: Bundle,
    candidate: Candidate,
    rows: Dataset,
    decision: tuple[Verdict, str],
    *,
    skill: str,
    title: str,
) -> Report:
    verdict, reason = decision
    comparison = candidate.comparison
    words = {"done": "changed", "kept": "stays as it is", "refused": "was refused"}[verdict]
    return Report(
        skill=skill,
        title=title,
        summary=f"{parent.name} {words}: {reason}.",
        verdict=verdict,
        measures=(*comparison_measures(comparison), *candidate.measures),
        findings=(*candidate.findings, *comparison_findings(comparison), *_advice(verdict)),
        tables=candidate.tables,
        files={} if verdict == "refused" else {"bundle": str(noun.path)},
        details={
            "reason": reason,
            "change": candidate.change,
            "parent_digest": parent.digest,
            "digest": noun.digest,
            "data_digest": rows.digest,
            "budget": comparison.quality.model_dump(mode="json"),
            "budget_verdict": comparison.quality.verdict,
            "edge_rows": list(comparison.edges.kinds),
            "edge_deviation": comparison.edges.largest_deviation,
            **(candidate.details or {}),
        },
    )


def _advice(verdict: str) -> tuple[Finding, ...]:
    if verdict != "refused":
        return ()
    return (
        Finding(
            level="alert",
            text="nothing was written",
            advice="raise the budget with --max-drop if the loss is worth it, or keep the original",
        ),
    )


def _scores(parent: Bundle, comparison: Comparison, rows: Dataset) -> Scores:
    """Score the changed model anew; the parent's scores say nothing about it."""
    if rows.labels is None or parent.manifest.task == "other":
        return Scores()
    return evaluate(parent.manifest, comparison.outputs, rows.labels, rows.digest)
