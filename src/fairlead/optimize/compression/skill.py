"""Compress a bundle: fewer weights and multiplications, and never beyond the budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from fairlead.backends.judges import judge_for
from fairlead.backends.runners import open_onnx
from fairlead.core.bundle import Bundle
from fairlead.core.dataset import Dataset
from fairlead.core.errors import ModelError
from fairlead.core.files import refuse_taken, scratch_folder
from fairlead.core.ports import Progress, Runner, SilentProgress
from fairlead.core.report import Outcome
from fairlead.measure.acceptance import Candidate, conclude, held_back_rows, keep
from fairlead.measure.answers import check_labels
from fairlead.measure.candidates import measure_candidates
from fairlead.measure.comparison import Comparison, compare, decide
from fairlead.measure.latency import Clocks, clocks_for
from fairlead.optimize.compression.bench import Bench, Compressed, Found, Quantizer
from fairlead.optimize.compression.card import CARD
from fairlead.optimize.compression.config import CompressionConfig
from fairlead.optimize.compression.methods import METHODS
from fairlead.optimize.compression.reporting import candidate_of, nothing_to_do, refuse

if TYPE_CHECKING:
    from fairlead.backends.torch_material import TorchMaterial

__all__ = ["compress"]

_TITLE = "Compression"
_SEARCH_RATIO = 0.5
_LARGEST_BYTES = 2 * 1024**3
_MOST_CONFIRMATIONS = 4
_WITHOUT_TRAINING = ("low-rank", "tree-selection", "distillation")
_WITH_TRAINING = ("low-rank", "pipeline")
_SIZE_WEIGHT = 0.1
"""With no goal named, halving the bytes counts like 7 % more speed."""


def compress(
    bundle: Bundle,
    data: Dataset,
    config: CompressionConfig,
    *,
    out: Path,
    transfer: Dataset | None = None,
    training: TorchMaterial | None = None,
    quantize: Quantizer | None = None,
    progress: Progress | None = None,
) -> Outcome[Bundle]:
    """Make a model smaller by one or several methods if the held-back rows allow it.

    Half of the rows, always the same ones, choose; the other half, on which nothing was chosen
    and nothing was trained, decides.

    Args:
        bundle: What is compressed; it is not changed.
        data: Rows the model was not trained on, with labels where they are known.
        config: The method, the budget and the goal.
        out: Directory to create.
        transfer: Rows that students learn from; a part of the rows that choose when None.
        training: The torch module that the bundle was packed from, and its training data.
        quantize: What quantizes, for the method `pipeline`.
        progress: Hears how far the work is.

    Returns:
        `done` with the derived bundle, `kept` with a copy of the original when nothing is gained,
        `refused` with the original, nothing written, when every compression breaks the budget.

    Raises:
        DataError: The rows do not fit, are fewer than two, or allow no metric.
        ModelError: The model cannot be read or run.
        ConfigError: The metric is none, or the method needs a torch module that is not given.
        MissingExtraError: torch or torch-pruning is needed and not installed.
        ConflictError: `out` exists.
        WorkspaceError: It cannot be written.
    """
    refuse_taken(out)
    says = progress or SilentProgress()
    if bundle.manifest.kind != "onnx":
        return _keep(bundle, f"a {bundle.manifest.kind} model has no graph to rewrite", out)
    if bundle.size_bytes > _LARGEST_BYTES:
        reason = f"its weights take {bundle.size_bytes:,} bytes, and rewriting stops at 2 GiB"
        return _keep(bundle, reason, out)
    methods = _chosen(config, training)
    judge = judge_for(bundle, metric=config.metric, budget=config.max_drop, seed=config.seed)
    if data.labels is not None and bundle.manifest.task != "other":
        check_labels(data.labels)
    rows = held_back_rows(data, max_rows=config.max_rows, seed=config.seed)
    search_rows, last = rows.split(_SEARCH_RATIO, seed=config.seed)
    says.begin("compress", config.max_evaluations * len(methods))
    with scratch_folder("compress") as scratch:
        bench = Bench(
            bundle,
            search_rows,
            config,
            judge,
            scratch=scratch,
            transfer=transfer,
            training=training,
            quantize=quantize,
            progress=says,
        )
        try:
            found = _search(bench, methods)
            versions = _ranked(bench, found)
            confirmed = _confirm(bench, versions, last) if versions else None
        finally:
            bench.close()
    if confirmed is not None:
        return _finish(bench, found, confirmed, last, out)
    if all(one.reason for one in found):
        reason, advice = nothing_to_do(found)
        return _keep(bundle, reason, out, advice)
    return refuse(bundle, bench, title=_TITLE)


def _chosen(config: CompressionConfig, training: TorchMaterial | None) -> tuple[str, ...]:
    """Return the methods to try, the cheapest first."""
    if config.method == "auto":
        return _WITHOUT_TRAINING if training is None else _WITH_TRAINING
    return (config.method,)


def _keep(bundle: Bundle, reason: str, out: Path, advice: str = "") -> Outcome[Bundle]:
    hint = advice or "`fairlead optimize quantize` may still make it smaller"
    return keep(bundle, reason, skill=CARD.id, title=_TITLE, out=out, advice=hint)


def _search(bench: Bench, methods: Sequence[str]) -> list[Found]:
    """Run the methods; one that cannot read the graph leaves the others their turn."""
    found = []
    for name in methods:
        try:
            found.append(METHODS[name](bench))
        except ModelError as exc:
            # A model that runs but cannot be rewritten is still good: it stays.
            found.append(Found(name, reason=exc.message, advice=exc.hint))
    return found


def _ranked(bench: Bench, found: Sequence[Found]) -> list[Compressed]:
    """Return versions in the order to confirm them: what gains most first, gentler ones after."""
    ladders = [one.ladder for one in found if one.ladder]
    if len(ladders) < 2:
        return [version for ladder in ladders for version in ladder]
    merit = _merits(bench, [ladder[0] for ladder in ladders])
    order = sorted(range(len(ladders)), key=lambda place: -merit[place])
    best, *others = order
    tail = [ladders[place][0] for place in others]
    strongest, *gentler = ladders[best]
    return [strongest, *gentler[:1], *tail, *gentler[1:][-1:]]


def _merits(bench: Bench, versions: Sequence[Compressed]) -> list[float]:
    """Measure versions beside the original and return what each gains for the goal."""
    runners: dict[str, Runner] = {"original": bench.original}
    names = [str(place) for place in range(len(versions))]
    try:
        for name, version in zip(names, versions, strict=True):
            runners[name] = open_onnx(version.model, version.runtime or bench.runtime)
        sizes = {name: len(v.model) for name, v in zip(names, versions, strict=True)}
        measured = measure_candidates(
            runners,
            bench.feeds,
            sizes={"original": bench.bundle.size_bytes, **sizes},
            batch_rows=bench.config.batch_rows,
            time_limit_s=bench.config.time_limit_s,
            seed=bench.config.seed,
            clocks=_clocks(bench, versions),
        )
    finally:
        for name in names:
            if name in runners:
                runners[name].close()
    merits = []
    for name in names:
        size = bench.bundle.size_bytes / max(measured[name].size_bytes, 1)
        speed = measured[name].speedup.value
        goals = {"size": size, "speed": speed, "either": speed * size**_SIZE_WEIGHT}
        merits.append(goals[bench.config.goal])
    return merits


def _clocks(bench: Bench, versions: Sequence[Compressed]) -> Clocks:
    used = [bench.runtime, *(version.runtime or bench.runtime for version in versions)]
    return clocks_for(one.execution_provider for one in used)


@dataclass(frozen=True)
class _Confirmed:
    version: Compressed
    comparison: Comparison
    confirmations: int


def _confirm(bench: Bench, versions: Sequence[Compressed], last: Dataset) -> _Confirmed:
    """Test versions on rows that nothing was chosen on until one may be shipped."""
    tried: list[tuple[str, _Confirmed]] = []
    for version in versions[:_MOST_CONFIRMATIONS]:
        made = _Confirmed(version, _compare(bench, version, last), len(tried) + 1)
        verdict, _ = decide(
            made.comparison,
            goal="none" if version.is_asked else bench.config.goal,
            allow_unproven=bench.config.allow_unproven,
        )
        tried.append((verdict, made))
        if verdict == "done":
            return made
    chosen = next((made for verdict, made in tried if verdict == "kept"), tried[0][1])
    return replace(chosen, confirmations=len(tried))


def _compare(bench: Bench, version: Compressed, last: Dataset) -> Comparison:
    bundle, config = bench.bundle, bench.config
    runtime = (version.runtime or bench.runtime).model_copy(update={"intra_op_threads": 1})
    runner = open_onnx(version.model, runtime)
    try:
        return compare(
            bench.original,
            runner,
            manifest=bundle.manifest,
            feeds=bench.tensors(last),
            labels=last.labels,
            budget=config.max_drop,
            sizes=(bundle.size_bytes, len(version.model)),
            served_rows=bundle.runtime.max_batch_size,
            batch_rows=config.batch_rows,
            time_limit_s=config.time_limit_s,
            seed=config.seed,
            judge=bench.judge,
            clocks=_clocks(bench, [version]),
        )
    finally:
        runner.close()


def _finish(
    bench: Bench, found: Sequence[Found], confirmed: _Confirmed, last: Dataset, out: Path
) -> Outcome[Bundle]:
    candidate: Candidate = candidate_of(
        bench, found, confirmed.version, confirmed.comparison, confirmed.confirmations
    )
    return conclude(
        bench.bundle,
        candidate,
        last,
        skill=CARD.id,
        title=_TITLE,
        out=out,
        goal="none" if confirmed.version.is_asked else bench.config.goal,
        allow_unproven=bench.config.allow_unproven,
    )
