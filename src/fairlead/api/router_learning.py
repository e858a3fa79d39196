"""Folds corrections into the router of one workspace, and tells first what that would change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from fairlead.api.context import Context
from fairlead.api.feedback import Label
from fairlead.api.labelled_problems import LabelledProblem, corrected_problems, shipped_problems
from fairlead.api.router_lessons import fold, label_of, said
from fairlead.core.errors import DataError
from fairlead.core.report import Finding, Measure, Outcome, Report, Table, Verdict
from fairlead.router.decision import decide
from fairlead.router.scene import observe
from fairlead.router.scorer import Weights, load_weights

__all__ = ["Lesson", "learn"]

_SHOWN: Final = 20
_MOST_LOSS: Final = 0.005


@dataclass(frozen=True)
class Lesson:
    """What was learnt, not yet written.

    Attributes:
        weights: The changed weights.
        n_learnt: Corrections that the router now answers as it was told.
        n_changed: Held-back problems whose answer changes.
    """

    weights: Weights
    n_learnt: int
    n_changed: int


def learn(context: Context, *, max_loss: float = _MOST_LOSS) -> Outcome[Lesson]:
    """Fold the corrections of a workspace in, and tell what would change.

    Args:
        context: Holds the corrections; hears how far it is.
        max_loss: Loss of right answers on held-back problems that is tolerated, as a ratio.

    Returns:
        The lesson; its report is refused when too many right answers are lost, and kept when the
        corrections change nothing.

    Raises:
        DataError: Nothing was corrected.
    """
    corrected = list(corrected_problems(context))
    corrections = [item for item in corrected if not item.answers]
    n_later = len(corrected) - len(corrections)
    if not corrections:
        raise DataError(
            "no first answer to a problem was corrected in this workspace"
            + (f", {n_later} later in a dialogue were" if n_later else ""),
            hint="correct one with `fairlead ask --correct SKILL[,SKILL]` before you answer its "
            "question: where the answers to questions lead is a rule",
        )
    before = load_weights()
    after = fold(before, corrections, context)
    held_back = [problem for problem in shipped_problems() if problem.is_held_back]
    context.progress.begin("ask every held-back problem, before and after", len(held_back))
    compared = [_Compared.of(item, before, after) for item in corrections]
    others = []
    for item in held_back:
        others.append(_Compared.of(item, before, after))
        context.progress.advance()
    lesson = Lesson(
        after,
        sum(item.is_right_after for item in compared),
        sum(item.is_changed for item in others),
    )
    return Outcome(lesson, _report(lesson, compared, others, max_loss, n_later))


@dataclass(frozen=True, slots=True)
class _Compared:
    problem: LabelledProblem
    before: Label
    after: Label
    by_rule: bool

    @classmethod
    def of(cls, problem: LabelledProblem, before: Weights, after: Weights) -> _Compared:
        scene = observe(problem.text)
        decision = decide(scene, after)
        return cls(problem, said(scene, before), label_of(decision), decision.by_rule)

    @property
    def is_changed(self) -> bool:
        return self.before != self.after

    @property
    def is_right_before(self) -> bool:
        return self.before == self.problem.label

    @property
    def is_right_after(self) -> bool:
        return self.after == self.problem.label


def _report(
    lesson: Lesson,
    corrections: list[_Compared],
    others: list[_Compared],
    max_loss: float,
    n_later: int,
) -> Report:
    right = (
        sum(item.is_right_before for item in others),
        sum(item.is_right_after for item in others),
    )
    loss = (right[0] - right[1]) / max(1, len(others))
    verdict: Verdict = "done" if any(item.is_changed for item in corrections) else "kept"
    if loss > max_loss:
        verdict = "refused"
    return Report(
        skill="router",
        title="What the router would learn",
        summary=f"{lesson.n_learnt} of {len(corrections)} corrections are answered as you said; "
        f"{lesson.n_changed} of {len(others):,} other problems get another answer.",
        verdict=verdict,
        measures=(
            Measure(name="corrections_learnt", value=lesson.n_learnt, unit="count"),
            Measure(name="answers_changed", value=lesson.n_changed, unit="count"),
            Measure(
                name="exact_held_back",
                value=right[1] / max(1, len(others)),
                unit="ratio",
                baseline=right[0] / max(1, len(others)),
                note="on problems that nothing was fitted on",
            ),
        ),
        findings=_findings(corrections, loss, max_loss, n_later),
        tables=(
            _table("Your corrections", corrections),
            _table("Other answers that change", [item for item in others if item.is_changed]),
        ),
    )


def _findings(
    corrections: list[_Compared], loss: float, max_loss: float, n_later: int
) -> tuple[Finding, ...]:
    found = []
    if n_later:
        found.append(
            Finding(
                level="info",
                text=f"{n_later} corrected later in a dialogue: where the answers to questions "
                "lead is a rule, which no learning overturns",
                advice="correct the first answer, before you answer its question",
            )
        )
    stuck = [item for item in corrections if not item.is_right_after]
    ruled = sum(item.by_rule for item in stuck)
    if ruled:
        found.append(
            Finding(
                level="warning",
                text=f"{ruled} corrections go against a rule, which no learning overturns",
                advice="see `rule` in the answer; say it in other words, or report the rule",
            )
        )
    if len(stuck) > ruled:
        found.append(
            Finding(
                level="warning",
                text=f"{len(stuck) - ruled} corrections could not be learnt",
                advice="look for corrections that contradict each other: `fairlead router history`",
            )
        )
    if loss > max_loss:
        found.append(
            Finding(
                level="alert",
                text=f"{loss:.1%} of the held-back answers would be lost, more than {max_loss:.1%}",
                advice="take back corrections of unclear texts, or raise --max-loss",
            )
        )
    return tuple(found)


def _table(title: str, items: list[_Compared]) -> Table:
    return Table(
        title=title,
        columns=("problem", "should be", "before", "after"),
        rows=tuple(
            (item.problem.text[:80], str(item.problem.label), str(item.before), str(item.after))
            for item in items[:_SHOWN]
        ),
    )
