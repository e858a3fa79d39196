"""A compose file with the server, Prometheus and Grafana, and the files that these read."""

from __future__ import annotations

import json
from typing import Any

from fairlead.backends.dockerfile import HOME, PORT
from fairlead.backends.grafana import build_dashboard
from fairlead.backends.kubernetes import Workload
from fairlead.backends.prometheus_rules import render_rules

__all__ = ["GRAFANA_IMAGE", "PROMETHEUS_IMAGE", "render_compose"]

PROMETHEUS_IMAGE = "prom/prometheus:v3.5.0"
GRAFANA_IMAGE = "grafana/grafana:12.1.1"
_HARDENED: dict[str, Any] = {
    "restart": "unless-stopped",
    "read_only": True,
    "cap_drop": ["ALL"],
    "security_opt": ["no-new-privileges:true"],
}


def render_compose(load: Workload) -> dict[str, str]:
    """Return relative path → content of the compose file and everything that it mounts."""
    name = load.name
    document = {
        "name": name,
        "services": {
            name: _server(load),
            "prometheus": _prometheus(name),
            "grafana": _grafana(),
        },
        "volumes": {"state": {}, "prometheus": {}, "grafana": {}},
    }
    return {
        "compose.yaml": _yaml(document),
        "prometheus/prometheus.yml": _yaml(_scraping(load)),
        "prometheus/rules.yml": render_rules(service=load.service),
        "grafana/provisioning/datasources/prometheus.yaml": _yaml(_data_source()),
        "grafana/provisioning/dashboards/fairlead.yaml": _yaml(_provider()),
        f"grafana/dashboards/{name}.json": json.dumps(build_dashboard(load.service), indent=2)
        + "\n",
    }


def _yaml(document: Any) -> str:  # noqa: ANN401
    import yaml

    return str(yaml.safe_dump(document, sort_keys=False, width=100))


def _server(load: Workload) -> dict[str, Any]:
    return {
        "build": {"context": "."},
        "image": load.image,
        **_HARDENED,
        "environment": {"FAIRLEAD_ADMIN_TOKEN": "${FAIRLEAD_ADMIN_TOKEN:-}"},
        # Only this machine reaches it; put a proxy with TLS in front, or see --security.
        "ports": [f"127.0.0.1:${{FAIRLEAD_PORT:-{PORT}}}:{PORT}"],
        "tmpfs": ["/tmp:size=64m,mode=1777"],  # noqa: S108 (within the container)
        "volumes": [f"state:{HOME}"],
        "stop_grace_period": "60s",
        "cpus": load.cpus,
        "mem_limit": f"{2 * load.memory_mb}m",
    }


def _prometheus(server: str) -> dict[str, Any]:
    return {
        "image": PROMETHEUS_IMAGE,
        **_HARDENED,
        "command": [
            "--config.file=/etc/prometheus/prometheus.yml",
            "--storage.tsdb.path=/prometheus",
            "--storage.tsdb.retention.time=15d",
        ],
        "ports": ["127.0.0.1:9090:9090"],
        "volumes": ["./prometheus:/etc/prometheus:ro", "prometheus:/prometheus"],
        "depends_on": {server: {"condition": "service_healthy"}},
    }


def _grafana() -> dict[str, Any]:
    return {
        "image": GRAFANA_IMAGE,
        **_HARDENED,
        "environment": {
            "GF_SECURITY_ADMIN_PASSWORD": "${GRAFANA_PASSWORD:?set GRAFANA_PASSWORD}",
            "GF_ANALYTICS_REPORTING_ENABLED": "false",
            "GF_ANALYTICS_CHECK_FOR_UPDATES": "false",
        },
        "ports": ["127.0.0.1:3000:3000"],
        "tmpfs": ["/tmp:size=64m,mode=1777"],  # noqa: S108 (within the container)
        "volumes": [
            "./grafana/provisioning:/etc/grafana/provisioning:ro",
            "./grafana/dashboards:/var/lib/grafana/dashboards:ro",
            "grafana:/var/lib/grafana",
        ],
        "depends_on": ["prometheus"],
    }


def _scraping(load: Workload) -> dict[str, Any]:
    return {
        "global": {"scrape_interval": "15s", "evaluation_interval": "15s"},
        "rule_files": ["rules.yml"],
        "scrape_configs": [
            {
                "job_name": load.name,
                "metrics_path": "/metrics",
                "static_configs": [{"targets": [f"{load.name}:{PORT}"]}],
            }
        ],
    }


def _data_source() -> dict[str, Any]:
    source = {
        "name": "Prometheus",
        "uid": "fairlead-prometheus",
        "type": "prometheus",
        "access": "proxy",
        "url": "http://prometheus:9090",
        "isDefault": True,
        "jsonData": {"timeInterval": "15s"},
    }
    return {"apiVersion": 1, "datasources": [source]}


def _provider() -> dict[str, Any]:
    provider = {
        "name": "fairlead",
        "type": "file",
        "options": {"path": "/var/lib/grafana/dashboards"},
    }
    return {"apiVersion": 1, "providers": [provider]}
