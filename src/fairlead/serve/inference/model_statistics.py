"""What Triton's statistics extension tells of each version: counts and times since the start."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from fairlead.core.errors import NotFoundError

if TYPE_CHECKING:
    from fairlead.serve.inference.metrics import ArmTally
    from fairlead.serve.inference.service import Service

__all__ = ["MergedStatistics", "statistics_of"]

_NS = 1e6
"""Nanoseconds in a millisecond."""
_SAME = ("name", "version")


def statistics_of(
    service: Service, name: str | None = None, version: str | None = None
) -> dict[str, Any]:
    """Return what this worker counted, as the extension's JSON document.

    `compute_input` is what of an answer's time was neither the queue's nor the model's: decoding,
    checking and handing over. Answers are encoded after that, which is not measured:
    `compute_output` counts nothing.

    Args:
        service: Whose models are meant.
        name: The model; None for all.
        version: Its version; None for all of them.

    Raises:
        NotFoundError: There is no such model or version, or nothing is measured.
    """
    if service.metrics is None:
        raise NotFoundError("metrics are switched off", hint="serve with `--set metrics=true`")
    repository = service.repository
    counted: dict[tuple[str, str], list[ArmTally]] = {}
    for (model, of, _), tally in service.metrics.tallies().items():
        counted.setdefault((model, of), []).append(tally)
    entries = []
    for model in repository.names() if name is None else (name,):
        if version is not None:
            repository.bundle(model, version)  # raises where there is no such version
        known = dict.fromkeys(one for item, _ in repository.describe(model) for one in item.ids)
        for one in known if version is None else (version,):
            used = service.uses.of(model, [one])[1]
            arms = counted.get((model, one), [])
            entries.append(_entry(model, one, arms, used, has_cache=service.metrics.has_cache))
    return {"model_stats": entries}


def _entry(
    model: str, version: str, arms: list[ArmTally], used: float | None, *, has_cache: bool
) -> dict[str, Any]:
    ended = {how: _sum(arm.ended.get(how, (0, 0.0)) for arm in arms)
             for how in ("ran", "cached", "failed")}  # fmt: skip
    ran, cached, failed = (ended[how] for how in ("ran", "cached", "failed"))
    queue_ms, run_ms = (sum(getattr(arm, what).total for arm in arms) for what in ("queue", "run"))
    batches: dict[int, tuple[float, float]] = {}
    for arm in arms:
        for size, found in arm.batches.items():
            batches[size] = _sum((batches.get(size, (0, 0.0)), found))
    rest_ms = max(0.0, ran[1] - queue_ms - run_ms)
    return {
        **dict(zip(_SAME, (model, version), strict=True)),
        "last_inference": round((used or 0.0) * 1e3),
        "inference_count": sum(arm.rows for arm in arms),
        "execution_count": round(sum(count for count, _ in batches.values())),
        "inference_stats": {
            "success": _duration(ran[0] + cached[0], ran[1] + cached[1]),
            "fail": _duration(*failed),
            "queue": _duration(ran[0], queue_ms),
            "compute_input": _duration(ran[0], rest_ms),
            "compute_infer": _duration(ran[0], run_ms),
            "compute_output": _duration(0, 0.0),
            "cache_hit": _duration(*cached),
            "cache_miss": _duration(ran[0] if has_cache else 0, 0.0),
        },
        "batch_stats": [
            {
                "batch_size": size,
                "compute_input": _duration(0, 0.0),
                "compute_infer": _duration(*batches[size]),
                "compute_output": _duration(0, 0.0),
            }
            for size in sorted(batches)
        ],
    }


def _sum(parts: Iterable[tuple[float, float]]) -> tuple[float, float]:
    count = spent_ms = 0.0
    for one in parts:
        count, spent_ms = count + one[0], spent_ms + one[1]
    return count, spent_ms


def _duration(count: float, spent_ms: float) -> dict[str, int]:
    return {"count": round(count), "ns": round(spent_ms * _NS)}


class MergedStatistics:
    """Sums the statistics of workers; what ended workers counted stays counted."""

    def __init__(self) -> None:
        """Start with nothing."""
        self._latest: dict[int, Mapping[tuple[str, str], dict[str, Any]]] = {}
        self._ended: dict[tuple[str, str], dict[str, Any]] = {}

    def put(self, answers: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
        """Return one document.

        Args:
            answers: What each living worker says, by its place.
        """
        for place, said in answers.items():
            found = {(entry["name"], entry["version"]): entry for entry in said["model_stats"]}
            # Whoever asks for one model must not make the others forgotten.
            self._latest[place] = {**self._latest.get(place, {}), **found}
        asked = dict.fromkeys(
            (entry["name"], entry["version"])
            for said in answers.values()
            for entry in said["model_stats"]
        )
        parts = (self._ended, *self._latest.values())
        return {
            "model_stats": [
                _added([part[key] for part in parts if key in part]) for key in asked
            ]
        }  # fmt: skip

    def end(self, place: int) -> None:
        """Keep what a worker that ended had told."""
        for key, entry in self._latest.pop(place, {}).items():
            known = [self._ended[key]] if key in self._ended else []
            self._ended[key] = _added([*known, entry])


def _added(entries: list[dict[str, Any]]) -> dict[str, Any]:
    """Add what several workers say of one version."""
    total = {
        **{key: entries[0][key] for key in _SAME},
        "last_inference": max(entry["last_inference"] for entry in entries),
        **{
            key: sum(entry[key] for entry in entries)
            for key in ("inference_count", "execution_count")
        },
        "inference_stats": _added_durations([entry["inference_stats"] for entry in entries]),
    }
    batches: dict[int, list[dict[str, Any]]] = {}
    for entry in entries:
        for batch in entry["batch_stats"]:
            batches.setdefault(batch["batch_size"], []).append(
                {name: value for name, value in batch.items() if name != "batch_size"}
            )
    total["batch_stats"] = [
        {"batch_size": size, **_added_durations(batches[size])} for size in sorted(batches)
    ]
    return total


def _added_durations(parts: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        name: {unit: sum(part[name][unit] for part in parts) for unit in ("count", "ns")}
        for name in parts[0]
    }
