"""After threads and graph level: fused operators, memory arena, bound inputs; each must pay."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from fairlead.backends.onnx_fusion import fuse_transformer
from fairlead.backends.runners import open_onnx, open_runner
from fairlead.core.bundle import Bundle, RuntimeSettings
from fairlead.core.errors import FairleadError
from fairlead.core.ports import Feeds, Runner
from fairlead.measure.latency import Ratio, measure_interleaved, speedup
from fairlead.optimize.hardware.candidates import agree

__all__ = ["Refined", "Refinement", "refine"]

_CPU = "CPUExecutionProvider"
_WORTH_IT = 1.02
"""The lower end of the interval must show 2 %: a change that nobody would notice is not made."""


@dataclass(frozen=True)
class Refinement:
    """One change that was tried on the chosen settings.

    Attributes:
        name: What it is.
        ratio: How many times as fast, by CPU time; None where it was not measured.
        is_taken: Whether it stays.
        why: Why it was not measured, or not taken; empty when it stays.
    """

    name: str
    ratio: Ratio | None
    is_taken: bool
    why: str = ""


@dataclass(frozen=True)
class Refined:
    """What came of all of them.

    Attributes:
        runtime: The settings.
        model: The fused model; None when the graph stays as it is.
        steps: What was tried.
    """

    runtime: RuntimeSettings
    model: bytes | None = field(default=None, repr=False)
    steps: tuple[Refinement, ...] = ()


def refine(
    bundle: Bundle,
    runtime: RuntimeSettings,
    batch: Feeds,
    rows: Feeds,
    *,
    time_limit_s: float,
    is_as_good: Callable[[Runner], bool],
) -> Refined:
    """Try further changes one after the other, each against the best so far.

    Args:
        bundle: The model.
        runtime: Settings that won the tournament.
        batch: Rows whose time counts.
        rows: Rows whose answers must stay the same.
        time_limit_s: Time for all measurements together.
        is_as_good: Says of a rewritten model whether it answers as well at the edges and on all
            rows.
    """
    if bundle.manifest.kind != "onnx" or runtime.execution_provider != _CPU:
        return Refined(runtime)
    state = Refined(runtime)
    limit = time_limit_s / 3
    found = fuse_transformer(bundle.model_path)
    if found is not None:
        model, gained = found
        name = "fused " + ", ".join(f"{count} {kind}" for kind, count in gained.items())
        state = _try(bundle, state, name, runtime, model, batch, rows, limit, is_as_good)
    for name, change in (
        ("memory arena off", {"use_arena": False}),
        ("inputs and outputs bound", {"io_binding": True}),
    ):
        changed = state.runtime.model_copy(update=change)
        state = _try(bundle, state, name, changed, state.model, batch, rows, limit, None)
    return state


def _try(
    bundle: Bundle,
    state: Refined,
    name: str,
    runtime: RuntimeSettings,
    model: bytes | None,
    batch: Feeds,
    rows: Feeds,
    limit: float,
    is_as_good: Callable[[Runner], bool] | None,
) -> Refined:
    """Return the state with one more step, and with the change if it pays."""
    runners: list[Runner] = []
    try:
        runners.append(_open(bundle, state.model, state.runtime))
        runners.append(_open(bundle, model, runtime))
        step = _measure(name, runners[0], runners[1], batch, rows, limit, is_as_good)
    except FairleadError as exc:
        step = Refinement(name, None, False, exc.message)
    finally:
        for runner in runners:
            runner.close()
    steps = (*state.steps, step)
    if step.is_taken:
        return Refined(runtime, model, steps)
    return Refined(state.runtime, state.model, steps)


def _open(bundle: Bundle, model: bytes | None, runtime: RuntimeSettings) -> Runner:
    if model is None:
        return open_runner(bundle, runtime=runtime)
    return open_onnx(model, runtime, bundle.signature)


def _measure(
    name: str,
    before: Runner,
    after: Runner,
    batch: Feeds,
    rows: Feeds,
    limit: float,
    is_as_good: Callable[[Runner], bool] | None,
) -> Refinement:
    if not agree(before.run(rows), after.run(rows)):
        return Refinement(name, None, False, "it answers otherwise than the original")
    timings = measure_interleaved(
        {"before": lambda: before.run(batch), "after": lambda: after.run(batch)},
        blocks=20,
        time_limit_s=limit,
    )
    ratio = speedup(timings["before"], timings["after"])
    if ratio.ci_low <= _WORTH_IT:
        return Refinement(name, ratio, False, "it does not pay beyond noise")
    if is_as_good is not None and not is_as_good(after):
        return Refinement(name, ratio, False, "it answers worse on some rows or at the edges")
    return Refinement(name, ratio, True)
