"""What a skill says about itself, as data that can be read without importing it."""

from __future__ import annotations

from typing import Literal

from fairlead.core.values import Value

__all__ = ["Concern", "SkillCard"]

Concern = Literal["optimize", "serve", "mlops", "observe"]


class SkillCard(Value):
    """One of the ten skills: what it is for, what it takes and what it gives."""

    id: str
    """Public id, for example `quantization-for-inference`."""
    name: str
    """Short noun, the name of the folder, for example `quantization`."""
    concern: Concern
    """The package the skill lives in."""
    title: str
    """Name for people."""
    does: str
    """What the skill does, one sentence."""
    verb: str
    """Name of its function in `fairlead.api`."""
    command: str
    """How to call it from a shell, without arguments."""
    takes: str
    """The noun that goes in."""
    gives: str
    """The noun that comes out."""
    symptoms: tuple[str, ...]
    """What people say when they need it."""
    extra: str
    """The extra that installs its libraries."""
    methods: tuple[str, ...] = ()
    """Published names of the methods it offers, the default first."""
