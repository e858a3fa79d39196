"""What a workspace has taught its router: weights, changed as little as possible, and their file.

Each correction is a constraint: the right answer must lead by a margin. The passive-aggressive
update (Crammer et al., 2006, Journal of Machine Learning Research 7, PA-I) is the smallest change
of the weights that meets it, so texts that share no words with a correction keep their answer.

    <workspace>/router/scorer.npz    the weights, and the digest of the ones they were made from
"""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Final

import numpy as np

from fairlead.api.context import Context
from fairlead.api.feedback import Label
from fairlead.api.labelled_problems import LabelledProblem
from fairlead.core.files import digest_bytes, write_bytes
from fairlead.router.decision import PART_OF_ROUTE, Decision, decide
from fairlead.router.features import BUCKETS
from fairlead.router.ordering import SHORT
from fairlead.router.scene import Scene, observe
from fairlead.router.scorer import Weights, logits_of, weigh

__all__ = ["fold", "forget_lessons", "label_of", "local_weights", "said", "write_lessons"]

_MARGIN: Final = 1.0
_PART_MARGIN: Final = math.log(PART_OF_ROUTE / (1 - PART_OF_ROUTE)) + 0.4
"""Log odds of a skill that belongs to a route: a little above those that make it a part."""
_CAP: Final = 0.5
"""Largest step of one update; what is wrong in the corrections moves the weights this far only."""
_ROUNDS: Final = 30
_NAMES: Final = {skill: name for name, skill in SHORT.items()}


def fold(base: Weights, corrections: Sequence[LabelledProblem], context: Context) -> Weights:
    """Return weights that answer the corrected problems as they should be, where they can.

    What a rule decides is left out: no weight changes it, and the attempt would move the answers
    of other problems.

    Args:
        base: The weights that ship; they are not changed.
        corrections: Problems with their right answers.
        context: Hears how far it is.
    """
    weights = replace(
        base,
        answer_weights=base.answer_weights.copy(),
        skill_weights=base.skill_weights.copy(),
    )
    context.progress.begin("fold the corrections in", _ROUNDS)
    scenes = [(observe(item.text), item.label) for item in corrections]
    open_to_learning = [pair for pair in scenes if not decide(pair[0], weights).by_rule]
    for _ in range(_ROUNDS):
        context.progress.advance()
        wrong = [pair for pair in open_to_learning if said(pair[0], weights) != pair[1]]
        if not wrong:
            break
        for scene, label in wrong:
            _teach(weights, scene, label)
    return weights


def said(scene: Scene, weights: Weights) -> Label:
    """Return what the router says to a text with these weights."""
    return label_of(decide(scene, weights))


def label_of(decision: Decision) -> Label:
    """Return a decision by its content alone."""
    verdict = decision.verdict
    return Label(
        kind=verdict.kind,
        skills=verdict.skills,
        redirect_to=verdict.redirect_to,
        ambiguity=verdict.question,
    )


def _teach(weights: Weights, scene: Scene, label: Label) -> None:
    """Move the weights just so far that the right answer leads.

    The biases stay: they count for every text, also for those that a correction is not about.
    """
    places, values = weigh(scene, weights.rarity)
    # The meaning of a text is shared with every other: only its own words are taught.
    buckets, values = places[places < BUCKETS], values[places < BUCKETS]
    logits = logits_of(scene, weights)
    size = max(float(values @ values), 1e-9) * logits.share
    right = _rows(label)
    others = [at for at, name in enumerate(weights.answers) if name not in right]
    rival = max(others, key=lambda at: logits.answers[at])
    for at in (weights.answers.index(name) for name in right):
        step = _step(float(logits.answers[at] - logits.answers[rival]), 2 * size)
        for row, sign in ((at, step), (rival, -step)):
            weights.answer_weights[row, buckets] += sign * values
    if label.kind != "route":
        return
    for row, name in enumerate(weights.skills):
        sign, margin = (1.0, _PART_MARGIN) if name in right else (-1.0, _MARGIN)
        step = sign * _step(sign * float(logits.skills[row]), size, margin)
        weights.skill_weights[row, buckets] += step * values


def _step(lead: float, size: float, margin: float = _MARGIN) -> float:
    return min(_CAP, max(0.0, margin - lead) / size)


def _rows(label: Label) -> tuple[str, ...]:
    if label.kind == "route":
        return tuple(_NAMES[skill] for skill in label.skills)
    return (f"?{label.ambiguity}",) if label.ambiguity else (f"!{label.redirect_to}",)


def write_lessons(weights: Weights, context: Context) -> Path:
    """Let the router of this workspace answer with what was learnt.

    Raises:
        WorkspaceError: The workspace cannot be written.
    """
    stream = io.BytesIO()
    np.savez_compressed(
        stream,
        base=np.array(_base_digest()),
        answers=np.array(weights.answers),
        skills=np.array(weights.skills),
        answer_weights=weights.answer_weights,
        answer_bias=weights.answer_bias,
        skill_weights=weights.skill_weights,
        skill_bias=weights.skill_bias,
        rarity=weights.rarity,
    )
    path = _path(context)
    write_bytes(path, stream.getvalue(), mode=0o600)
    return path


def forget_lessons(context: Context) -> bool:
    """Let the router answer as it was shipped; return whether anything had been learnt."""
    path = _path(context)
    was_there = path.is_file()
    path.unlink(missing_ok=True)
    return was_there


def local_weights(context: Context) -> Weights | None:
    """Return what this workspace has learnt; None when nothing, or from another version."""
    path = _path(context)
    if not path.is_file():
        return None
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as stored:
            if str(stored["base"]) != _base_digest():
                context.progress.note(
                    "what the router had learnt here was made with another version; "
                    "learn again with `fairlead router train`"
                )
                return None
            return Weights(
                answers=tuple(stored["answers"].tolist()),
                skills=tuple(stored["skills"].tolist()),
                answer_weights=stored["answer_weights"],
                answer_bias=stored["answer_bias"],
                skill_weights=stored["skill_weights"],
                skill_bias=stored["skill_bias"],
                rarity=stored["rarity"],
            )
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        context.progress.note(f"{path} cannot be read; learn again with `fairlead router train`")
        return None


def _path(context: Context) -> Path:
    return context.workspace.root / "router" / "scorer.npz"


def _base_digest() -> str:
    source = resources.files("fairlead.router") / "data" / "scorer.npz"
    return digest_bytes(source.read_bytes())
