"""Which version is worth shipping: every candidate measured, few of them judged."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from fairlead.backends.runners import open_onnx
from fairlead.core.bundle import Bundle
from fairlead.core.candidate import CandidateMeasures, Estimate
from fairlead.core.dataset import Array
from fairlead.core.errors import DataError, ModelError
from fairlead.core.ports import Feeds, Progress, Runner
from fairlead.measure.answers import count_lost_rows
from fairlead.measure.budget import QualityDrop
from fairlead.measure.candidates import measure_candidates
from fairlead.measure.judging import Judge
from fairlead.measure.latency import Clocks, clocks_for
from fairlead.measure.quality import run_batches
from fairlead.optimize.quantization.config import QuantizationConfig
from fairlead.optimize.quantization.mixed_precision import (
    MixedPrecision,
    measure_layers,
    search_layers,
)
from fairlead.optimize.quantization.recipe import Recipe
from fairlead.optimize.quantization.workbench import Workbench

__all__ = ["Contender", "Search", "search"]

_PROXY_ROWS = 32
_SIZE_WEIGHT = 0.1
"""With no goal named, halving the bytes counts like 7 % more speed."""
_WORTH_MIXING = 1.1
"""A mixture is searched only where all layers in 8 bits would be 10 % better than what passed."""


@dataclass(frozen=True)
class Contender:
    """One recipe with what was measured about it.

    Attributes:
        recipe: What it is.
        measures: Its cost beside all others.
        proxy: Its drop on a few rows; a hint of the order to judge in, never the verdict.
        drop: Its drop on the search rows, when it was judged.
        float_layers: Layers that were left in float.
    """

    recipe: Recipe
    measures: CandidateMeasures
    proxy: QualityDrop
    drop: QualityDrop | None = None
    float_layers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Search:
    """What a search found.

    Attributes:
        original: Cost of the original.
        contenders: Every recipe that could be run and gains something, the best first.
        pointless: Those that could be run and gain nothing, the fastest first.
        passing: Those that kept the budget on the search rows, the best first.
        mixed: The last choice of layers, if one was made.
        evaluations: Versions that were judged on the search rows.
    """

    original: CandidateMeasures
    contenders: tuple[Contender, ...]
    passing: tuple[Contender, ...]
    mixed: MixedPrecision | None
    evaluations: int
    pointless: tuple[Contender, ...] = ()


@dataclass
class _Judged:
    """The search rows, what the original says to them, and how many versions were judged."""

    bundle: Bundle
    feeds: Feeds
    labels: Array | None
    judge: Judge
    config: QuantizationConfig
    before: Mapping[str, Array] = field(default_factory=dict)
    evaluations: int = 0

    def drop_of(self, runner: Runner) -> QualityDrop:
        """Judge a version on all search rows."""
        self.evaluations += 1
        return self._drop(runner, self.before, self.feeds, self.labels)

    def proxy_of(self, runner: Runner) -> QualityDrop:
        """Judge a version on the first few rows only."""
        few = slice(0, _PROXY_ROWS)
        labels = None if self.labels is None else self.labels[few]
        feeds = {name: array[few] for name, array in self.feeds.items()}
        before = {name: array[few] for name, array in self.before.items()}
        return self._drop(runner, before, feeds, labels)

    def _drop(
        self, runner: Runner, before: Mapping[str, Array], feeds: Feeds, labels: Array | None
    ) -> QualityDrop:
        after = run_batches(runner, feeds, self.bundle.runtime.max_batch_size)
        drop = self.judge(before, after, labels)
        if count_lost_rows(before, after):
            return drop.model_copy(update={"value": math.inf, "upper": math.inf})
        return drop

    def is_within(self, drop: QualityDrop) -> bool:
        """Whether a drop keeps the budget."""
        if drop.budget == 0 and drop.n_worse:
            return False
        return drop.is_within(allow_unproven=self.config.allow_unproven)

    @property
    def left(self) -> int:
        """Evaluations that may still be made."""
        return self.config.max_evaluations - self.evaluations


def search(
    bundle: Bundle,
    work: Workbench,
    recipes: tuple[Recipe, ...],
    rows: tuple[Feeds, Array | None],
    judge: Judge,
    says: Progress,
) -> Search:
    """Measure all recipes, then judge the most promising ones until one keeps the budget.

    Args:
        bundle: The original.
        work: Its model on the bench.
        recipes: What was made of it.
        rows: The search rows and their labels; not those of calibration or of the last test.
        judge: Says what a change cost.
        says: Hears how far the work is.

    Raises:
        DataError: The metric cannot be computed.
        ModelError: The original cannot be run.
    """
    judged = _Judged(bundle, rows[0], rows[1], judge, work.config)
    original, measured = _contenders(bundle, recipes, judged)
    contenders = [one for one in measured if _rank(one, original, work.config) > 1]
    contenders.sort(key=lambda one: -_rank(one, original, work.config))
    pointless = [one for one in measured if _rank(one, original, work.config) <= 1]
    pointless.sort(key=lambda one: -one.measures.speedup.value)
    says.advance()
    passing, open_ones = _judge_whole(contenders, judged, bundle, reserve=2)
    mixed: MixedPrecision | None = None
    floor = _rank(passing[0], original, work.config) if passing else 1.0
    target = next((one for one in open_ones if _can_mix(one, work)), None)
    is_open = target is not None and judged.left > 0
    if target is not None and is_open and not _is_good_enough(target, floor, original, work):
        mixed = _mix(work, target.recipe, target.drop or target.proxy, judged, bundle)
        if mixed is not None:
            passing.append(_mixed_contender(target, mixed))
    if not passing:
        rest = [one for one in contenders if one.drop is None and not _is_hopeless(one.proxy)]
        passing, _ = _judge_whole(rest, judged, bundle, reserve=0)
    if len(passing) > 1:
        original, passing = _measured_again(passing, bundle, judged)
    passing.sort(key=lambda one: -_rank(one, original, work.config))
    return Search(
        original=original,
        contenders=tuple(contenders),
        passing=tuple(passing),
        mixed=mixed,
        evaluations=judged.evaluations,
        pointless=tuple(pointless),
    )


def _judge_whole(
    contenders: list[Contender], judged: _Judged, bundle: Bundle, *, reserve: int
) -> tuple[list[Contender], list[Contender]]:
    """Judge contenders, the best first, until one keeps the budget.

    Args:
        contenders: In order of what they gain; those that were judged are replaced.
        judged: The search rows.
        bundle: The original.
        reserve: Evaluations to leave for a mixture once some contender has failed.

    Returns:
        The one that passed, if any, and those that did not or never could.
    """
    failed: list[Contender] = []
    for place, one in enumerate(contenders):
        if judged.left <= (reserve if failed else 0):
            break
        if _is_hopeless(one.proxy):
            failed.append(one)
            continue
        contenders[place] = replace(one, drop=_judge(one, judged, bundle))
        if judged.is_within(contenders[place].drop or one.proxy):
            return [contenders[place]], failed
        failed.append(contenders[place])
    return [], failed


def _is_good_enough(
    target: Contender, floor: float, original: CandidateMeasures, work: Workbench
) -> bool:
    """Whether what already passed is nearly as good as the target could be at best."""
    return _rank(target, original, work.config) < floor * _WORTH_MIXING


def _rank(one: Contender, original: CandidateMeasures, config: QuantizationConfig) -> float:
    return _merit(one.measures, original, config)


def _contenders(
    bundle: Bundle, recipes: tuple[Recipe, ...], judged: _Judged
) -> tuple[CandidateMeasures, list[Contender]]:
    """Open every recipe and measure all of them in one run."""
    config = judged.config
    single = bundle.runtime.model_copy(update={"intra_op_threads": 1})
    original = open_onnx(bundle.model_path, single)
    runners: dict[str, Runner] = {"original": original}
    proxies: dict[str, QualityDrop] = {}
    named = {recipe.title: recipe for recipe in recipes}
    try:
        judged.before = run_batches(original, judged.feeds, bundle.runtime.max_batch_size)
        for name, recipe in named.items():
            try:
                runner = _open(recipe, bundle)
                runners[name] = runner
                proxies[name] = judged.proxy_of(runner)
            except ModelError:
                runners.pop(name, None)
        sizes = {name: len(named[name].model) for name in proxies}
        measured = measure_candidates(
            runners,
            judged.feeds,
            sizes={"original": bundle.size_bytes, **sizes},
            batch_rows=config.batch_rows,
            time_limit_s=config.time_limit_s,
            seed=config.seed,
            clocks=_clocks(recipes, bundle),
        )
    finally:
        for runner in runners.values():
            runner.close()
    found = [Contender(named[name], measured[name], proxies[name]) for name in proxies]
    return measured["original"], found


def _measured_again(
    passing: list[Contender], bundle: Bundle, judged: _Judged
) -> tuple[CandidateMeasures, list[Contender]]:
    """Measure what kept the budget side by side: the cost of a mixture was only expected."""
    single = bundle.runtime.model_copy(update={"intra_op_threads": 1})
    runners: dict[str, Runner] = {"original": open_onnx(bundle.model_path, single)}
    try:
        for one in passing:
            runners[one.recipe.title] = _open(one.recipe, bundle)
        measured = measure_candidates(
            runners,
            judged.feeds,
            sizes={
                "original": bundle.size_bytes,
                **{one.recipe.title: len(one.recipe.model) for one in passing},
            },
            batch_rows=judged.config.batch_rows,
            time_limit_s=judged.config.time_limit_s,
            seed=judged.config.seed,
            clocks=_clocks([one.recipe for one in passing], bundle),
        )
    finally:
        for runner in runners.values():
            runner.close()
    again = [replace(one, measures=measured[one.recipe.title]) for one in passing]
    return measured["original"], again


def _clocks(recipes: Iterable[Recipe], bundle: Bundle) -> Clocks:
    used = [(recipe.runtime or bundle.runtime).execution_provider for recipe in recipes]
    return clocks_for([bundle.runtime.execution_provider, *used])


def _merit(
    one: CandidateMeasures, original: CandidateMeasures, config: QuantizationConfig
) -> float:
    """Return what a candidate gains for the goal; 1 or less is nothing."""
    size = original.size_bytes / max(one.size_bytes, 1)
    # The quietest block ranks best on a busy machine; the interval says whether it means anything.
    fastest = original.cpu_min_ms / max(one.cpu_min_ms, 1e-9)
    speed = fastest if one.speedup.ci_low > 1 else min(fastest, 1.0)
    if config.goal == "size":
        return size
    if config.goal == "speed":
        return speed
    # What is slower is no candidate when the search may choose; a single method is the user's word.
    if config.method == "auto" and one.speedup.ci_high < 1:
        return 0.0
    is_either = size >= 1.05 or speed > 1
    return max(speed * size**_SIZE_WEIGHT, 1.0 + 1e-6) if is_either else 0.0


def _open(recipe: Recipe, bundle: Bundle) -> Runner:
    runtime = (recipe.runtime or bundle.runtime).model_copy(update={"intra_op_threads": 1})
    return open_onnx(recipe.model, runtime)


def _judge(one: Contender, judged: _Judged, bundle: Bundle) -> QualityDrop:
    runner = _open(one.recipe, bundle)
    try:
        return judged.drop_of(runner)
    finally:
        runner.close()


def _is_hopeless(proxy: QualityDrop) -> bool:
    """Whether even a lucky reading of a few rows breaks the budget."""
    if not math.isfinite(proxy.value):
        return True
    doubt = proxy.upper - proxy.value if math.isfinite(proxy.upper) else math.inf
    return proxy.value - doubt > proxy.budget


def _can_mix(one: Contender, work: Workbench) -> bool:
    recipe = one.recipe
    is_able = recipe.rebuild is not None and recipe.simulate is not None
    return is_able and work.config.allow_mixed and work.calibration is not None


def _mix(
    work: Workbench, recipe: Recipe, first: QualityDrop, judged: _Judged, bundle: Bundle
) -> MixedPrecision | None:
    """Find the layers to leave in float; None when no choice keeps the budget."""

    def evaluate(model: bytes) -> QualityDrop:
        runner = _open(replace(recipe, model=model), bundle)
        try:
            return judged.drop_of(runner)
        finally:
            runner.close()

    try:
        return search_layers(
            recipe,
            measure_layers(work, recipe),
            first,
            evaluate,
            evaluations=judged.left,
            is_within=judged.is_within,
        )
    except (ModelError, DataError):
        # The graph cannot be taken apart; whole recipes are left.
        return None


def _mixed_contender(one: Contender, mixed: MixedPrecision) -> Contender:
    """Return the mixture with its expected cost: what the float layers no longer save is added."""
    kept, cost = set(mixed.float_layers), mixed.costs
    lost = sum(
        ms for name, ms in zip(cost.names, cost.saved_ms, strict=True) if name in kept and ms > 0
    )
    slower = (one.measures.cpu_ms.value + lost) / max(one.measures.cpu_ms.value, 1e-9)
    speed = one.measures.speedup
    expected = Estimate(
        value=speed.value / slower, ci_low=speed.ci_low / slower, ci_high=speed.ci_high / slower
    )
    measures = one.measures.model_copy(
        update={
            "speedup": expected,
            "size_bytes": len(mixed.model),
            "cpu_min_ms": one.measures.cpu_min_ms * slower,
        }
    )
    name = f"{one.recipe.name}, {len(kept)} of {len(one.recipe.layers)} layers left in float"
    recipe = replace(one.recipe, model=mixed.model, name=name)
    return replace(
        one, recipe=recipe, measures=measures, drop=mixed.drop, float_layers=mixed.float_layers
    )
