"""Quantize a bundle: smaller, usually faster, and never beyond the budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fairlead.backends.judges import judge_for
from fairlead.backends.model_probe import probe_models
from fairlead.backends.onnx_divergence import layer_divergence
from fairlead.backends.onnx_graph import library_versions, parse_graph
from fairlead.backends.openvino import has_openvino
from fairlead.backends.runners import open_onnx
from fairlead.core.bundle import Bundle
from fairlead.core.comparison import LayerDivergence
from fairlead.core.dataset import Dataset, bind
from fairlead.core.errors import DataError, ModelError
from fairlead.core.ports import Feeds, Progress, SilentProgress
from fairlead.core.report import Finding, Measure, Outcome
from fairlead.measure.acceptance import Candidate, conclude, held_back_rows, keep
from fairlead.measure.answers import check_labels
from fairlead.measure.comparison import Comparison, compare, decide, rows_for
from fairlead.measure.judging import Judge
from fairlead.measure.latency import clocks_for
from fairlead.optimize.quantization.card import CARD
from fairlead.optimize.quantization.config import QuantizationConfig
from fairlead.optimize.quantization.methods import METHODS
from fairlead.optimize.quantization.recipe import Recipe
from fairlead.optimize.quantization.reporting import (
    candidate_table,
    no_gain,
    no_gain_measures,
    search_details,
    search_findings,
    search_measures,
    search_tables,
)
from fairlead.optimize.quantization.rows import Parts, divide
from fairlead.optimize.quantization.search import Contender, Search, search
from fairlead.optimize.quantization.workbench import Workbench

__all__ = ["quantize"]

_TITLE = "Quantization"
_LARGEST_BYTES = 2 * 1024**3
_FOR_LARGE = ("auto", "weight-int8", "weight-int4")
"""Methods that read the weights of a model one by one."""
_MOST_CONFIRMATIONS = 2
_TUNE = "`fairlead optimize tune` may still make it faster on this machine"


def quantize(
    bundle: Bundle,
    data: Dataset,
    config: QuantizationConfig,
    *,
    out: Path,
    calibration: Dataset | None = None,
    progress: Progress | None = None,
) -> Outcome[Bundle]:
    """Store and compute a model in fewer bits if the held-back rows allow it.

    The rows are divided: some calibrate, some choose between versions and between layers, and the
    rest, on which nothing was chosen, give the verdict.

    Args:
        bundle: What is quantized; it is not changed.
        data: Rows the model was not trained on, with labels where they are known.
        config: The method, the budget and the goal.
        out: Directory to create.
        calibration: Rows that ranges of activations are taken from; a part of `data` when None.
        progress: Hears how far the work is.

    Returns:
        `done` with the derived bundle, `kept` with a copy of the original when there is nothing
        to quantize or nothing to gain, `refused` with the original when the budget is broken and
        nothing was written.

    Raises:
        DataError: The rows do not fit the model, or no metric can be computed on them.
        ModelError: The model cannot be read or run.
        ConfigError: The metric is none.
        NotFoundError: The metric's module or function does not exist.
        ConflictError: `out` exists.
        WorkspaceError: It cannot be written.
    """
    says = progress or SilentProgress()
    if bundle.manifest.kind != "onnx":
        return _keep(bundle, f"a {bundle.manifest.kind} model has no graph to rewrite", out)
    if bundle.size_bytes > _LARGEST_BYTES and config.method not in _FOR_LARGE:
        reason = f"its weights take {bundle.size_bytes:,} bytes, and {config.method} stops at 2 GiB"
        return _keep(bundle, reason, out, "use --method weight-int8 or weight-int4")
    if config.runtime == "openvino" and not has_openvino():
        install = "pip install 'fairlead[openvino]'"
        return _keep(bundle, "OpenVINO is not installed", out, install)
    judge = judge_for(bundle, metric=config.metric, budget=config.max_drop, seed=config.seed)
    bench = _Bench.prepare(bundle, data, calibration, config, judge)
    says.begin("quantize", 4)
    try:
        is_large = bundle.size_bytes > _LARGEST_BYTES
        work = Workbench.open(
            bundle.model_path, bench.calibration, config, bundle.runtime, is_large=is_large
        )
        recipes, refusals = _recipes(work)
    except ModelError as exc:
        # A model that runs but cannot be rewritten is still good: it stays.
        open_onnx(bundle.model_path, bundle.runtime).close()
        return _keep(bundle, exc.message, out, advice=exc.hint)
    says.advance()
    if not recipes:
        return _keep(bundle, _nothing(work, refusals), out)
    found = search(bundle, work, recipes, (bench.search, bench.parts.search.labels), judge, says)
    says.advance()
    chosen = found.passing or _closest(found)
    if not chosen:
        return keep(
            bundle,
            no_gain(found),
            skill=CARD.id,
            title=_TITLE,
            out=out,
            advice=_TUNE,
            measures=no_gain_measures(found),
            tables=(candidate_table(found),),
        )
    confirmed = _confirm(bench, chosen)
    says.advance()
    return _finish(bench, work, found, confirmed, out)


@dataclass(frozen=True)
class _Bench:
    """A bundle, its rows in three parts, and how they are judged."""

    bundle: Bundle
    config: QuantizationConfig
    judge: Judge
    parts: Parts
    calibration: Feeds | None
    search: Feeds
    last: Feeds

    @classmethod
    def prepare(
        cls,
        bundle: Bundle,
        data: Dataset,
        calibration: Dataset | None,
        config: QuantizationConfig,
        judge: Judge,
    ) -> _Bench:
        def tensors(rows: Dataset) -> Feeds:
            return bind(rows, bundle.signature, feature_columns=bundle.manifest.feature_columns)

        if data.labels is not None and bundle.manifest.task != "other":
            check_labels(data.labels)
        rows = held_back_rows(data, max_rows=config.max_rows, seed=config.seed)
        parts = divide(rows, tensors(rows), calibration, config)
        return cls(
            bundle=bundle,
            config=config,
            judge=judge,
            parts=parts,
            calibration=None if parts.calibration is None else tensors(parts.calibration),
            search=tensors(parts.search),
            last=tensors(parts.last),
        )


@dataclass(frozen=True)
class _Confirmed:
    contender: Contender
    comparison: Comparison
    confirmations: int


def _recipes(work: Workbench) -> tuple[tuple[Recipe, ...], tuple[str, ...]]:
    """Make what the settings ask for; with `auto`, methods that fail are left out."""
    if work.config.method != "auto":
        return METHODS[work.config.method](work), ()
    recipes: list[Recipe] = []
    refusals: list[str] = []
    for name, method in METHODS.items():
        if work.folder is not None and name not in _FOR_LARGE:
            continue
        try:
            recipes += method(work)
        except (ModelError, DataError) as exc:
            refusals.append(exc.message)
    if not recipes and refusals:
        raise ModelError(refusals[0], hint="export the model again with opset 17 or newer")
    return tuple(recipes), tuple(refusals)


def _nothing(work: Workbench, refusals: Sequence[str]) -> str:
    """Say why there is nothing to quantize."""
    if work.unknown_operators:
        return f"its operators are not ONNX's own: {', '.join(work.unknown_operators)}"
    if work.control_flow:
        inside = ", ".join(work.control_flow)
        return f"its weights lie inside control flow ({inside}), which is left as it is"
    return refusals[0] if refusals else "it has no fp32 weights of layers that can run in 8 bits"


def _closest(found: Search) -> tuple[Contender, ...]:
    """Return the contender to be refused in everybody's sight when none kept the budget."""
    return found.contenders[:1]


