"""How right the router is: scores per stratum, calibration, coverage, CPU time."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from fairlead.api.feedback import Label
from fairlead.api.labelled_problems import LabelledProblem
from fairlead.core.errors import DataError, UsageError
from fairlead.core.ports import Progress, SilentProgress
from fairlead.core.report import Finding, Measure, Outcome, Plot, Report, Series, Table
from fairlead.router import ask
from fairlead.router.scorer import Weights

__all__ = ["RouterScores", "Verdict", "judge", "score_router"]

_BINS: Final = 10
_WANTED: Final = 0.9
_SHOWN: Final = 20
_SEEN: Final = (
    Finding(
        level="info",
        text="most problems that ship are those the router was made on: only text it has never "
        "seen tells how good it is",
        advice="score a file of your own, or correct answers as you use it",
    ),
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """One problem and what the router made of it.

    Attributes:
        problem: The problem.
        said: What the router said; None when it refused the text.
        confidence: How sure it was.
        cpu_ms: CPU time of the answer.
    """

    problem: LabelledProblem
    said: Label | None
    confidence: float
    cpu_ms: float

    @property
    def is_kind(self) -> bool:
        """Whether route, question or redirect is right."""
        return self.said is not None and self.said.kind == self.problem.label.kind

    @property
    def is_exact(self) -> bool:
        """Whether the whole answer is right, the order of the skills included."""
        return self.said == self.problem.label


@dataclass(frozen=True)
class RouterScores:
    """All verdicts, and what they amount to; a share that is about nothing is NaN."""

    verdicts: tuple[Verdict, ...] = field(repr=False)

    def share(self, is_right: Callable[[Verdict], bool], *kinds: str) -> float:
        """Return the share of right verdicts among the problems of some kinds, or of all."""
        chosen = [v for v in self.verdicts if not kinds or v.problem.label.kind in kinds]
        return _mean([is_right(verdict) for verdict in chosen])

    @property
    def multi_skill(self) -> float:
        """Share of exact answers where several skills are right."""
        several = [v.is_exact for v in self.verdicts if len(v.problem.label.skills) > 1]
        return _mean(several)

    @property
    def over_routing(self) -> float:
        """Share of problems of one skill that are given several."""
        single = [
            v.said is not None and len(v.said.skills) > 1
            for v in self.verdicts
            if len(v.problem.label.skills) == 1
        ]
        return _mean(single)

    @property
    def clarify_precision(self) -> float:
        """Share of asked questions that had to be asked."""
        asked = [v for v in self.verdicts if v.said is not None and v.said.kind == "clarify"]
        return _mean([v.problem.label.kind == "clarify" for v in asked])

    @property
    def coverage(self) -> float:
        """Largest share of answers, the surest first, of which 90 % are right."""
        order = sorted(self.verdicts, key=lambda v: -v.confidence)
        right = np.cumsum([v.is_exact for v in order])
        counts = np.arange(1, len(order) + 1)
        good = np.flatnonzero(right / counts >= _WANTED)
        return float(good[-1] + 1) / len(order) if len(good) else 0.0

    @property
    def cpu_p95_ms(self) -> float:
        """95th percentile of the CPU time of an answer, in ms."""
        return float(np.percentile([v.cpu_ms for v in self.verdicts], 95))

    def calibration(self) -> list[tuple[float, float, int]]:
        """Return confidence, share of right answers and number of answers, bin by bin."""
        bins: dict[int, list[Verdict]] = defaultdict(list)
        for verdict in self.verdicts:
            bins[min(int(verdict.confidence * _BINS), _BINS - 1)].append(verdict)
        return [
            (
                _mean([v.confidence for v in bins[at]]),
                _mean([v.is_exact for v in bins[at]]),
                len(bins[at]),
            )
            for at in sorted(bins)
        ]

    @property
    def calibration_error(self) -> float:
        """Mean distance of confidence and share of right answers, weighted by answers."""
        total = len(self.verdicts)
        return sum(abs(sure - right) * n for sure, right, n in self.calibration()) / total

    def by_stratum(self) -> Mapping[str, RouterScores]:
        """Return the scores of each stratum, by name."""
        parts: dict[str, list[Verdict]] = defaultdict(list)
        for verdict in self.verdicts:
            parts[verdict.problem.stratum].append(verdict)
        return {name: RouterScores(tuple(parts[name])) for name in sorted(parts)}


def _mean(values: Sequence[float | bool]) -> float:
    return float(np.mean(values)) if values else float("nan")


_TAUGHT: Final = Finding(
    level="info",
    text="this is the router of this workspace, with what it was taught here",
    advice="`fairlead router train --forget` goes back to the one that ships",
)


def judge(problem: LabelledProblem, weights: Weights | None = None) -> Verdict:
    """Ask the router one problem; with the weights that ship when None."""
    before = time.process_time()
    try:
        answer = ask(problem.text, answers=problem.answers, weights=weights)
    except UsageError:
        return Verdict(problem, None, 0.0, (time.process_time() - before) * 1e3)
    spent = (time.process_time() - before) * 1e3
    return Verdict(problem, Label.of(answer), answer.confidence, spent)


def score_router(
    problems: Iterable[LabelledProblem],
    *,
    weights: Weights | None = None,
    progress: Progress | None = None,
) -> Outcome[RouterScores]:
    """Ask the router every problem and compare with the right answers.

    Args:
        problems: The problems with their right answers.
        weights: What a workspace has taught the router; as it ships when None.
        progress: Hears how far it is.

    Raises:
        DataError: There is no problem.
    """
    says = progress or SilentProgress()
    given = list(problems)
    if not given:
        raise DataError(
            "there is no labelled problem",
            hint="give a file, or correct an answer with `fairlead ask --correct`",
        )
    judge(given[0], weights)
    says.begin("ask every problem", len(given))
    verdicts = []
    for problem in given:
        verdicts.append(judge(problem, weights))
        says.advance()
    scores = RouterScores(tuple(verdicts))
    return Outcome(scores, _report(scores, is_taught=weights is not None))


def _report(scores: RouterScores, *, is_taught: bool) -> Report:
    exact = scores.share(lambda v: v.is_exact)
    return Report(
        skill="router",
        title="Scores of the router",
        summary=f"{exact:.1%} of {len(scores.verdicts):,} answers are right in full, "
        f"{scores.share(lambda v: v.is_kind):.1%} are of the right kind.",
        measures=_measures(scores),
        findings=(
            *((_TAUGHT,) if is_taught else ()),
            *(_SEEN if any(_was_seen(v.problem) for v in scores.verdicts) else ()),
        ),
        tables=(_strata(scores), _mistakes(scores)),
        plots=(_calibration_plot(scores),),
    )


def _was_seen(problem: LabelledProblem) -> bool:
    return problem.is_shipped and not problem.is_held_back


def _measures(scores: RouterScores) -> tuple[Measure, ...]:
    values = {
        "kind": scores.share(lambda v: v.is_kind),
        "exact": scores.share(lambda v: v.is_exact),
        "exact_route": scores.share(lambda v: v.is_exact, "route"),
        "multi_skill": scores.multi_skill,
        "over_routing": scores.over_routing,
        "clarify_precision": scores.clarify_precision,
        "clarify_recall": scores.share(lambda v: v.is_kind, "clarify"),
        "redirect_target": scores.share(lambda v: v.is_exact, "redirect"),
        "coverage_at_90": scores.coverage,
        "calibration_error": scores.calibration_error,
    }
    known = [
        Measure(name=name, value=value, unit="ratio")
        for name, value in values.items()
        if value == value
    ]
    return (*known, Measure(name="cpu_p95_ms", value=scores.cpu_p95_ms, unit="ms"))


def _strata(scores: RouterScores) -> Table:
    rows = [
        (
            name,
            len(part.verdicts),
            part.share(lambda v: v.is_kind),
            part.share(lambda v: v.is_exact),
        )
        for name, part in scores.by_stratum().items()
    ]
    return Table(
        title="By stratum", columns=("stratum", "problems", "kind", "exact"), rows=tuple(rows)
    )


def _mistakes(scores: RouterScores) -> Table:
    wrong = [v for v in scores.verdicts if not v.is_exact]
    wrong.sort(key=lambda v: -v.confidence)
    return Table(
        title="The surest mistakes",
        columns=("problem", "should be", "was", "confidence"),
        rows=tuple(
            (v.problem.text[:80], str(v.problem.label), str(v.said or "refused"), v.confidence)
            for v in wrong[:_SHOWN]
        ),
    )


def _calibration_plot(scores: RouterScores) -> Plot:
    bins = scores.calibration()
    return Plot(
        title="Calibration: how often an answer of this confidence is right",
        kind="line",
        x_label="confidence",
        y_label="share of right answers",
        series=(
            Series(
                name="answers",
                x=tuple(sure for sure, _, _ in bins),
                y=tuple(right for _, right, _ in bins),
            ),
            Series(name="as it should be", x=(0.0, 1.0), y=(0.0, 1.0)),
        ),
    )
