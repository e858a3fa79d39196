"""Tune a bundle to this machine, and say whether the model or the infrastructure is slow."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from fairlead.backends.cpus import throttled_ratio, usable_cpus
from fairlead.backends.onnxruntime import available_providers
from fairlead.backends.openvino import OPENVINO, has_openvino
from fairlead.backends.runners import open_runner
from fairlead.core.bundle import Bundle, RuntimeSettings, derive_bundle
from fairlead.core.dataset import Dataset, bind
from fairlead.core.ports import Feeds, Progress, Runner, SilentProgress
from fairlead.core.report import Outcome
from fairlead.measure.comparison import measure_speed, rows_for
from fairlead.measure.latency import measure_interleaved
from fairlead.measure.request_path import time_requests
from fairlead.measure.verdict import RequestTimes, Surroundings, find_bottleneck
from fairlead.optimize.hardware.card import CARD
from fairlead.optimize.hardware.config import HardwareConfig
from fairlead.optimize.hardware.methods import METHODS, BatchStep, Tournament, grow_batch
from fairlead.optimize.hardware.tuning import Tuning, refusal, tuning_outcome

__all__ = ["tune"]

_SMALL_MODEL_BYTES = 256 * 2**20
"""Larger models are tried at one graph level only: every setting holds a copy in memory."""
_LEVELS = ("all", "basic")
_SHORT_RUN_MS = 0.05
"""Waking a thread takes some ten microseconds: shorter runs are tried on one thread only."""


def tune(
    bundle: Bundle,
    data: Dataset,
    config: HardwareConfig,
    *,
    out: Path,
    progress: Progress | None = None,
    requests: RequestTimes | None = None,
    requests_from: str = "in process, JSON by the standard library",
    trust: bool = False,
) -> Outcome[Bundle]:
    """Measure how a model runs best on this machine and write it down for serving.

    Args:
        bundle: What is tuned; it is not changed.
        data: Rows to run, typical ones.
        config: What is optimised, within which limits.
        out: Directory to create.
        progress: Hears how far the work is.
        requests: Times of real requests for the verdict; measured in process when None.
        requests_from: Where `requests` come from, for people.
        trust: Whether code and pickles that came with the model may run.

    Returns:
        `done` with the derived bundle, or `refused` with the original, and nothing written, when
        even a single row takes longer than the latency budget.

    Raises:
        DataError: The rows do not fit the model.
        ModelError: The model cannot be read or run.
        UntrustedError: Loading the model would run code, and `trust` is off.
        ConflictError: `out` exists.
        WorkspaceError: It cannot be written.
    """
    says = progress or SilentProgress()
    feeds = bind(data, bundle.signature, feature_columns=bundle.manifest.feature_columns)
    says.begin("tune", 4)
    tuning = _tune(bundle, feeds, config, says, requests, requests_from, trust)
    budget = config.latency_budget_ms
    if budget is not None and tuning.steps[0].timing.latency_p99_ms > budget:
        return refusal(bundle, tuning, budget)
    settings = tuning.settings
    derived = derive_bundle(
        bundle,
        out,
        made_by=CARD.id,
        change=f"tuned: {settings.intra_op_threads} thread(s), graph level "
        f"{settings.graph_optimization}, batches up to {settings.max_batch_size}",
        runtime=settings,
    )
    return tuning_outcome(bundle, derived, tuning, data.digest)


def _tune(
    bundle: Bundle,
    feeds: Feeds,
    config: HardwareConfig,
    says: Progress,
    requests: RequestTimes | None,
    requests_from: str,
    trust: bool,
) -> Tuning:
    cpus, limit = usable_cpus(config.max_threads), config.time_limit_s
    own = bundle.runtime.model_copy(update={"execution_provider": _provider(bundle)})
    settings = _settings(bundle, own, cpus)
    with _open_all(bundle, {"own": own, **settings}, trust) as runners:
        before = runners.pop("own")
        contest = _contest(settings, runners, before, feeds, config)
        says.advance(2)
        after = runners[contest.tournament.winner]
        speed = measure_speed(before, after, feeds, time_limit_s=0.15 * limit, seed=config.seed)
        says.advance()
        one = rows_for(after, feeds, 1)
        times = requests or time_requests(after, one, time_limit_s=0.05 * limit)
        says.advance()
    around = Surroundings(
        solo_run_ms=speed.after.latency_p50_ms if requests is not None else None,
        throttled_ratio=throttled_ratio(),
    )
    chosen = settings[contest.tournament.winner].model_copy(
        update={"max_batch_size": contest.batch_rows, "is_tuned": True}
    )
    return Tuning(
        settings=chosen,
        cpus=cpus,
        tournament=contest.tournament,
        steps=contest.steps,
        speed=speed,
        requests=times,
        requests_from=requests_from,
        bottleneck=find_bottleneck(times, around, seed=config.seed),
    )


@dataclass(frozen=True)
class _Contest:
    tournament: Tournament
    steps: tuple[BatchStep, ...]
    batch_rows: int


def _contest(
    settings: dict[str, RuntimeSettings],
    runners: dict[str, Runner],
    before: Runner,
    feeds: Feeds,
    config: HardwareConfig,
) -> _Contest:
    """Choose threads and graph level on one row, grow the batch, choose again if it matters."""
    method, limit = METHODS[config.method], config.time_limit_s
    one = rows_for(before, feeds, 1)
    if _is_short(before, one):
        single = {name for name, its in settings.items() if (its.intra_op_threads or 1) == 1}
        runners = {name: runner for name, runner in runners.items() if name in single} or runners
    tournament = method(runners, one, goal=config.goal, time_limit_s=0.35 * limit)
    fixed = _fixed_batch(before)
    steps = grow_batch(
        runners[tournament.winner],
        lambda n_rows: rows_for(before, feeds, n_rows),
        largest=1 if fixed else config.max_batch_size,
        latency_budget_ms=config.latency_budget_ms,
        time_limit_s=0.3 * limit,
    )
    best = [step.rows for step in steps if step.is_taken][-1]
    if config.goal == "throughput" and best > 1:
        batch = rows_for(before, feeds, best)
        tournament = method(runners, batch, goal=config.goal, time_limit_s=0.15 * limit)
    return _Contest(tournament, steps, fixed or best)


def _is_short(runner: Runner, batch: Feeds) -> bool:
    """Whether a run is over before a second thread has woken up."""
    timing = measure_interleaved({"": lambda: runner.run(batch)}, blocks=5, time_limit_s=1.0)[""]
    return bool(timing.wall_ms.min() < _SHORT_RUN_MS)


def _fixed_batch(runner: Runner) -> int | None:
    """Return the batch size that the model itself prescribes, if it does."""
    shapes = (spec.shape for spec in runner.signature.inputs)
    return next((shape[0] for shape in shapes if shape and shape[0] > 0), None)


def _provider(bundle: Bundle) -> str:
    """Return the bundle's execution provider, or the CPU where this machine lacks it."""
    wanted = bundle.runtime.execution_provider
    if bundle.manifest.kind != "onnx":
        return wanted
    present = (*available_providers(), *((OPENVINO,) if has_openvino() else ()))
    return wanted if wanted in present else "CPUExecutionProvider"


def _settings(bundle: Bundle, own: RuntimeSettings, cpus: int) -> dict[str, RuntimeSettings]:
    """Return the settings to compare, the most frugal first.

    Idle threads never spin: under a CPU quota, or beside another session, spinning multiplies the
    CPU time of a run without making it faster.
    """
    if bundle.manifest.kind != "onnx":
        return {"as packed": own}
    threads = sorted({min(2**power, cpus) for power in range(cpus.bit_length() + 1)})
    levels = _LEVELS if bundle.size_bytes <= _SMALL_MODEL_BYTES else _LEVELS[:1]
    return {
        f"{count} thread{'s' if count > 1 else ''}, graph level {level}": own.model_copy(
            update={
                "intra_op_threads": count,
                "graph_optimization": level,
                "allow_spinning": False,
            }
        )
        for count in threads
        for level in levels
    }


@contextmanager
def _open_all(
    bundle: Bundle, settings: dict[str, RuntimeSettings], trust: bool
) -> Iterator[dict[str, Runner]]:
    with ExitStack() as stack:
        runners = {}
        for name, one in settings.items():
            runners[name] = open_runner(bundle, runtime=one, trust=trust)
            stack.callback(runners[name].close)
        yield runners
