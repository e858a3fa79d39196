"""What is written at last: the winner with settings of its own, measured once more as it ships."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fairlead.api.auto_measuring import Entrant, Terms, keeps_budget, lined_up, per_row_ms
from fairlead.core.bundle import Bundle, RuntimeSettings
from fairlead.core.candidate import CandidateMeasures

__all__ = ["Shipped", "measure_shipped"]

_ORIGINAL, _KEPT, _TUNED = "original", "as it was compared", "tuned"
_TIE = 1.03


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
    start: Bundle, won: Bundle, settings: tuple[RuntimeSettings, RuntimeSettings], terms: Terms
) -> Shipped:
    """Choose between the settings the winner won with and those tuned for it, and measure them.

    Args:
        start: The original.
        won: The winner.
        settings: Those it was compared with, and those that tuning it found.
        terms: How it is compared.
    """
    kept, tuned = settings
    entrants = (
        Entrant(_ORIGINAL, start, start.runtime),
        Entrant(_KEPT, won, kept),
        Entrant(_TUNED, won, tuned),
    )
    evaluations = 0
    with lined_up(entrants, terms) as lineup:
        single, batch = lineup.measured()
        name, why = _faster(batch if terms.target == "throughput" else single)
        if name == _TUNED and _arithmetic(kept) != _arithmetic(tuned):
            # Another library, or another precision: its answers have not been judged yet.
            evaluations = 1
            is_within, reason = keeps_budget(lineup.compared(_TUNED), terms.allow_unproven)
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
