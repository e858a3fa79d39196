"""One question, one answer: the best version of a model within a budget, found, proved, written.

The model is profiled; what may help is tried with the verbs tune, quantize and compress on one
part of the rows; every version that results is measured and judged beside the original on the
rest, on which nothing was chosen.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import Field

from fairlead.api.auto_journal import Journal, TrialResult
from fairlead.api.auto_measuring import (
    Contest,
    Entrant,
    FullBatch,
    Terms,
    hold_contest,
    measure_full_batch,
)
from fairlead.api.auto_plan import (
    Device,
    PlannedTrial,
    Target,
    on_cuda,
    plan_trials,
    profile_model,
)
from fairlead.api.auto_report import AutoRun, auto_outcome
from fairlead.api.auto_shipping import Shipped, measure_shipped
from fairlead.api.context import Context
from fairlead.api.optimizing import _begin
from fairlead.core.bundle import Bundle, RuntimeSettings, copy_bundle, derive_bundle
from fairlead.core.dataset import Dataset, bind
from fairlead.core.errors import (
    ConfigError,
    ConflictError,
    DataError,
    MissingExtraError,
    ModelError,
)
from fairlead.core.files import digest_bytes, digest_file
from fairlead.core.ports import Progress
from fairlead.core.report import Outcome
from fairlead.core.values import Config
from fairlead.measure.answers import check_labels
from fairlead.measure.comparison import rows_for, stored_comparison
from fairlead.measure.judging import Judge
from fairlead.measure.quality import evaluate, run_batches

__all__ = ["AutoConfig", "optimize_auto"]

_MADE_BY = "optimize-auto"
_LAST_SHARE = 0.4
_FEWEST_TO_DIVIDE = 40
_MOST_PASSES = 4.0
_TRIAL_PASSES = 0.6
"""What a trial usually takes: two versions judged by the search, one confirmed."""
_SEARCH_PART, _CONFIRM_PART = 0.25, 0.5
"""Shares of a trial's rows that a version is judged on, at most."""


class AutoConfig(Config):
    """What the search may cost, and what it looks for."""

    max_drop: float = Field(0.01, ge=0, le=1)
    """Budget, as a ratio; what it is measured in says `metric`."""
    metric: str = Field("auto", min_length=1)
    """`auto` (labels, else agreement), `cosine`, `neighbours`, or `module:function`."""
    target: Target = "latency"
    """What must get better."""
    device: Device = "cpu"
    """Where it will run: `edge` is one thread of ONNX Runtime; `cuda` needs its provider."""
    allow_unproven: bool = True
    """Whether a measured drop within the budget is enough when rows are too few for a proof."""
    max_rows: int = Field(10_000, ge=1)
    """Most rows that are used; more are sampled down."""
    time_limit_s: float = Field(10.0, gt=0, le=600)
    """Longest time for one comparison of speed, in seconds."""
    seed: int = Field(0, ge=0)
    """Seed of sampling, training and intervals."""


def optimize_auto(
    model: str | Path,
    data: str | Path,
    *,
    labels: str | None = None,
    out: str | Path,
    trust: bool = False,
    settings: Mapping[str, Any] | None = None,
    context: Context | None = None,
) -> Outcome[Bundle]:
    """Make a model better for a target, whatever it takes, within a budget of quality.

    Beside `out` a folder `OUT.search` keeps the journal, so that the same command goes on where it
    was killed, and afterwards the versions on the Pareto front.

    Args:
        model: A bundle, or a model, which is packed first.
        data: Reference of rows the model was not trained on.
        labels: Column of the labels; the bundle's own label column when None and it is there.
        out: Directory to create.
        trust: Whether code that came with the model may run.
        settings: Settings of `AutoConfig`.
        context: Workspace and progress; opened from the environment when None.

    Returns:
        `done` with the winner, or `kept` with a copy of the original when nothing helps.

    Raises:
        ConfigError: A setting is unknown or out of range, or the device is not there.
        DataError: The rows do not fit, or the metric cannot be computed on them.
        ModelError: The model cannot be read or run.
        ConflictError: `out` exists, or another search for it runs.
        WorkspaceError: It cannot be written.
    """
    from fairlead.backends.locks import exclusive

    config = AutoConfig.parse(settings or {})
    ctx = (context or Context.open()).ready_to_record()
    packed, rows, target = _begin(model, data, labels, out, trust, ctx)
    # Two searches in one folder would take each other's versions away.
    key = digest_bytes(str(target.resolve()).encode()).removeprefix("sha256:")[:12]
    with exclusive(ctx.workspace.database_url, f"search-{target.name[:60]}-{key}"):
        search = _Search.prepare(packed, rows, config, target, trust, ctx.progress)
        return ctx.record(search.run(target))


