"""What is written at last: the winner with settings of its own, measured once more as it ships."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass

from fairlead.api.auto_measuring import keeps_budget, per_row_ms
from fairlead.api.auto_plan import Target
from fairlead.backends.runners import open_runner
from fairlead.core.bundle import Bundle, RuntimeSettings
from fairlead.core.candidate import CandidateMeasures
from fairlead.core.dataset import Dataset, bind
from fairlead.core.ports import Runner
from fairlead.measure.candidates import measure_candidates
from fairlead.measure.comparison import compare
from fairlead.measure.judging import Judge

__all__ = ["Shipped", "measure_shipped"]

_ORIGINAL, _KEPT, _TUNED = "original", "as it was compared", "tuned"
_TIE = 1.03
_SPEED_ONLY_S = 0.5


@dataclass(frozen=True)
class Shipped:
    """The winner as it is written.

    Attributes:
        runtime: The settings.
        single: Original and winner with these settings, one row per call.
        batch: The same in full batches.
        why: Why these settings, and not the others.
        evaluations: How often the winner was judged once more.
    """

    runtime: RuntimeSettings
    single: tuple[CandidateMeasures, CandidateMeasures]
    batch: tuple[CandidateMeasures, CandidateMeasures]
    why: str
    evaluations: int = 0


def measure_shipped(
    start: Bundle,
    won: Bundle,
    settings: tuple[RuntimeSettings, RuntimeSettings],
    rows: Dataset,
    judge: Judge,
    *,
    target: Target,
    batch_rows: int,
    time_limit_s: float,
    allow_unproven: bool,
    trust: bool,
    seed: int,
) -> Shipped:
    """Choose between the settings the winner won with and those tuned for it, and measure them.

    Args:
        start: The original.
        won: The winner.
        settings: Those it was compared with, and those that tuning it found.
        rows: Rows that nothing was chosen on.
        judge: Says what a change cost.
        target: What must get better.
        batch_rows: Rows of a full batch.
        time_limit_s: Time for the two interleaved runs together.
        allow_unproven: Whether a measured drop within the budget is enough.
        trust: Whether code that came with the model may run.
        seed: Seed of bootstrap intervals.
    """
    kept, tuned = settings
    feeds = bind(rows, start.signature, feature_columns=start.manifest.feature_columns)
    others_arithmetic = _arithmetic(kept) != _arithmetic(tuned)
    with ExitStack() as stack:

        def opened(bundle: Bundle, runtime: RuntimeSettings) -> Runner:
            runner = open_runner(bundle, runtime=runtime, trust=trust)
            stack.callback(runner.close)
            return runner

        runners = {
            _ORIGINAL: opened(start, start.runtime),
            _KEPT: opened(won, kept),
            _TUNED: opened(won, tuned),
        }
        sizes = dict.fromkeys(runners, won.size_bytes) | {_ORIGINAL: start.size_bytes}
        single, batch = (
            measure_candidates(
                runners, feeds, sizes=sizes, batch_rows=n_rows, time_limit_s=time_limit_s / 2,
                seed=seed,
            )
            for n_rows in (1, batch_rows)
        )  # fmt: skip
        name, why = _faster(batch if target == "throughput" else single)
        evaluations = 0
        if name == _TUNED and others_arithmetic:
            # Another library, or another precision: its answers have not been judged yet.
            evaluations = 1
            comparison = compare(
                runners[_ORIGINAL],
                runners[_TUNED],
                manifest=start.manifest,
                feeds=feeds,
                labels=rows.labels,
                budget=judge.budget,
                sizes=(start.size_bytes, won.size_bytes),
                served_rows=start.runtime.max_batch_size,
                time_limit_s=_SPEED_ONLY_S,
                seed=seed,
                judge=judge,
            )
            is_within, reason = keeps_budget(comparison, allow_unproven)
            if not is_within:
                name, why = _KEPT, f"the tuned settings are faster, but {reason}"
    return Shipped(
        runtime=tuned if name == _TUNED else kept,
        single=(single[_ORIGINAL], single[name]),
        batch=(batch[_ORIGINAL], batch[name]),
        why=why,
        evaluations=evaluations,
    )


def _arithmetic(runtime: RuntimeSettings) -> tuple[str, str, bool]:
    return runtime.execution_provider, runtime.float_precision, runtime.torch_compile


def _faster(measures: Mapping[str, CandidateMeasures]) -> tuple[str, str]:
    """Return the settings to write: the tuned ones unless they are measurably slower."""
    before, after = per_row_ms(measures, _KEPT), per_row_ms(measures, _TUNED)
    if after <= before * _TIE:
        return _TUNED, f"tuned for this version: {before / after:.2f} times as fast as before"
    return _KEPT, (
        f"settings tuned for it turned out slower beside those it won with ({after:.3g} and "
        f"{before:.3g} ms per row), so these stay"
    )
