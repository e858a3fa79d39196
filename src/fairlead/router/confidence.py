"""How sure an answer is: log odds fitted on answers to texts the scorer had not seen."""

from __future__ import annotations

import math
import tomllib
from functools import lru_cache
from importlib import resources

from fairlead.router.answers import RunnerUp
from fairlead.router.decision import Decision
from fairlead.router.ordering import SHORT
from fairlead.router.verdict import Verdict

__all__ = ["confidence_of", "runner_up", "signals_of"]


def signals_of(decision: Decision) -> dict[str, float]:
    """Return what the confidence is computed from.

    `likelihood` and `lead` are log odds of the scorer, `understood` and `agreed` say whether
    every word was known and whether rules and scorer came to the same answer.
    """
    ranked = decision.scores.ranked
    chosen = _names(decision.verdict)
    belief = sum(decision.scores.answers.get(name, 0.0) for name in chosen)
    rest = max((value for name, value in ranked if name not in chosen), default=0.0)
    skills = decision.verdict.skills
    doubt = [abs(2 * decision.scores.skills[name] - 1) for name in decision.scores.skills]
    return {
        "likelihood": _log_odds(belief),
        "lead": belief - rest,
        "agreed": float(decision.agreed),
        "understood": float(decision.understood),
        "by_rule": float(decision.by_rule),
        "several": float(len(skills) > 1),
        "route": float(bool(skills)),
        "clear_parts": min(doubt) if skills else 1.0,
        "words": math.log1p(min(200, decision.words)),
    }


def _names(verdict: Verdict) -> tuple[str, ...]:
    if verdict.question:
        return (f"?{verdict.question}",)
    if verdict.redirect_to:
        return (f"!{verdict.redirect_to}",)
    return tuple(name for name, skill in SHORT.items() if skill in verdict.skills)


def _log_odds(share: float) -> float:
    inside = min(max(share, 0.001), 0.999)
    return math.log(inside / (1 - inside))


@lru_cache(maxsize=1)
def _calibration() -> dict[str, float]:
    source = resources.files("fairlead.router") / "data" / "calibration.toml"
    return {key: float(item) for key, item in tomllib.loads(source.read_text("utf-8")).items()}


def confidence_of(decision: Decision) -> float:
    """Return the share of such answers that were right, between 0 and 1."""
    fitted = _calibration()
    odds = fitted["intercept"]
    odds += sum(fitted[name] * value for name, value in signals_of(decision).items())
    return 1 / (1 + math.exp(-max(-30.0, min(30.0, odds))))


def runner_up(decision: Decision, given: Verdict | None = None) -> RunnerUp | None:
    """Return the likeliest answer that was not given, neither at once nor after a question."""
    chosen = {*_names(decision.verdict), *_names(given or decision.verdict)}
    for name, value in decision.scores.ranked:
        if name not in chosen:
            shown = SHORT.get(name) or name.lstrip("?!")
            return RunnerUp(answer=shown, score=value)
    return None
