"""The dialogue: a text and the answers so far give the next answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from pydantic import PrivateAttr

from fairlead.core.errors import UsageError
from fairlead.core.evidence import Evidence
from fairlead.router.answers import (
    AnswerBase,
    Lead,
    NeighbourId,
    Option,
    Reading,
    Redirect,
    Route,
)
from fairlead.router.confidence import confidence_of, runner_up
from fairlead.router.decision import Decision, decide
from fairlead.router.evidence import settle
from fairlead.router.questions import Ask, Choice, question_of, understand
from fairlead.router.scene import Scene, observe
from fairlead.router.scope import consulted
from fairlead.router.scorer import Weights
from fairlead.router.verdict import Verdict, route
from fairlead.router.wording import about, consult, measures, nearby, steps

__all__ = ["Answer", "Question", "ask"]


class Question(AnswerBase):
    """One thing must be known first."""

    kind: Literal["clarify"] = "clarify"
    """Always `clarify`."""
    _evidence: tuple[Evidence, ...] = PrivateAttr(default=())
    _weights: Weights | None = PrivateAttr(default=None)

    def answer(self, option: str | int) -> Answer:
        """Answer the question and get the next answer of the dialogue.

        Args:
            option: Id, number or label of an option, or free text that names one.

        Raises:
            UsageError: The text fits none of the options, or more than one.

        Examples:
            >>> question = ask("I need to deploy my model")
            >>> question.ambiguity
            'deployment-target'
            >>> question.answer("batch").skill_ids
            ('model-serving-patterns',)
        """
        return ask(
            self.asked,
            answers=(*self.answers, str(option)),
            evidence=self._evidence,
            weights=self._weights,
        )


Answer = Route | Question | Redirect
"""What `ask` gives back."""


def ask(
    text: str,
    *,
    answers: Sequence[str] = (),
    evidence: Sequence[Evidence] = (),
    weights: Weights | None = None,
) -> Answer:
    """Say which skills a problem needs, ask the one thing that is missing, or hand it over.

    Args:
        text: The problem in the user's own words, at most 100,000 characters.
        answers: Answers to the questions so far, in order; ids, numbers or free text.
        evidence: Measurements that may answer questions in place of the user.
        weights: The scorer's weights; those that ship when None.

    Raises:
        UsageError: The text cannot be read, or an answer fits no option.

    Examples:
        >>> ask("quantize my model to int8 and serve it over REST").skill_ids
        ('quantization-for-inference', 'model-serving-patterns')
        >>> ask("my inference is slow").ambiguity
        'model-or-infrastructure'
    """
    scene = observe(text)
    decision = decide(scene, weights)
    verdict = decision.verdict
    turn = _Turn(tuple(evidence), decision, confidence_of(decision), weights=weights)
    left = list(answers)
    while verdict.question:
        asked = question_of(verdict.question)
        known = _known(scene, asked, turn)
        if known is None and not left:
            return _question(scene, verdict, asked, turn)
        if known is None:
            said = left.pop(0)
            choice = understand(asked, said)
            turn.given.append(choice.id)
            turn.said.append(said)
        else:
            choice = asked.choice(known)
        verdict = _follow(verdict, asked, choice, scene)
    if left:
        raise UsageError(
            f"`{left[0][:60]}` answers no question, the dialogue had ended",
            hint="leave the last answer out",
        )
    if verdict.redirect_to:
        return _redirect(scene, verdict, verdict.redirect_to, turn)
    return _route(scene, verdict, turn)


@dataclass(slots=True)
class _Turn:
    """What was said and measured while a dialogue went on."""

    evidence: tuple[Evidence, ...]
    decision: Decision
    confidence: float
    given: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    used: list[Reading] = field(default_factory=list)
    weights: Weights | None = None


def _known(scene: Scene, asked: Ask, turn: _Turn) -> str | None:
    """Return the option that measurements, or else the text itself, have chosen already."""
    measured = settle(asked.id, turn.evidence)
    if measured:
        turn.used.append(measured)
        return measured.option
    if asked.id != "model-or-infrastructure":
        return None
    # "inference, and we never profiled it" answers two questions at once.
    said = (observe(item).facts for item in turn.said if any(char.isalpha() for char in item))
    return next((facts.bottleneck for facts in (scene.facts, *said) if facts.bottleneck), None)


def _follow(verdict: Verdict, question: Ask, choice: Choice, scene: Scene) -> Verdict:
    """Return what an option leads to."""
    rule = f"{question.id}={choice.id}"
    if choice.next:
        return Verdict("clarify", rule, verdict.because, question=choice.next)
    if choice.redirect:
        return Verdict("redirect", rule, verdict.because, redirect_to=choice.redirect)
    return route(
        rule, choice.skills, verdict.because, also=choice.also, consult=consulted(scene, ())
    )


def _question(scene: Scene, verdict: Verdict, asked: Ask, turn: _Turn) -> Question:
    options = tuple(
        Option(id=item.id, number=number, label=item.label, leads_to=_lead(item))
        for number, item in enumerate(asked.choices, 1)
    )
    answer = Question(
        asked=scene.reading.text,
        answers=tuple(turn.given),
        ambiguity=asked.id,
        question=asked.text,
        options=options,
        reason=asked.why,
        rule=verdict.rule,
        confidence=turn.confidence,
        runner_up=runner_up(turn.decision, verdict),
        spans=scene.spans(verdict.because),
        facts=scene.facts,
        evidence_used=tuple(turn.used),
        measurements=asked.measurements,
    )
    answer._evidence, answer._weights = turn.evidence, turn.weights
    return answer


def _lead(choice: Choice) -> Lead:
    if choice.next:
        return Lead(kind="clarify", ambiguity=choice.next)
    if choice.redirect:
        return Lead(kind="redirect", redirect_to=choice.redirect)
    return Lead(kind="route", skills=choice.skills)


def _route(scene: Scene, verdict: Verdict, turn: _Turn) -> Route:
    planned = steps(verdict.skills)
    return Route(
        asked=scene.reading.text,
        answers=tuple(turn.given),
        skills=planned,
        also_consider=nearby(verdict.skills, verdict.also),
        also_consult=consult(verdict.consult),
        reason="; then ".join(step.reason for step in planned),
        rule=verdict.rule,
        confidence=turn.confidence,
        runner_up=runner_up(turn.decision, verdict),
        spans=scene.spans(verdict.because),
        facts=scene.facts,
        evidence_used=tuple(turn.used),
        measurements=measures(verdict.skills),
    )


def _redirect(scene: Scene, verdict: Verdict, neighbour: NeighbourId, turn: _Turn) -> Redirect:
    handover, come_back = about(neighbour)
    return Redirect(
        asked=scene.reading.text,
        answers=tuple(turn.given),
        redirect_to=neighbour,
        reason=handover,
        come_back=come_back,
        rule=verdict.rule,
        confidence=turn.confidence,
        runner_up=runner_up(turn.decision, verdict),
        spans=scene.spans(verdict.because),
        facts=scene.facts,
        evidence_used=tuple(turn.used),
    )
