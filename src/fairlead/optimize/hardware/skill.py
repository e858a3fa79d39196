"""Tune a bundle to this machine, and say whether the model or the infrastructure is slow."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fairlead.backends.cpus import throttled_ratio, usable_cpus
from fairlead.backends.openvino import OPENVINO
from fairlead.backends.openvino_profile import profile_openvino
from fairlead.backends.operator_profile import profile_operators
from fairlead.backends.runners import open_runner
from fairlead.core.bundle import Bundle, RuntimeSettings, Scores, derive_bundle
from fairlead.core.comparison import ModelComparison
from fairlead.core.dataset import Dataset, bind
from fairlead.core.errors import ModelError
from fairlead.core.ports import Feeds, Progress, Runner, SilentProgress, first_dimension
from fairlead.core.report import Outcome
from fairlead.measure.comparison import (
    Comparison,
    SpeedTest,
    compare,
    decide,
    measure_speed,
    rows_for,
    stored_comparison,
)
from fairlead.measure.judging import Judge
from fairlead.measure.latency import Clocks, clocks_for, measure_interleaved
from fairlead.measure.quality import evaluate
from fairlead.measure.request_path import time_requests
from fairlead.measure.roofline import Roofline
from fairlead.measure.verdict import RequestTimes, Surroundings, find_bottleneck
from fairlead.optimize.hardware.candidates import (
    candidate_settings,
    own_provider,
    still_equal,
)
from fairlead.optimize.hardware.card import CARD
from fairlead.optimize.hardware.config import HardwareConfig
from fairlead.optimize.hardware.methods import METHODS, BatchStep, Tournament, grow_batch
from fairlead.optimize.hardware.refining import Refined, refine
from fairlead.optimize.hardware.sequences import SequenceAdvice, advise_on_padding
from fairlead.optimize.hardware.tuning import Tuning, refusal, tuning_outcome

__all__ = ["tune"]

_SHORT_RUN_MS = 0.05
"""Waking a thread takes some ten microseconds: shorter runs are tried on one thread only."""
_EQUAL_ROWS = 8
_COMPARED_ROWS = 256
_ROUNDING = 1e-4
"""Quality that a fused graph may lose to another order of additions."""
_PROFILERS = {"CPUExecutionProvider": profile_operators, OPENVINO: profile_openvino}


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
    says.begin("tune", 5)
    bench = _Bench(bundle, data, feeds, config, says, trust)
    tuning = bench.tune(requests, requests_from)
    budget = config.latency_budget_ms
    if budget is not None and tuning.steps[0].timing.latency_p99_ms > budget:
        return refusal(bundle, tuning, budget)
    derived = derive_bundle(
        bundle,
        out,
        made_by=CARD.id,
        change=_change(tuning),
        runtime=tuning.settings,
        model=tuning.refined.model,
        scores=bench.scores(),
        comparison=bench.stored(),
    )
    return tuning_outcome(bundle, derived, tuning, data.digest)


def _change(tuning: Tuning) -> str:
    settings = tuning.settings
    fused = "" if tuning.refined.model is None else ", operators fused"
    compiled = ", compiled by torch" if settings.torch_compile else ""
    return (
        f"tuned: {settings.intra_op_threads} thread(s), graph level "
        f"{settings.graph_optimization}, batches up to {settings.max_batch_size}{fused}{compiled}"
    )


class _Bench:
    """A bundle, its rows, and what was found out about them."""

    def __init__(
        self,
        bundle: Bundle,
        data: Dataset,
        feeds: Feeds,
        config: HardwareConfig,
        says: Progress,
        trust: bool,
    ) -> None:
        self.bundle, self.data, self.feeds = bundle, data, feeds
        self.config, self.says, self.trust = config, says, trust
        self.fused: Comparison | None = None

    def tune(self, requests: RequestTimes | None, requests_from: str) -> Tuning:
        """Measure everything; nothing is written."""
        bundle, config, feeds = self.bundle, self.config, self.feeds
        cpus = usable_cpus(config.max_threads)
        own = bundle.runtime.model_copy(update={"execution_provider": own_provider(bundle)})
        settings = candidate_settings(bundle, own, cpus, config.runtime)
        few = _few_rows(bundle, feeds)
        with still_equal(bundle, own, settings, few, self.trust) as (before, runners, left_out):
            contest = _contest(settings, runners, before, feeds, config)
            winner = contest.tournament.winner
            self.says.advance(2)
            timed = rows_for(before, feeds, contest.batch_rows if self._in_batches else 1)
            refined = self._refined(settings[winner], timed, few, before)
            self.says.advance()
            after = runners[winner]
            if refined.model is not None or refined.runtime != settings[winner]:
                after = _open_refined(bundle, refined)
            winning = self._winning(
                before, after, runtime=refined.runtime, requests=requests, rows=contest.batch_rows
            )
            if after is not runners[winner]:
                after.close()
            self.says.advance()
        roofline, no_roofline = self._roofline(timed, refined.runtime)
        self.says.advance()
        around = Surroundings(
            solo_run_ms=winning.speed.after.latency_p50_ms if requests is not None else None,
            throttled_ratio=throttled_ratio(),
            flops_ratio=None if roofline is None else roofline.peak_ratio,
        )
        padding = {} if winning.sequences is None else dict(winning.sequences.values)
        chosen = refined.runtime.model_copy(
            update={
                "max_batch_size": contest.batch_rows,
                "is_tuned": True,
                "padding": padding,
            }
        )
        return Tuning(
            settings=chosen,
            cpus=cpus,
            tournament=contest.tournament,
            steps=contest.steps,
            speed=winning.speed,
            requests=winning.requests,
            requests_from=requests_from,
            bottleneck=find_bottleneck(winning.requests, around, seed=config.seed),
            refined=refined,
            left_out=left_out,
            roofline=roofline,
            no_roofline=no_roofline,
            sequences=winning.sequences,
        )

    def _winning(
        self,
        before: Runner,
        after: Runner,
        *,
        runtime: RuntimeSettings,
        requests: RequestTimes | None,
        rows: int,
    ) -> _Winning:
        """Time the settings that won: beside the original, by request, and per length."""
        limit, feeds, seed = self.config.time_limit_s, self.feeds, self.config.seed
        clocks = clocks_for((own_provider(self.bundle), runtime.execution_provider))
        speed = measure_speed(
            before, after, feeds, time_limit_s=0.1 * limit, seed=seed, clocks=clocks
        )
        times = requests or time_requests(
            after, rows_for(after, feeds, 1), time_limit_s=0.05 * limit
        )
        sequences = advise_on_padding(
            after,
            {name: array[:_COMPARED_ROWS] for name, array in feeds.items()},
            batch_rows=rows,
            time_limit_s=0.1 * limit,
            seed=seed,
            clocks=_clocks(runtime),
        )
        return _Winning(speed=speed, requests=times, sequences=sequences)

    @property
    def _in_batches(self) -> bool:
        return self.config.goal == "throughput"

    def _refined(
        self, runtime: RuntimeSettings, batch: Feeds, few: Feeds, before: Runner
    ) -> Refined:
        return refine(
            self.bundle,
            runtime,
            batch,
            few,
            time_limit_s=0.15 * self.config.time_limit_s,
            is_as_good=lambda after: self._is_as_good(before, after),
        )

    def _is_as_good(self, before: Runner, after: Runner) -> bool:
        """Whether a rewritten graph answers as well, on rows and at the edges."""
        rows = self._compared()
        self.fused = compare(
            before,
            after,
            manifest=self.bundle.manifest,
            feeds={name: array[:_COMPARED_ROWS] for name, array in self.feeds.items()},
            labels=rows.labels,
            budget=_ROUNDING,
            sizes=(self.bundle.size_bytes, self.bundle.size_bytes),
            served_rows=self.bundle.runtime.max_batch_size,
            time_limit_s=0.05 * self.config.time_limit_s,
            seed=self.config.seed,
            judge=Judge(self.bundle.manifest, _ROUNDING, seed=self.config.seed),
            clocks=_clocks(self.bundle.runtime),
        )
        verdict, _ = decide(self.fused, goal="none")
        if verdict != "done":
            self.fused = None
        return verdict == "done"

    def _compared(self) -> Dataset:
        return self.data.take(slice(0, _COMPARED_ROWS))

    def stored(self) -> ModelComparison | None:
        """Return what the bundle keeps of a fused graph's comparison; None without one."""
        if self.fused is None:
            return None
        return stored_comparison(
            self.fused, parent_digest=self.bundle.digest, data_digest=self._compared().digest
        )

    def scores(self) -> Scores | None:
        """Return the scores of a fused graph; None where those of the parent stay."""
        rows = self._compared()
        if self.fused is None or rows.labels is None or self.bundle.manifest.task == "other":
            return None
        return evaluate(self.bundle.manifest, self.fused.outputs, rows.labels, rows.digest)

    def _roofline(self, batch: Feeds, runtime: RuntimeSettings) -> tuple[Roofline | None, str]:
        """Profile the operators with what runs the model, or say why that is not done."""
        kind, provider = self.bundle.manifest.kind, runtime.execution_provider
        profiler = _PROFILERS.get(provider)
        if kind != "onnx":
            return None, f"a {kind} model has no ONNX graph"
        if profiler is None:
            return None, f"{provider} gives no times per operator here"
        budget = 1e3 * 0.05 * self.config.time_limit_s
        try:
            return profiler(self.bundle.model_path, batch, runtime, budget_ms=budget), ""
        except ModelError as exc:
            return None, exc.message


