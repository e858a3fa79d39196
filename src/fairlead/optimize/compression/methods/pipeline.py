"""Distil, prune and quantize, one after the other, under one budget.

Channels are cut in stages with the original as the teacher; what is left is quantized with the
rest of the budget. The last test compares with the original, so the steps cannot hide a loss
behind one another.
"""

from __future__ import annotations

from dataclasses import replace

from fairlead.core.bundle import derive_bundle
from fairlead.core.errors import ConfigError
from fairlead.optimize.compression.bench import Bench, Compressed, Found
from fairlead.optimize.compression.methods.structured_pruning import channel_cuts
from fairlead.optimize.compression.stages import in_stages

__all__ = ["pipeline"]

METHOD = "pipeline"
_MOST_QUANTIZED = 2


def pipeline(bench: Bench) -> Found:
    """Cut and teach, then quantize the smallest versions that passed.

    Raises:
        ConfigError: No module, or nothing that quantizes, was given.
    """
    if bench.quantize is None:
        raise ConfigError(
            "the method pipeline ends with quantization, and nothing was handed in for it",
            hint="use fairlead.api.compress, or hand in `quantize`",
        )
    found = in_stages(bench, METHOD, channel_cuts(bench, METHOD))
    if not found.ladder:
        return found
    ladder = [_quantized(bench, version, place) for place, version in
              enumerate(found.ladder[:_MOST_QUANTIZED])]  # fmt: skip
    made = [version for version in ladder if version is not None]
    return Found(METHOD, (*made, *found.ladder))


def _quantized(bench: Bench, version: Compressed, place: int) -> Compressed | None:
    """Quantize a version with what the budget has left; None when that gains nothing."""
    assert bench.quantize is not None  # noqa: S101 (the caller has looked)
    folder = bench.scratch / f"pruned-{place}"
    pruned = derive_bundle(
        bench.bundle, folder, made_by="pipeline", change=version.change, model=version.model
    )
    outcome = bench.quantize(
        pruned, bench.whole, bench.config.max_drop, bench.scratch / f"quantized-{place}"
    )
    if outcome.report.verdict != "done":
        return None
    model = outcome.noun.model_path.read_bytes()
    if not bench.is_good(model, METHOD):
        return None
    change = str(outcome.report.details.get("change", "quantized"))
    return replace(
        version,
        model=model,
        runtime=outcome.noun.runtime,
        change=f"{version.change}, then {change}",
        notes=(*version.notes, f"then quantized: {change}"),
        details={**version.details, "quantized": change},
    )
