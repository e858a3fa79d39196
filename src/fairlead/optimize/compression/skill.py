"""Compress a bundle: fewer weights and multiplications, and never beyond the budget."""

from __future__ import annotations

from pathlib import Path

from fairlead.backends.onnx_graph import has_integer_matrices, onnx_versions
from fairlead.backends.onnxruntime import OnnxRunner
from fairlead.core.bundle import Bundle
from fairlead.core.dataset import Array, Dataset, bind
from fairlead.core.errors import ModelError
from fairlead.core.ports import Progress, SilentProgress
from fairlead.core.report import Finding, Measure, Outcome, Report, Table
from fairlead.measure.acceptance import Candidate, conclude, held_back_rows, keep
from fairlead.measure.answers import count_lost_rows, judge_answers
from fairlead.measure.comparison import Comparison, compare, decide
from fairlead.measure.quality import run_batches
from fairlead.optimize.compression.card import CARD
from fairlead.optimize.compression.config import CompressionConfig
from fairlead.optimize.compression.methods import METHODS, LowRankModel, LowRankSearch

__all__ = ["compress"]

_TITLE = "Compression"
_SEARCH_RATIO = 0.5
Feeds = dict[str, Array]


def compress(
    bundle: Bundle,
    data: Dataset,
    config: CompressionConfig,
    *,
    out: Path,
    progress: Progress | None = None,
) -> Outcome[Bundle]:
    """Replace large weight matrices by two small ones if the held-back rows allow it.

    Half of the rows, always the same ones, choose the ranks; the other half decides.

    Args:
        bundle: What is compressed; it is not changed.
        data: Rows the model was not trained on, with labels where they are known.
        config: The method, the budget and the goal.
        out: Directory to create.
        progress: Hears how far the work is.

    Returns:
        `done` with the derived bundle, `kept` with a copy of the original when nothing is gained,
        `refused` with the original, nothing written, when every compression breaks the budget.

    Raises:
        DataError: The rows do not fit, are fewer than two, or allow no metric.
        ModelError: The model cannot be read or run.
        ConflictError: `out` exists.
        WorkspaceError: It cannot be written.
    """
    says = progress or SilentProgress()
    if bundle.manifest.kind != "onnx":
        return _keep(bundle, f"a {bundle.manifest.kind} model has no graph to rewrite", out)
    rows = held_back_rows(data, max_rows=config.max_rows, seed=config.seed)
    search_rows, confirm_rows = rows.split(_SEARCH_RATIO, seed=config.seed)
    original = OnnxRunner(bundle.model_path)
    says.begin("compress", config.max_evaluations)
    try:
        judge = _Judge(bundle, original, search_rows, config, says)
        try:
            found = _search(bundle, judge, config)
        except ModelError as exc:
            # A model that runs but cannot be rewritten is still good: it stays.
            return _keep(bundle, exc.message, out, advice=exc.hint)
        if not found.n_options:
            return _nothing(bundle, found, config, out)
        if not found.ladder:
            return _refuse(bundle, found, judge)
        candidate = _confirm(bundle, original, found, confirm_rows, config)
    finally:
        original.close()
    return conclude(
        bundle,
        candidate,
        confirm_rows,
        skill=CARD.id,
        title=_TITLE,
        out=out,
        goal=config.goal,
        allow_unproven=config.allow_unproven,
    )


def _search(bundle: Bundle, judge: _Judge, config: CompressionConfig) -> LowRankSearch:
    return METHODS[config.method](
        bundle.model_path,
        judge.feeds,
        judge.is_good,
        min_weights=config.min_weights,
        max_evaluations=config.max_evaluations,
    )


def _nothing(
    bundle: Bundle, found: LowRankSearch, config: CompressionConfig, out: Path
) -> Outcome[Bundle]:
    if found.matrices:
        text = "its matrices need nearly their full rank, so two factors would be larger"
        return _keep(bundle, text, out)
    if has_integer_matrices(bundle.model_path, min_weights=config.min_weights):
        text = "its weight matrices are quantized to integers, which cannot be factorised"
        return _keep(bundle, text, out, advice="compress the original first, then quantize that")
    return _keep(bundle, f"it has no weight matrix of {config.min_weights:,} or more weights", out)


def _keep(bundle: Bundle, reason: str, out: Path, advice: str = "") -> Outcome[Bundle]:
    hint = advice or "`fairlead optimize quantize` may still make it smaller"
    return keep(bundle, reason, skill=CARD.id, title=_TITLE, out=out, advice=hint)