def _few_rows(bundle: Bundle, feeds: Feeds) -> Feeds:
    """Return rows whose answers are compared; a model with a fixed batch gets its own."""
    fixed = next((s.shape[0] for s in bundle.signature.inputs if s.shape and s.shape[0] > 0), None)
    rows = [at % first_dimension(feeds) for at in range(fixed or _EQUAL_ROWS)]
    if fixed is None:
        rows = rows[: first_dimension(feeds)]
    return {spec.name: feeds[spec.name][rows] for spec in bundle.signature.inputs}


def _open_refined(bundle: Bundle, refined: Refined) -> Runner:
    from fairlead.backends.runners import open_onnx

    if refined.model is None:
        return open_runner(bundle, runtime=refined.runtime)
    return open_onnx(refined.model, refined.runtime, bundle.signature)


@dataclass(frozen=True)
class _Winning:
    """What the settings that won were measured to do."""

    speed: SpeedTest
    requests: RequestTimes
    sequences: SequenceAdvice | None


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
    clocks = _clocks(*(settings[name] for name in runners))
    tournament = method(runners, one, goal=config.goal, time_limit_s=0.35 * limit, clocks=clocks)
    fixed = _fixed_batch(before)
    steps = grow_batch(
        runners[tournament.winner],
        lambda n_rows: rows_for(before, feeds, n_rows),
        largest=1 if fixed else config.max_batch_size,
        latency_budget_ms=config.latency_budget_ms,
        time_limit_s=0.3 * limit,
        clocks=clocks,
    )
    best = [step.rows for step in steps if step.is_taken][-1]
    if config.goal == "throughput" and best > 1:
        batch = rows_for(before, feeds, best)
        tournament = method(
            runners, batch, goal=config.goal, time_limit_s=0.15 * limit, clocks=clocks
        )
    return _Contest(tournament, steps, fixed or best)


def _clocks(*settings: RuntimeSettings) -> Clocks:
    return clocks_for(one.execution_provider for one in settings)


def _is_short(runner: Runner, batch: Feeds) -> bool:
    """Whether a run is over before a second thread has woken up."""
    timing = measure_interleaved({"": lambda: runner.run(batch)}, blocks=5, time_limit_s=1.0)[""]
    return bool(timing.wall_ms.min() < _SHORT_RUN_MS)


def _fixed_batch(runner: Runner) -> int | None:
    """Return the batch size that the model itself prescribes, if it does."""
    shapes = (spec.shape for spec in runner.signature.inputs)
    return next((shape[0] for shape in shapes if shape and shape[0] > 0), None)
