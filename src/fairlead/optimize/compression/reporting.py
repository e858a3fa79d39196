"""How a compression is told."""

from __future__ import annotations

from collections.abc import Sequence

from fairlead.core.bundle import Bundle
from fairlead.core.report import Finding, Measure, Outcome, Report, Table
from fairlead.measure.acceptance import Candidate
from fairlead.measure.comparison import Comparison
from fairlead.optimize.compression.bench import Bench, Compressed, Found
from fairlead.optimize.compression.card import CARD

__all__ = ["candidate_of", "nothing_to_do", "refuse"]


def candidate_of(
    bench: Bench,
    found: Sequence[Found],
    version: Compressed,
    comparison: Comparison,
    confirmations: int,
) -> Candidate:
    """Return the version that was chosen, with everything that the search learnt."""
    return Candidate(
        model=version.model,
        change=version.change,
        comparison=comparison,
        packages=version.packages,
        measures=(*version.measures, evaluations(bench, confirmations)),
        tables=(*version.tables, tried_table(bench, found)),
        findings=tuple(Finding(level="info", text=text) for text in version.notes),
        details={
            "method": version.method,
            "evaluations": len(bench.drops),
            "confirmations": confirmations,
            **version.details,
        },
        runtime=version.runtime,
    )


def evaluations(bench: Bench, confirmations: int) -> Measure:
    """Return how many versions were judged."""
    return Measure(
        name="evaluations",
        value=len(bench.drops),
        unit="count",
        note=f"versions judged on the search rows; {confirmations} more on rows kept for the "
        "last test",
    )


def tried_table(bench: Bench, found: Sequence[Found]) -> Table:
    """Return what every method came to."""
    rows: list[tuple[str | float | int | None, ...]] = []
    for one in found:
        drops = [drop.value for method, drop in bench.drops if method == one.method]
        result = one.reason or (one.ladder[0].change if one.ladder else "broke the budget")
        rows.append((one.method, len(drops), min(drops, default=None), result))
    return Table(
        title="Methods",
        columns=("method", "versions judged", "smallest drop", "result"),
        rows=tuple(rows),
    )


def nothing_to_do(found: Sequence[Found]) -> tuple[str, str]:
    """Return why no method applies, and what to do about it."""
    if len(found) == 1:
        return found[0].reason, found[0].advice
    reasons = "; ".join(f"{one.method}: {one.reason}" for one in found)
    return reasons, next((one.advice for one in found if one.advice), "")


def refuse(bundle: Bundle, bench: Bench, *, title: str) -> Outcome[Bundle]:
    """Hand the original back: every version that was judged broke the budget."""
    gentlest = min(drop.value for _, drop in bench.drops)
    reason = (
        f"every compression that was tried broke the budget; the smallest drop was {gentlest:.4g}"
    )
    report = Report(
        skill=CARD.id,
        title=title,
        summary=f"{bundle.name} was refused: {reason}.",
        verdict="refused",
        measures=(evaluations(bench, 0),),
        findings=(
            Finding(
                level="alert",
                text="nothing was written",
                advice="raise the budget with --max-drop if the loss is worth it, give more "
                "held-back rows, or try `fairlead optimize quantize`",
            ),
        ),
        details={"reason": reason, "drops": [drop.value for _, drop in bench.drops]},
    )
    return Outcome(bundle, report)