def _keep(bundle: Bundle, reason: str, out: Path, advice: str = "") -> Outcome[Bundle]:
    return keep(bundle, reason, skill=CARD.id, title=_TITLE, out=out, advice=advice or _TUNE)


def _confirm(bench: _Bench, contenders: Sequence[Contender]) -> _Confirmed:
    """Test the best contender on rows that nothing was chosen on, and the safest if it fails."""
    tried: list[_Confirmed] = []
    for one in contenders[:_MOST_CONFIRMATIONS]:
        made = _Confirmed(one, _compare(bench, one.recipe), len(tried) + 1)
        tried.append(made)
        verdict, _ = decide(
            made.comparison, goal=bench.config.goal, allow_unproven=bench.config.allow_unproven
        )
        if verdict == "done":
            return made
    return replace(tried[0], confirmations=len(tried))


def _compare(bench: _Bench, recipe: Recipe) -> Comparison:
    bundle, config = bench.bundle, bench.config
    single = bundle.runtime.model_copy(update={"intra_op_threads": 1})
    runtime = (recipe.runtime or single).model_copy(update={"intra_op_threads": 1})
    before = open_onnx(bundle.model_path, single)
    try:
        after = open_onnx(recipe.model, runtime)
    except ModelError:
        before.close()
        raise
    try:
        return compare(
            before,
            after,
            manifest=bundle.manifest,
            feeds=bench.last,
            labels=bench.parts.last.labels,
            budget=config.max_drop,
            sizes=(bundle.size_bytes, len(recipe.model)),
            served_rows=bundle.runtime.max_batch_size,
            batch_rows=config.batch_rows,
            time_limit_s=config.time_limit_s,
            seed=config.seed,
            judge=bench.judge,
            clocks=clocks_for([single.execution_provider, runtime.execution_provider]),
        )
    finally:
        before.close()
        after.close()


