"""Binds a route to concrete steps with their settings, gates and expected artefacts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fairlead.api.blueprints import CANDIDATE_MAKERS, blueprint_of, check_settings
from fairlead.api.context import Context
from fairlead.api.routing import ask
from fairlead.core.artifact import Artifact
from fairlead.core.errors import PlanError, RefusedError, UntrustedError
from fairlead.core.files import scratch_folder
from fairlead.core.plan import Plan, PlanStep
from fairlead.router import Question, Redirect, Route

__all__ = ["plan"]

_ROLLOUT = "deployment-strategies"
_COMPRESS = "model-compression-techniques"
_QUANTIZE = "quantization-for-inference"
_RELEASE = "mlops-pipeline-automation"
_SCALE = "scaling-and-load-balancing"
_MONITOR = "production-monitoring-and-alerting"
_RATE = re.compile(
    r"(?P<number>\d{1,3}(?:,\d{3})+|\d{1,6}(?:\.\d+)?)\s*(?P<k>k?)\s*"
    r"(?:rps\b|qps\b|(?:requests?|queries|predictions|req)\s*(?:/|per\s|a\s|each\s)\s*s)"
)
_MAKERS = ("pack", *CANDIDATE_MAKERS, _ROLLOUT)


def plan(
    text: str,
    *,
    model: str,
    data: str,
    labels: str | None = None,
    answers: Sequence[str] = (),
    stream: str | None = None,
    name: str | None = None,
    features: Sequence[str] = (),
    trust: bool = False,
    context: Context | None = None,
) -> Plan:
    """Turn a problem in the user's words into steps on the user's own model.

    Args:
        text: The problem.
        model: Reference of the model: a path or an import string.
        data: Reference of held-back rows: Parquet, CSV, JSONL or npz.
        labels: Column of the labels; without it quality is agreement with the original.
        answers: Answers to the router's questions, in order.
        stream: Rows that the monitoring step sends and watches.
        name: Name of the model and the service; from the file's name when None.
        features: Columns of the model's single input, in order; found when empty.
        trust: Whether code and pickles that came with the model may run.
        context: Workspace and progress; opened from the environment when None.

    Raises:
        PlanError: A question of the router is open, or the model or data do not exist.
        RefusedError: The problem belongs to a neighbour.
        ModelError: The model cannot be opened.
        UntrustedError: Opening it would run code that came with it, and `trust` is off.
        DataError: The rows cannot be read, or do not fit the model.
    """
    answer = ask(text, answers=answers, model=model, context=context)
    if isinstance(answer, Question):
        raise PlanError(
            f"one question is open: {answer.question} [{answer.ambiguity}]",
            hint="add --answer with one of " + ", ".join(option.id for option in answer.options),
        )
    if isinstance(answer, Redirect):
        raise RefusedError(
            f"this belongs to {answer.redirect_to}: {answer.reason}",
            hint=answer.come_back or "come back when it is about a trained model",
        )
    _check_material(model, data, labels, stream, features, trust=trust)
    return Plan(
        problem=text,
        answers=tuple(answers),
        route=tuple(step.skill for step in answer.skills),
        model=model,
        data=data,
        labels=labels,
        steps=_steps(
            answer,
            {
                "pack": _pack_settings(name or _name_of(model), features, trust=trust),
                _SCALE: _rate_settings(text),
                _MONITOR: {} if stream is None else {"stream": stream},
            },
        ),
    )


def _check_material(
    model: str,
    data: str,
    labels: str | None,
    stream: str | None,
    features: Sequence[str],
    *,
    trust: bool,
) -> None:
    """Open the model as packing will, and read the rows: a plan that cannot run is not made."""
    from fairlead.backends.datasets import load_dataset
    from fairlead.backends.intake import take_in

    artifact = Artifact.from_reference(model)
    rows = load_dataset(data, labels=labels)
    if stream is not None:
        load_dataset(stream)
    try:
        with scratch_folder("plan") as folder:
            take_in(artifact, rows, folder, trust=trust, features=features).runner.close()
    except UntrustedError as exc:
        raise UntrustedError(
            exc.message, hint="if you know where it comes from, plan again with --trust"
        ) from exc


def _pack_settings(name: str, features: Sequence[str], *, trust: bool) -> dict[str, Any]:
    settings: dict[str, Any] = {"name": _service_name(name)}
    if features:
        settings["features"] = list(features)
    return {**settings, "trust": True} if trust else settings


def _rate_settings(text: str) -> dict[str, Any]:
    """Take the rate from words like "500 requests per second"; without one the default stands."""
    found = _RATE.search(text.lower())
    if found is None:
        return {}
    thousands = 1000.0 if found["k"] else 1.0
    return {"target_rps": float(found["number"].replace(",", "")) * thousands}


def _steps(route: Route, settings: Mapping[str, Mapping[str, Any]]) -> tuple[PlanStep, ...]:
    wanted: dict[str, str] = {step.skill: step.reason for step in route.skills}
    order: list[str] = ["pack", *wanted]
    added = _missing_candidate(list(wanted))
    place = min((order.index(skill) for skill in _after_candidate(wanted)), default=len(order))
    order[place:place] = added
    _release_last_bundle(order)
    _compress_floats(order)
    return tuple(_step(uses, wanted.get(uses), settings.get(uses, {})) for uses in order)


def _missing_candidate(skills: Sequence[str]) -> list[str]:
    if _ROLLOUT not in skills or any(skill in CANDIDATE_MAKERS for skill in skills):
        return []
    return ["quantization-for-inference", "hardware-optimization-strategies"]


def _release_last_bundle(order: list[str]) -> None:
    """Let the step that releases a bundle stand after every step that makes or chooses one."""
    if _RELEASE not in order:
        return
    last = max(place for place, uses in enumerate(order) if uses in _MAKERS)
    if order.index(_RELEASE) < last:
        order.remove(_RELEASE)
        order.insert(last, _RELEASE)


def _compress_floats(order: list[str]) -> None:
    """Let compression stand before quantization: it factorises weights that are still floats."""
    if _COMPRESS in order and _QUANTIZE in order:
        first, second = sorted((order.index(_COMPRESS), order.index(_QUANTIZE)))
        order[first], order[second] = _COMPRESS, _QUANTIZE


def _after_candidate(wanted: Mapping[str, str]) -> list[str]:
    return [skill for skill in wanted if skill in {_ROLLOUT, "model-serving-patterns"}]


def _name_of(model: str) -> str:
    return Path(model).stem if Path(model).exists() else "model"


def _service_name(name: str) -> str:
    safe = "".join(char if char.isalnum() else "-" for char in name.lower()).strip("-")
    return safe or "model"


def _step(uses: str, reason: str | None, settings: Mapping[str, Any]) -> PlanStep:
    blueprint = blueprint_of(uses)
    merged = {**blueprint.settings, **settings}
    check_settings(uses, merged)
    is_added = reason is None and uses != "pack"
    return PlanStep(
        id=blueprint.id,
        uses=uses,
        why=reason or blueprint.why,
        settings=merged,
        gate="keep" if is_added else "stop",
        gives=blueprint.gives,
    )
