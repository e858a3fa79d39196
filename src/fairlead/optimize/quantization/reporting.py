"""How a search for the best quantization is told."""

from __future__ import annotations

from typing import Any

from fairlead.core.comparison import LayerDivergence
from fairlead.core.report import Finding, Measure, Table
from fairlead.measure.comparison import Comparison
from fairlead.optimize.quantization.mixed_precision import MixedPrecision
from fairlead.optimize.quantization.search import Contender, Search

__all__ = [
    "candidate_table",
    "no_gain",
    "no_gain_measures",
    "search_details",
    "search_findings",
    "search_measures",
    "search_tables",
]

_POOR_DB = 10.0


def search_measures(search: Search, confirmations: int) -> tuple[Measure, ...]:
    """Return how many versions were judged."""
    return (
        Measure(
            name="evaluations",
            value=search.evaluations,
            unit="count",
            note=f"versions judged on the search rows; {confirmations} more on rows kept for the "
            "last test",
        ),
    )


def search_tables(
    search: Search, comparison: Comparison, layers: tuple[LayerDivergence, ...]
) -> tuple[Table, ...]:
    """Return the candidates, the layers that stay in float, and those that moved most."""
    speed = comparison.speed
    tables = [
        Table(
            title="Original and quantized model, one thread",
            columns=("", "original", "quantized"),
            rows=(
                ("bytes", comparison.size_before, comparison.size_after),
                ("CPU ms per call", speed.before.cpu_median_ms, speed.after.cpu_median_ms),
                ("latency p50 ms", speed.before.latency_p50_ms, speed.after.latency_p50_ms),
                ("latency p99 ms", speed.before.latency_p99_ms, speed.after.latency_p99_ms),
                ("rows per s", speed.before.throughput_rps, speed.after.throughput_rps),
            ),
        ),
        candidate_table(search),
    ]
    if search.mixed is not None:
        tables.append(_layers(search.mixed))
    if layers:
        tables.append(
            Table(
                title="Layers that moved most",
                columns=("layer", "operator", "signal to noise, dB", "cosine"),
                rows=tuple((i.name, i.operator, i.sqnr_db, i.cosine) for i in layers),
            )
        )
    return tuple(tables)


def no_gain(search: Search) -> str:
    """Say why no version is worth judging."""
    if not search.pointless:
        return "no quantized version can be run"
    best = search.pointless[0]
    speed, size = best.measures.speedup, best.measures.size_bytes / search.original.size_bytes
    return (
        f"the fastest quantized version, {best.recipe.title}, is {speed.value:.2f} times as fast "
        f"(95 % interval {speed.ci_low:.2f} to {speed.ci_high:.2f}) at {size:.2f} times the bytes, "
        "which is no gain"
    )


def no_gain_measures(search: Search) -> tuple[Measure, ...]:
    """Return the numbers behind `no_gain`."""
    if not search.pointless:
        return ()
    best = search.pointless[0]
    return (
        Measure(
            name="speedup_ratio",
            value=best.measures.speedup.value,
            unit="ratio",
            ci_low=best.measures.speedup.ci_low,
            ci_high=best.measures.speedup.ci_high,
            note=f"CPU time of {best.recipe.title}, which was not taken",
        ),
    )


def candidate_table(search: Search) -> Table:
    """Return what every candidate costs, and its drop where it was judged."""
    first = search.original
    rows: list[tuple[str | float | None, ...]] = [
        ("original", first.size_bytes, first.cpu_min_ms, 1.0, None, None)
    ]
    rows += [
        (
            one.recipe.title,
            one.measures.size_bytes,
            one.measures.cpu_min_ms,
            one.measures.speedup.value,
            one.proxy.value,
            None if one.drop is None else one.drop.value,
        )
        for one in (*search.contenders, *search.pointless)
    ]
    columns = ("candidate", "bytes", "CPU ms per call", "times as fast", "drop, few rows", "drop")
    return Table(title="Candidates, best first", columns=columns, rows=tuple(rows))


def _layers(mixed: MixedPrecision) -> Table:
    costs, kept = mixed.costs, set(mixed.float_layers)
    ranked = sorted(
        zip(costs.names, costs.errors.tolist(), costs.saved_ms.tolist(), strict=True),
        key=lambda item: -item[1],
    )
    return Table(
        title="Layers by the error they cause alone",
        columns=("layer", "error", "saves ms", "left in float"),
        rows=tuple((name, error, saved, name in kept) for name, error, saved in ranked),
    )


def search_findings(chosen: Contender, layers: tuple[LayerDivergence, ...]) -> tuple[Finding, ...]:
    """Return what was done, and which layer suffers."""
    recipe = chosen.recipe
    found = [
        Finding(
            level="info",
            text=f"weights in fewer bits: {recipe.method}, {recipe.name} ({recipe.n_weights:,})",
        )
    ]
    if recipe.runtime is not None:
        found.append(
            Finding(
                level="info",
                text=f"it runs on {recipe.runtime.execution_provider}, which serving needs too",
                advice="pip install 'fairlead[openvino]' where it is served"
                if recipe.runtime.execution_provider == "OpenVINO"
                else "",
            )
        )
    if layers and layers[0].sqnr_db < _POOR_DB:
        worst = layers[0]
        found.append(
            Finding(
                level="info",
                text=f"layer `{worst.name}` ({worst.operator}) moved most: {worst.sqnr_db:.1f} dB "
                "of signal to noise",
                advice="the budget is kept all the same; look there first if answers surprise",
            )
        )
    return tuple(found)


def search_details(search: Search, chosen: Contender, confirmations: int) -> dict[str, Any]:
    """Return the machine-readable part."""
    return {
        "method": chosen.recipe.method,
        "n_weights": chosen.recipe.n_weights,
        "evaluations": search.evaluations,
        "confirmations": confirmations,
        "float_layers": list(chosen.float_layers),
        "execution_provider": None
        if chosen.recipe.runtime is None
        else chosen.recipe.runtime.execution_provider,
        "candidates": {one.recipe.title: one.measures.model_dump() for one in search.contenders},
    }