def _finish(
    bench: _Bench, work: Workbench, found: Search, confirmed: _Confirmed, out: Path
) -> Outcome[Bundle]:
    chosen = confirmed.contender
    comparison, memory = _probed(bench, chosen.recipe, confirmed.comparison)
    layers = _divergence(bench, work, chosen.recipe)
    candidate = Candidate(
        model=chosen.recipe.model,
        change=chosen.recipe.title,
        comparison=comparison,
        packages=library_versions("onnx", "onnxruntime", "openvino"),
        measures=(*search_measures(found, confirmed.confirmations), *memory),
        tables=search_tables(found, comparison, layers),
        findings=(*search_findings(chosen, layers), *_row_findings(bench)),
        details=search_details(found, chosen, confirmed.confirmations),
        runtime=chosen.recipe.runtime,
        layers=layers,
    )
    return conclude(
        bench.bundle,
        candidate,
        bench.parts.last,
        skill=CARD.id,
        title=_TITLE,
        out=out,
        goal=bench.config.goal,
        allow_unproven=bench.config.allow_unproven,
    )


def _probed(
    bench: _Bench, recipe: Recipe, comparison: Comparison
) -> tuple[Comparison, tuple[Measure, ...]]:
    """Run both models in processes of their own: their memory, and a batch without rows."""
    bundle = bench.bundle
    before = open_onnx(bundle.model_path, bundle.runtime)
    batch = rows_for(before, bench.last, bench.config.batch_rows)
    before.close()
    versions = (
        (bundle.model_path, bundle.runtime),
        (recipe.model, recipe.runtime or bundle.runtime),
    )
    old, new = probe_models(versions, batch)
    if old is None or new is None:
        return comparison, ()
    edges = comparison.edges
    if old.takes_empty_batch:
        lost = () if new.takes_empty_batch else ("empty",)
        edges = replace(edges, kinds=(*edges.kinds, "empty"), lost=(*edges.lost, *lost))
    memory: tuple[Measure, ...] = ()
    if old.peak_memory_bytes is not None and new.peak_memory_bytes is not None:
        memory = (
            Measure(
                name="peak_memory_bytes",
                value=new.peak_memory_bytes,
                unit="bytes",
                baseline=old.peak_memory_bytes,
                note="to load the model and run one batch, each in a process of its own",
            ),
        )
    return replace(comparison, edges=edges), memory


def _row_findings(bench: _Bench) -> tuple[Finding, ...]:
    return bench.parts.findings((bench.calibration, bench.last))


def _divergence(bench: _Bench, work: Workbench, recipe: Recipe) -> tuple[LayerDivergence, ...]:
    if work.folder is not None:
        # Taking a model apart layer by layer needs it in one piece.
        return ()
    few = {name: array[:8] for name, array in bench.last.items()}
    return layer_divergence(work.graph, parse_graph(recipe.model), few)
