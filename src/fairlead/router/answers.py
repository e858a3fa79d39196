"""What the router says: a route, one question, or a redirect. All of it is plain data."""

from __future__ import annotations

from typing import Final, Literal, get_args

from pydantic import Field

from fairlead.core.values import Value

__all__ = [
    "NEIGHBOURS",
    "QUESTIONS",
    "SKILLS",
    "AnswerBase",
    "AnswerKind",
    "Facts",
    "Lead",
    "Measurement",
    "Neighbour",
    "NeighbourId",
    "Option",
    "QuestionId",
    "Reading",
    "Redirect",
    "Route",
    "RunnerUp",
    "SkillId",
    "Span",
    "Step",
]

SkillId = Literal[
    "quantization-for-inference",
    "model-compression-techniques",
    "hardware-optimization-strategies",
    "model-serving-patterns",
    "deployment-strategies",
    "scaling-and-load-balancing",
    "experiment-tracking-and-versioning",
    "mlops-pipeline-automation",
    "production-monitoring-and-alerting",
    "production-debugging-techniques",
]
NeighbourId = Literal[
    "training-optimization",
    "neural-architectures",
    "pytorch-engineering",
    "llm-specialist",
    "out-of-scope",
]
QuestionId = Literal[
    "speed-inference-or-training",
    "model-or-infrastructure",
    "speed-or-accuracy",
    "deployment-target",
    "tracking-or-automation",
    "proactive-or-reactive",
    "unknown-concern",
]
AnswerKind = Literal["route", "clarify", "redirect"]

SKILLS: Final[tuple[SkillId, ...]] = get_args(SkillId)
NEIGHBOURS: Final[tuple[NeighbourId, ...]] = get_args(NeighbourId)
QUESTIONS: Final[tuple[QuestionId, ...]] = get_args(QuestionId)


class Span(Value):
    """A phrase of the user that counted, and what it was taken to say."""

    text: str
    """The user's own words."""
    start: int = Field(ge=0)
    """Index of the first character in the text."""
    end: int = Field(ge=0)
    """Index after the last character in the text."""
    says: str
    """The concept it was read as, for example `symptom.slow`."""


class Step(Value):
    """One skill of a route and why it stands where it stands."""

    skill: SkillId
    """Public id of the skill."""
    reason: str
    """Why this problem needs it, one sentence."""


class Neighbour(Value):
    """Somebody outside the ten skills who should be asked as well."""

    id: NeighbourId
    """Id of the neighbour."""
    reason: str
    """Which part of the problem is theirs, one sentence."""


class Measurement(Value):
    """What would settle a question without asking, and the command that takes it."""

    metric: str
    """Name of the measurement that is read."""
    command: str
    """The command of Fairlead that takes it."""
    tells: str
    """What the number decides, one sentence."""


class Reading(Value):
    """A measurement that was used instead of asking."""

    metric: str
    """Name of the measurement."""
    value: float
    """Its value, in `unit`."""
    unit: str
    """Unit of the value."""
    subject: str
    """Digest or name of what was measured."""
    settled: QuestionId
    """The question it answered."""
    option: str
    """The option it chose."""


class RunnerUp(Value):
    """The answer that came second."""

    answer: str
    """Its skills, question or neighbour, joined by ` + `."""
    score: float = Field(ge=0, le=1)
    """How likely it was held to be, between 0 and 1."""


class Lead(Value):
    """Where an option leads."""

    kind: AnswerKind
    """Kind of the answer that the option gives."""
    skills: tuple[SkillId, ...] = ()
    """Skills in the order of work, for a route."""
    redirect_to: NeighbourId | None = None
    """The neighbour, for a redirect."""
    ambiguity: QuestionId | None = None
    """The next question, when one more is needed."""


class Option(Value):
    """One way to answer a question."""

    id: str
    """What to pass as the answer; its number works as well."""
    number: int = Field(ge=1)
    """Position in the list, from 1."""
    label: str
    """The option in plain words."""
    leads_to: Lead
    """The answer that choosing it gives."""


class Facts(Value):
    """What the text says, apart from what should be done about it."""

    phase: Literal["untrained", "training", "trained", "deployed", "fault"] | None = None
    """Where the model stands in its life."""
    slow_phase: Literal["inference", "training"] | None = None
    """What is slow, when something is slow."""
    performance: Literal["speed", "accuracy"] | None = None
    """What the word performance stands for in this text."""
    target: Literal["cloud", "edge", "batch"] | None = None
    """Where the model is to run."""
    bottleneck: Literal["model", "infrastructure", "not-profiled"] | None = None
    """Where the time goes, as far as the user knows."""
    concerns: tuple[str, ...] = ()
    """The concepts that the text speaks of, in the order of the text."""
    negated: tuple[str, ...] = ()
    """The concepts that the text rules out."""
    tools: tuple[str, ...] = ()
    """Products that are named; they never decide a route."""


class AnswerBase(Value):
    """What every answer carries, whatever its kind."""

    asked: str
    """The text that was asked."""
    answers: tuple[str, ...] = ()
    """The answers given so far, as option ids."""
    skills: tuple[Step, ...] = ()
    """The skills in the order of work; empty unless this is a route."""
    also_consider: tuple[SkillId, ...] = ()
    """Skills worth a look later."""
    also_consult: tuple[Neighbour, ...] = ()
    """Neighbours who own a part of the problem."""
    redirect_to: NeighbourId | None = None
    """The neighbour that takes over, for a redirect."""
    ambiguity: QuestionId | None = None
    """Id of the question, when one is asked."""
    question: str | None = None
    """The question in plain words, when one is asked."""
    options: tuple[Option, ...] = ()
    """The ways to answer it, each with where it leads."""
    reason: str
    """Why this answer was given, one or two sentences."""
    come_back: str | None = None
    """For a redirect: what would bring the problem back here."""
    rule: str
    """The rule that fired."""
    confidence: float = Field(ge=0, le=1)
    """Share of such answers that were right on text nothing was fitted on."""
    runner_up: RunnerUp | None = None
    """The answer that came second."""
    spans: tuple[Span, ...] = ()
    """The phrases that decided."""
    facts: Facts = Facts()
    """What the text says."""
    evidence_used: tuple[Reading, ...] = ()
    """Measurements that answered a question in place of the user."""
    measurements: tuple[Measurement, ...] = ()
    """What could be measured to settle or to confirm this answer."""

    @property
    def skill_ids(self) -> tuple[SkillId, ...]:
        """The ids of the skills in the order of work."""
        return tuple(step.skill for step in self.skills)


class Route(AnswerBase):
    """Do these skills, in this order."""

    kind: Literal["route"] = "route"
    """Always `route`."""


class Redirect(AnswerBase):
    """Somebody else answers this one."""

    kind: Literal["redirect"] = "redirect"
    """Always `redirect`."""