class _Judge:
    """Judges compressed models on the rows that the search may see."""

    def __init__(
        self,
        bundle: Bundle,
        original: OnnxRunner,
        rows: Dataset,
        config: CompressionConfig,
        progress: Progress,
    ) -> None:
        self._manifest, self._rows, self._config = bundle.manifest, rows, config
        self._progress = progress
        columns = bundle.manifest.feature_columns
        self.feeds = bind(rows, bundle.signature, feature_columns=columns)
        self._batch = bundle.runtime.max_batch_size
        self._answers = run_batches(original, self.feeds, self._batch)
        self.drops: list[float] = []

    def is_good(self, model: bytes) -> bool:
        """Whether a compressed model stays within the budget on these rows."""
        runner = OnnxRunner(model)
        try:
            answers = run_batches(runner, self.feeds, self._batch)
        finally:
            runner.close()
        self._progress.advance()
        labels, budget = self._rows.labels, self._config.max_drop
        drop = judge_answers(self._manifest, self._answers, answers, labels, budget=budget)
        self.drops.append(drop.value)
        is_whole = count_lost_rows(self._answers, answers) == 0
        return is_whole and drop.is_within(allow_unproven=self._config.allow_unproven)


def _confirm(
    bundle: Bundle,
    original: OnnxRunner,
    found: LowRankSearch,
    rows: Dataset,
    config: CompressionConfig,
) -> Candidate:
    """Measure ever gentler compressions on fresh rows until one is not refused."""
    feeds = bind(rows, bundle.signature, feature_columns=bundle.manifest.feature_columns)
    candidate: Candidate | None = None
    for model in found.ladder:
        runner = OnnxRunner(model.model)
        try:
            comparison = compare(
                original,
                runner,
                manifest=bundle.manifest,
                feeds=feeds,
                labels=rows.labels,
                budget=config.max_drop,
                sizes=(bundle.size_bytes, len(model.model)),
                served_rows=bundle.runtime.max_batch_size,
                batch_rows=config.batch_rows,
                time_limit_s=config.time_limit_s,
                seed=config.seed,
            )
        finally:
            runner.close()
        candidate = _candidate(model, found, comparison, config)
        verdict, _ = decide(comparison, goal=config.goal, allow_unproven=config.allow_unproven)
        if verdict != "refused":
            break
    assert candidate is not None  # noqa: S101 (the caller checked that something passed)
    return candidate


def _candidate(
    model: LowRankModel, found: LowRankSearch, comparison: Comparison, config: CompressionConfig
) -> Candidate:
    shapes = {item.name: item for item in found.matrices}
    table = Table(
        title="Matrices",
        columns=("matrix", "shape", "rank", "weights before", "weights after"),
        rows=tuple(
            (
                name,
                " x ".join(map(str, shapes[name].shape)),
                rank,
                shapes[name].n_weights,
                shapes[name].weights_at(rank),
            )
            for name, rank in model.ranks.items()
        ),
    )
    text = f"{len(model.ranks)} of {len(found.matrices)} matrices factorised"
    return Candidate(
        model=model.model,
        change=f"{config.method} ({text}, {model.loss:.2g} of the energy lost)",
        comparison=comparison,
        packages=onnx_versions(),
        measures=(
            Measure(
                name="matrix_weights",
                value=model.n_weights,
                unit="count",
                baseline=found.n_weights,
                note=text,
            ),
            Measure(
                name="evaluations",
                value=found.evaluations,
                unit="count",
                note=f"of {found.n_options} different compressions",
            ),
        ),
        tables=(table,),
        findings=(Finding(level="info", text=text),),
        details={"method": config.method, "ranks": model.ranks, "energy_lost": model.loss},
    )


def _refuse(bundle: Bundle, found: LowRankSearch, judge: _Judge) -> Outcome[Bundle]:
    gentlest = min(judge.drops)
    reason = (
        f"every compression that was tried broke the budget; the smallest drop was {gentlest:.4g}"
    )
    report = Report(
        skill=CARD.id,
        title=_TITLE,
        summary=f"{bundle.name} was refused: {reason}.",
        verdict="refused",
        measures=(Measure(name="evaluations", value=found.evaluations, unit="count"),),
        findings=(
            Finding(
                level="alert",
                text="nothing was written",
                advice="raise the budget with --max-drop if the loss is worth it, give more "
                "held-back rows, or try `fairlead optimize quantize`",
            ),
        ),
        details={"reason": reason, "drops": judge.drops},
    )
    return Outcome(bundle, report)