@dataclass(frozen=True)
class _Rows:
    """Rows for the trials, and those for the last word."""

    work: Dataset
    last: Dataset
    are_divided: bool


@dataclass(frozen=True)
class _Search:
    """A search from its first measurement to its last."""

    start: Bundle
    rows: _Rows
    config: AutoConfig
    judge: Judge
    journal: Journal
    trust: bool
    says: Progress

    @classmethod
    def prepare(
        cls, start: Bundle, data: Dataset, config: AutoConfig, out: Path, trust: bool,
        says: Progress,
    ) -> _Search:  # fmt: skip
        from fairlead.backends.imports import load_attribute
        from fairlead.measure.acceptance import held_back_rows

        if config.device == "cuda":
            start = on_cuda(start, out)
        function = load_attribute(config.metric) if ":" in config.metric else None
        if function is None and config.metric not in ("auto", "cosine", "neighbours"):
            raise ConfigError(
                f"there is no metric `{config.metric}`",
                hint="choose auto, cosine or neighbours, or name a function as module:function",
            )
        if data.labels is not None and start.manifest.task != "other":
            check_labels(data.labels)
        rows = held_back_rows(data, max_rows=config.max_rows, seed=config.seed)
        parts = _Rows(rows, rows, False)
        if rows.n_rows >= _FEWEST_TO_DIVIDE:
            last, work = rows.split(_LAST_SHARE, seed=config.seed)
            parts = _Rows(work, last, True)
        facts = {"model": start.digest, "rows": rows.digest, "config": config.model_dump()}
        judge = Judge(start.manifest, config.max_drop, config.metric, function, config.seed)
        folder = out.with_name(out.name + ".search")
        return cls(start, parts, config, judge, Journal(folder, facts), trust, says)

    def run(self, out: Path) -> Outcome[Bundle]:
        """Profile, try, measure, decide, write."""
        self._check_metric()
        profile = profile_model(self.start, self._batch())
        plan = plan_trials(
            profile,
            target=self.config.target,
            device=self.config.device,
            limits=self._limits(),
            has_labels=self.rows.work.labels is not None,
        )
        self.says.begin("optimize", sum(trial.is_tried for trial in plan) + 2)
        results: dict[str, TrialResult] = {}
        for trial in plan:
            if trial.is_tried:
                results[trial.id] = self._tried(trial, results)
                self.says.note(f"{trial.id}: {results[trial.id].summary}")
                self.says.advance()
        contest = self._contest(results)
        self.says.advance()
        made, shipped = self._write(contest, results, out)
        self.says.advance()
        again = 0 if shipped is None else shipped.evaluations
        run = AutoRun(
            start=self.start, made=made, config=self.config.model_dump(), profile=profile,
            plan=plan, results=results, contest=contest, n_rows=self.rows.last.n_rows,
            passes=self._passes(results, len(contest.comparisons) + again),
            reused=self.journal.reused, shipped=shipped,
            are_divided=self.rows.are_divided, folder=self.journal.folder,
            data_digest=self.rows.last.digest,
        )  # fmt: skip
        self._tidy(contest, results)
        return auto_outcome(run)

    def _check_metric(self) -> None:
        """Judge the original against itself: a metric that cannot do that can do nothing."""
        from fairlead.backends.runners import open_runner

        feeds = self._feeds(self.rows.last)
        runner = open_runner(self.start, trust=self.trust)
        try:
            answers = run_batches(runner, feeds, self.start.runtime.max_batch_size)
        finally:
            runner.close()
        self.judge(answers, answers, self.rows.last.labels)

    def _feeds(self, rows: Dataset) -> dict[str, Any]:
        columns = self.start.manifest.feature_columns
        return bind(rows, self.start.signature, feature_columns=columns)

    def _batch(self) -> dict[str, Any]:
        """Return the batch that is profiled."""
        from fairlead.backends.runners import open_runner

        runner = open_runner(self.start, trust=self.trust)
        try:
            return rows_for(runner, self._feeds(self.rows.work), self._timed_rows)
        finally:
            runner.close()

    @property
    def _timed_rows(self) -> int:
        """Rows per call whose time counts."""
        return self._full_batch if self.config.target == "throughput" else 1

    @cached_property
    def _full_batch(self) -> int:
        """Rows of a full batch; measured once, as what is tried later depends on it."""
        return self.journal.once(
            "full batch",
            {},
            FullBatch,
            lambda: measure_full_batch(self.start, self.rows.work, trust=self.trust),
        ).rows

    def _limits(self) -> dict[str, Any]:
        config = self.config
        return {
            "max_drop": config.max_drop,
            "metric": config.metric,
            "allow_unproven": config.allow_unproven,
            "max_rows": config.max_rows,
            "time_limit_s": config.time_limit_s,
            "batch_rows": self._timed_rows,
            "seed": config.seed,
        }

    def _tried(self, trial: PlannedTrial, results: Mapping[str, TrialResult]) -> TrialResult:
        parent = self.start
        if not self._may_go_on(results):
            summary = "not tried: judging it would take more than four full evaluations in sum"
            return TrialResult(trial=trial.id, verdict="kept", summary=summary)
        if trial.starts_from is not None:
            before = results[trial.starts_from]
            if before.verdict != "done" or before.bundle is None:
                summary = f"there is no result of `{trial.starts_from}` to go on with"
                return TrialResult(trial=trial.id, verdict="kept", summary=summary)
            parent = Bundle.open(self.journal.folder / before.bundle)
        settings = {"parent": parent.digest, **trial.settings}
        return self.journal.once(
            trial.id, settings, TrialResult, lambda: self._attempt(trial, parent)
        )

    def _attempt(self, trial: PlannedTrial, parent: Bundle) -> TrialResult:
        place = self.journal.place(trial.id)
        try:
            outcome = self._verb(trial, parent, place)
        except (ConfigError, ConflictError):
            raise
        except (ModelError, DataError, MissingExtraError) as exc:
            return TrialResult(trial=trial.id, verdict="failed", summary=exc.message)
        report = outcome.report
        is_made = report.verdict == "done"
        return TrialResult(
            trial=trial.id,
            verdict=report.verdict,
            summary=report.summary,
            bundle=place.name if is_made else None,
            digest=outcome.noun.digest if is_made else None,
            evaluations=int(report.details.get("evaluations", 0)),
            confirmations=int(report.details.get("confirmations", 0)),
            change=str(report.details.get("change", "")),
        )

    def _verb(self, trial: PlannedTrial, parent: Bundle, place: Path) -> Outcome[Bundle]:
        quiet = _Quiet(self.says)
        if trial.verb == "tune":
            from fairlead.optimize import hardware

            tuning = hardware.HardwareConfig.parse(self._tuning(trial.settings))
            return hardware.tune(
                parent, self.rows.work, tuning, out=place, progress=quiet, trust=self.trust
            )
        if trial.verb == "quantize":
            from fairlead.optimize import quantization

            known = set(quantization.QuantizationConfig.model_fields)
            chosen = {key: value for key, value in trial.settings.items() if key in known}
            quantizing = quantization.QuantizationConfig.parse(chosen)
            return quantization.quantize(
                parent, self.rows.work, quantizing, out=place, progress=quiet
            )
        from fairlead.optimize import compression

        known = set(compression.CompressionConfig.model_fields)
        chosen = {key: value for key, value in trial.settings.items() if key in known}
        compressing = compression.CompressionConfig.parse(chosen)
        rows = self.rows.work
        if trial.by_agreement:
            rows = replace(rows, labels=None, label_name=None)
        return compression.compress(parent, rows, compressing, out=place, progress=quiet)

    def _tuning(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        limit = min(max(self.config.time_limit_s, 1.0), 600.0)
        return {"time_limit_s": limit, "seed": self.config.seed, **settings}

    def _contest(self, results: Mapping[str, TrialResult]) -> Contest:
        tuned = self._opened(results.get("tuned"))
        entrants = [Entrant("original", self.start, self.start.runtime)]
        for name, result in results.items():
            bundle = self._opened(result)
            if bundle is not None:
                entrants.append(Entrant(name, bundle, _runtime(bundle, tuned)))
        # A faster version may gain from larger batches than the original does.
        batch = self._full_batch
        if tuned is not None and self.config.target != "throughput":
            batch = tuned.runtime.max_batch_size
        batch_rows = min(max(batch, 1), self._full_batch)
        return hold_contest(tuple(entrants), self._terms(batch_rows, 2 * self.config.time_limit_s))

    def _terms(self, batch_rows: int, time_limit_s: float) -> Terms:
        return Terms(
            rows=self.rows.last,
            judge=self.judge,
            target=self.config.target,
            batch_rows=batch_rows,
            time_limit_s=time_limit_s,
            allow_unproven=self.config.allow_unproven,
            trust=self.trust,
            seed=self.config.seed,
        )

    def _opened(self, result: TrialResult | None) -> Bundle | None:
        if result is None or result.bundle is None:
            return None
        return Bundle.open(self.journal.folder / result.bundle)

    def _write(
        self, contest: Contest, results: Mapping[str, TrialResult], out: Path
    ) -> tuple[Bundle, Shipped | None]:
        """Write the winner with settings of its own, or the original."""
        if contest.winner == contest.original:
            return copy_bundle(self.start, out), None
        won = self._opened(results[contest.winner])
        assert won is not None  # noqa: S101 (only what was made took part)
        shipped = self._shipped(contest, won, self._opened(results.get("tuned")))
        runtime = won.runtime if shipped is None else shipped.runtime
        comparison = contest.comparisons[contest.winner]
        is_same = _model_digest(won) == _model_digest(self.start)
        scores = None
        if not is_same and self.rows.last.labels is not None and won.manifest.task != "other":
            scores = evaluate(
                won.manifest, comparison.outputs, self.rows.last.labels, self.rows.last.digest
            )
        stored = stored_comparison(
            comparison, parent_digest=self.start.digest, data_digest=self.rows.last.digest
        )
        single = contest.single[contest.winner] if shipped is None else shipped.single[1]
        made_of = won.comparison()
        layers = () if made_of is None else made_of.layers
        changes = won.provenance.changes[len(self.start.provenance.changes) :]
        how = f"threads {runtime.intra_op_threads or 1}, batches up to {runtime.max_batch_size}"
        made = derive_bundle(
            self.start,
            out,
            made_by=_MADE_BY,
            change="; ".join((*changes, how)),
            model=None if is_same else won.model_path.read_bytes(),
            scores=scores,
            runtime=runtime,
            packages=won.provenance.packages,
            comparison=stored.model_copy(
                update={"speedup_ratio": single.speedup.value, "layers": layers}
            ),
        )
        return made, shipped

    def _shipped(self, contest: Contest, won: Bundle, tuned: Bundle | None) -> Shipped | None:
        """Tune the winner: what was tuned on the original need not fit a model ten times faster."""
        if contest.winner == "tuned":
            return None  # it was measured as it ships
        goal = "throughput" if self.config.target == "throughput" else "latency"
        settings: dict[str, Any] = {"goal": goal}
        if self.config.device == "edge":
            settings |= {"max_threads": 1, "max_batch_size": 1, "runtime": "onnxruntime"}
        trial = PlannedTrial("winner, tuned", "tune", "", settings=settings)
        facts = {"parent": won.digest, **settings}
        result = self.journal.once(trial.id, facts, TrialResult, lambda: self._attempt(trial, won))
        own = self._opened(result)
        kept = _runtime(won, tuned)
        settled = (kept, kept if own is None else own.runtime)
        batch_rows = next(iter(contest.batch.values())).rows_per_call
        terms = self._terms(batch_rows, self.config.time_limit_s)
        return measure_shipped(self.start, won, settled, terms)

    def _passes(self, results: Mapping[str, TrialResult], n_last: int) -> float:
        """Return how often, in sum, all rows were run to judge a version.

        Args:
            results: Trials that were made.
            n_last: Versions that are judged on the last rows.
        """
        work, last = self.rows.work.n_rows, self.rows.last.n_rows
        whole = work + last if self.rows.are_divided else work
        part = sum(
            _SEARCH_PART * one.evaluations + _CONFIRM_PART * one.confirmations
            for one in results.values()
        )
        return (part * work + n_last * last) / whole

    def _may_go_on(self, results: Mapping[str, TrialResult]) -> bool:
        """Whether one more trial stays within as many rows as four full evaluations run."""
        made = sum(one.bundle is not None for one in results.values())
        return (
            made < _MOST_PASSES and self._passes(results, made + 1) + _TRIAL_PASSES <= _MOST_PASSES
        )

    def _tidy(self, contest: Contest, results: Mapping[str, TrialResult]) -> None:
        """Keep what is on the Pareto front; the rest can be made again."""
        for name, result in results.items():
            if result.bundle is not None and name not in contest.front:
                shutil.rmtree(self.journal.folder / result.bundle, ignore_errors=True)
        shutil.rmtree(self.journal.place("winner, tuned"), ignore_errors=True)


class _Quiet:
    """Progress within a trial: its sentences are heard, its bars would hide that of the search."""

    def __init__(self, says: Progress) -> None:
        self._says = says

    def begin(self, title: str, total: int | None = None) -> None:
        """Say what begins."""
        steps = "" if total is None else f", {total} steps"
        self._says.note(f"{title}{steps} …")

    def advance(self, units: int = 1) -> None:
        """Do nothing."""

    def note(self, text: str) -> None:
        """Pass it on."""
        self._says.note(text)


def _model_digest(bundle: Bundle) -> str:
    """Return the digest of what is executed; a folder is never rewritten, so it has none."""
    return digest_file(bundle.model_path) if bundle.model_path.is_file() else ""


def _runtime(bundle: Bundle, tuned: Bundle | None) -> RuntimeSettings:
    """Return the settings of a candidate with threads and batches as they were tuned."""
    if tuned is None:
        return bundle.runtime
    known = tuned.runtime
    return bundle.runtime.model_copy(
        update={
            "intra_op_threads": known.intra_op_threads,
            "allow_spinning": known.allow_spinning,
            "max_batch_size": known.max_batch_size,
        }
    )
