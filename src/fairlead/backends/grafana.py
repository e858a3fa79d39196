"""A Grafana dashboard of one service, over the metrics that its servers export."""

from __future__ import annotations

import json
from typing import Any

__all__ = ["build_dashboard", "dashboard_queries"]

_WIDTH, _HEIGHT, _COLUMNS = 8, 8, 3
_SOURCE = {"type": "prometheus", "uid": "fairlead-prometheus"}


def _panels(service: str) -> tuple[tuple[str, str, tuple[tuple[str, str], ...]], ...]:
    """Return title, unit and queries (legend, expression) of each panel."""
    model = f"model={json.dumps(service)}"
    rate = "[$__rate_interval]"

    def quantile(level: float, metric: str, by: str = "le") -> str:
        return (
            f"histogram_quantile({level}, sum by ({by}) (rate({metric}_bucket{{{model}}}{rate})))"
        )

    def share(part: str, whole: str, of: str = "") -> str:
        chosen = f"{{{of}}}" if of else ""
        return f"sum(rate({part}{chosen}{rate})) / sum(rate({whole}{chosen}{rate}))"

    cache = "fairlead_cache_requests_total"
    total = f"fairlead_requests_total{{{model}}}"
    bad = f'fairlead_requests_total{{{model},status=~"5.."}}'
    latency = "fairlead_request_duration_seconds"
    return (
        ("Requests", "reqps", (("{{status}}", f"sum by (status) (rate({total}{rate}))"),)),
        ("Errors of the server", "percentunit", (
            ("errors", f"(sum(rate({bad}{rate})) or vector(0)) / sum(rate({total}{rate}))"),)),
        ("Latency", "s", (("p50", quantile(0.5, latency)), ("p95", quantile(0.95, latency)),
                          ("p99", quantile(0.99, latency)))),
        ("Latency p99 by version", "s", (
            ("{{version}}", quantile(0.99, latency, "le, version")),)),
        ("Waiting for the model, p99", "s", (
            ("p99", quantile(0.99, "fairlead_queue_duration_seconds")),)),
        ("The model running, p95", "s", (
            ("p95", quantile(0.95, "fairlead_run_duration_seconds")),)),
        ("Steps of an ensemble, p95", "s", (
            ("{{step}}", quantile(0.95, "fairlead_step_duration_seconds", "le, step")),)),
        ("Rows that run together", "short", (
            ("mean", share("fairlead_batch_rows_sum", "fairlead_batch_rows_count", model)),)),
        ("Requests under way", "short", (
            ("{{arm}}", f"sum by (arm) (fairlead_pending_requests{{{model}}})"),)),
        ("Share of the traffic", "percentunit", (
            ("{{arm}}", f"max by (arm) (fairlead_traffic_weight{{{model}}})"),)),
        ("Predictions logged and lost", "rowsps", (
            ("logged", f"sum(rate(fairlead_predictions_logged_total{rate}))"),
            ("lost", f"sum(rate(fairlead_predictions_dropped_total{rate}))"))),
        ("Answers from the cache", "percentunit", (
            ("hits", share(f'{cache}{{found="hit"}}', cache)),)),
        ("Memory", "bytes", (("{{instance}}", "process_resident_memory_bytes"),)),
        ("CPUs in use", "short", (
            ("{{instance}}", f"rate(process_cpu_seconds_total{rate})"),)),
    )  # fmt: skip


def build_dashboard(service: str) -> dict[str, Any]:
    """Return the dashboard as the document that Grafana reads.

    Args:
        service: Name of the service, the label `model` of its metrics.
    """
    panels = [
        _panel(place, title, unit, queries)
        for place, (title, unit, queries) in enumerate(_panels(service))
    ]
    return {
        "uid": f"fairlead-{service}"[:40],
        "title": f"{service} (Fairlead)",
        "tags": ["fairlead"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "panels": panels,
    }


def _panel(
    place: int, title: str, unit: str, queries: tuple[tuple[str, str], ...]
) -> dict[str, Any]:
    return {
        "id": place + 1,
        "type": "timeseries",
        "title": title,
        "datasource": _SOURCE,
        "gridPos": {
            "x": place % _COLUMNS * _WIDTH,
            "y": place // _COLUMNS * _HEIGHT,
            "w": _WIDTH,
            "h": _HEIGHT,
        },
        "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
        "options": {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
        "targets": [
            {"refId": chr(65 + number), "datasource": _SOURCE, "expr": query, "legendFormat": name}
            for number, (name, query) in enumerate(queries)
        ],
    }


def dashboard_queries(service: str) -> list[str]:
    """Return every query of the dashboard, with Grafana's interval replaced by five minutes."""
    return [
        query.replace("$__rate_interval", "5m")
        for _, _, queries in _panels(service)
        for _, query in queries
    ]
