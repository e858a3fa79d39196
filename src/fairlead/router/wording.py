"""What is said about skills and neighbours: reasons, next steps, what to measure."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from functools import lru_cache
from importlib import resources

from fairlead.core.values import Value
from fairlead.router.answers import Measurement, Neighbour, NeighbourId, SkillId, Step

__all__ = ["about", "consult", "measures", "nearby", "steps"]


class _Skill(Value):
    id: SkillId
    reason: str
    also: tuple[str, ...]
    measure: Measurement


class _Neighbour(Value):
    handover: str
    come_back: str
    part: str


class _Wording(Value):
    skill: dict[str, _Skill]
    neighbour: dict[NeighbourId, _Neighbour]

    def by_id(self, skill: SkillId) -> _Skill:
        return next(item for item in self.skill.values() if item.id == skill)


@lru_cache(maxsize=1)
def _wording() -> _Wording:
    source = resources.files("fairlead.router") / "data" / "skills.toml"
    return _Wording.model_validate(tomllib.loads(source.read_text(encoding="utf-8")))


def steps(skills: Iterable[SkillId]) -> tuple[Step, ...]:
    """Return the steps of a route with the reason of each."""
    return tuple(Step(skill=skill, reason=_wording().by_id(skill).reason) for skill in skills)


def nearby(skills: tuple[SkillId, ...], first: tuple[SkillId, ...] = ()) -> tuple[SkillId, ...]:
    """Return skills worth a look after these; those in `first` lead the list."""
    wording = _wording()
    near = [wording.skill[name].id for item in skills for name in wording.by_id(item).also]
    return tuple(dict.fromkeys(item for item in (*first, *near) if item not in skills))


def measures(skills: Iterable[SkillId]) -> tuple[Measurement, ...]:
    """Return what would confirm a route, without repeating a command."""
    found = [_wording().by_id(skill).measure for skill in skills]
    return tuple({item.command: item for item in found}.values())


def consult(neighbours: Iterable[NeighbourId]) -> tuple[Neighbour, ...]:
    """Return the neighbours with the part that is theirs."""
    wording = _wording()
    return tuple(Neighbour(id=item, reason=wording.neighbour[item].part) for item in neighbours)


def about(neighbour: NeighbourId) -> tuple[str, str]:
    """Return why a neighbour takes over, and what would bring the problem back."""
    item = _wording().neighbour[neighbour]
    return item.handover, item.come_back
