"""Kubernetes manifests of a served bundle: what runs, who reaches it, how it grows."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from fairlead.backends.dockerfile import HOME, PORT, USER
from fairlead.core.bundle import Bundle
from fairlead.core.errors import UsageError

__all__ = ["Workload", "dns_label", "render_kserve", "render_manifests"]

_MB = 1 << 20
_BASE_MB = 192
"""Memory of a server with a tiny model and its helper process, with room for bursts."""
_COPIES = 3
"""A model in memory takes up to this many times its file: weights, packed weights, activations."""
_STEP_MB = 64

Manifest = dict[str, Any]


@dataclass(frozen=True)
class Workload:
    """A served bundle as a cluster sees it.

    Attributes:
        service: Name of the service and of the model in the protocol.
        bundle: What it serves.
        image: Reference of the image.
        arguments: Arguments of the image's entry point.
        replicas: Servers at rest.
        max_replicas: Most servers under load.
    """

    service: str
    bundle: Bundle
    image: str
    arguments: tuple[str, ...]
    replicas: int = 2
    max_replicas: int = 10

    def __post_init__(self) -> None:
        if not 1 <= self.replicas <= self.max_replicas:
            raise UsageError(
                f"{self.replicas} replicas at rest, at most {self.max_replicas}",
                hint="give at least 1 replica, and no fewer at most than at rest",
            )

    @property
    def name(self) -> str:
        """Name of the objects."""
        return dns_label(self.service)

    @property
    def cpus(self) -> int:
        """Whole CPUs of one server: the threads that tuning found best."""
        return self.bundle.runtime.intra_op_threads or 1

    @property
    def memory_mb(self) -> int:
        """Memory of one server, by the size of its model."""
        needed = _BASE_MB + _COPIES * self.bundle.size_bytes / _MB
        return math.ceil(needed / _STEP_MB) * _STEP_MB

    @property
    def labels(self) -> dict[str, str]:
        """Labels of all objects."""
        return {
            "app.kubernetes.io/name": self.name,
            "app.kubernetes.io/version": self.bundle.version,
            "app.kubernetes.io/component": "model-server",
            "app.kubernetes.io/managed-by": "fairlead",
        }

    @property
    def selector(self) -> dict[str, str]:
        """Labels that pick the servers; they never change."""
        return {"app.kubernetes.io/name": self.name}


def dns_label(name: str) -> str:
    """Return a name as Kubernetes takes it: at most 50 lower-case letters, digits and hyphens."""
    label = re.sub(r"[^a-z0-9-]+", "-", name.lower()).strip("-")[:50].strip("-")
    return label if label[:1].isalpha() else f"model-{label}".strip("-")


def render_manifests(load: Workload, *, has_prometheus_operator: bool = False) -> dict[str, str]:
    """Return file name → YAML.

    Args:
        load: What runs.
        has_prometheus_operator: Whether the cluster knows `ServiceMonitor`.
    """
    documents = {
        "service-account.yaml": _object(load, "v1", "ServiceAccount")
        | {"automountServiceAccountToken": False},
        "deployment.yaml": _deployment(load),
        "service.yaml": _service(load),
        "horizontal-pod-autoscaler.yaml": _autoscaler(load),
        "pod-disruption-budget.yaml": _disruption_budget(load),
        "network-policy.yaml": _network_policy(load),
    }
    if has_prometheus_operator:
        documents["service-monitor.yaml"] = _service_monitor(load)
    documents["kustomization.yaml"] = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": sorted(documents),
    }
    return {name: _yaml(document) for name, document in documents.items()}


def _yaml(document: Manifest) -> str:
    import yaml

    return str(yaml.safe_dump(document, sort_keys=False, width=100))


def _object(load: Workload, version: str, kind: str, spec: Manifest | None = None) -> Manifest:
    about = {"name": load.name, "labels": load.labels}
    head: Manifest = {"apiVersion": version, "kind": kind, "metadata": about}
    return head if spec is None else head | {"spec": spec}


def _deployment(load: Workload) -> Manifest:
    template = {
        "metadata": {
            "labels": load.labels,
            "annotations": {
                "dev.fairlead/bundle-digest": load.bundle.digest,
                "prometheus.io/scrape": "true",
                "prometheus.io/port": str(PORT),
                "prometheus.io/path": "/metrics",
            },
        },
        "spec": _pod(load),
    }
    spec = {
        "replicas": load.replicas,
        "revisionHistoryLimit": 5,
        "selector": {"matchLabels": load.selector},
        # A new version takes over server by server, each one warm before an old one leaves.
        "strategy": {
            "type": "RollingUpdate",
            "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1},
        },
        "template": template,
    }
    return _object(load, "apps/v1", "Deployment", spec)


def _pod(load: Workload) -> Manifest:
    return {
        "serviceAccountName": load.name,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": 60,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "topologySpreadConstraints": [
            {
                "maxSkew": 1,
                "topologyKey": "kubernetes.io/hostname",
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": load.selector},
            }
        ],
        "containers": [_container(load, "server")],
        "volumes": [
            {"name": "state", "emptyDir": {"sizeLimit": "4Gi"}},
            {"name": "tmp", "emptyDir": {"medium": "Memory", "sizeLimit": "64Mi"}},
        ],
    }


def _container(load: Workload, name: str) -> Manifest:
    ready = {"httpGet": {"path": "/v2/health/ready", "port": "http"}}
    live = {"httpGet": {"path": "/v2/health/live", "port": "http"}}
    return {
        "name": name,
        "image": load.image,
        "imagePullPolicy": "IfNotPresent",
        "args": list(load.arguments),
        "ports": [{"name": "http", "containerPort": PORT, "protocol": "TCP"}],
        "env": [
            {
                "name": "FAIRLEAD_ADMIN_TOKEN",
                "valueFrom": {
                    "secretKeyRef": {
                        "name": f"{load.name}-admin",
                        "key": "token",
                        "optional": True,
                    }
                },
            }
        ],
        # A model may take its time to load; until it answers, nobody restarts it.
        "startupProbe": ready | {"periodSeconds": 2, "failureThreshold": 150},
        "readinessProbe": ready | {"periodSeconds": 5, "timeoutSeconds": 2, "failureThreshold": 2},
        "livenessProbe": live | {"periodSeconds": 10, "timeoutSeconds": 5, "failureThreshold": 6},
        # The endpoints forget this server before it stops to take requests.
        "lifecycle": {"preStop": {"exec": {"command": ["sleep", "5"]}}},
        "resources": _resources(load),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": "state", "mountPath": HOME},
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 (within the container)
        ],
    }


def _resources(load: Workload) -> Manifest:
    """Return equal requests and limits of CPUs: threads are planned for what the server may use."""
    return {
        "requests": {"cpu": str(load.cpus), "memory": f"{load.memory_mb}Mi"},
        "limits": {"cpu": str(load.cpus), "memory": f"{2 * load.memory_mb}Mi"},
    }


def _service(load: Workload) -> Manifest:
    port = {
        "name": "http",
        "port": 80,
        "targetPort": "http",
        "protocol": "TCP",
        "appProtocol": "http",
    }
    return _object(
        load, "v1", "Service", {"type": "ClusterIP", "selector": load.selector, "ports": [port]}
    )


def _autoscaler(load: Workload) -> Manifest:
    return _object(
        load,
        "autoscaling/v2",
        "HorizontalPodAutoscaler",
        {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": load.name},
            "minReplicas": load.replicas,
            "maxReplicas": load.max_replicas,
            "metrics": [
                {
                    "type": "Resource",
                    "resource": {
                        "name": "cpu",
                        "target": {"type": "Utilization", "averageUtilization": 65},
                    },
                }
            ],
            "behavior": {
                "scaleUp": {"stabilizationWindowSeconds": 0},
                "scaleDown": {"stabilizationWindowSeconds": 300},
            },
        },
    )


def _disruption_budget(load: Workload) -> Manifest:
    return _object(
        load,
        "policy/v1",
        "PodDisruptionBudget",
        {"maxUnavailable": 1, "selector": {"matchLabels": load.selector}},
    )


def _network_policy(load: Workload) -> Manifest:
    """Let in this namespace and one named `monitoring`; a server calls nobody."""
    monitoring = {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}
    return _object(
        load,
        "networking.k8s.io/v1",
        "NetworkPolicy",
        {
            "podSelector": {"matchLabels": load.selector},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [
                {
                    "from": [{"podSelector": {}}, {"namespaceSelector": monitoring}],
                    "ports": [{"port": PORT, "protocol": "TCP"}],
                }
            ],
            "egress": [],
        },
    )


def _service_monitor(load: Workload) -> Manifest:
    endpoint = {"port": "http", "path": "/metrics", "interval": "15s"}
    return _object(
        load,
        "monitoring.coreos.com/v1",
        "ServiceMonitor",
        {"selector": {"matchLabels": load.selector}, "endpoints": [endpoint]},
    )


def render_kserve(load: Workload) -> str:
    """Return an InferenceService that runs the image as a custom predictor of KServe."""
    container = _container(load, "kserve-container")
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        container[probe]["httpGet"]["port"] = PORT
    container["ports"] = [{"name": "http1", "containerPort": PORT, "protocol": "TCP"}]
    pod = _pod(load)
    kept = ("securityContext", "volumes", "automountServiceAccountToken")
    predictor = {
        "minReplicas": load.replicas,
        "maxReplicas": load.max_replicas,
        "containers": [container],
        **{key: pod[key] for key in kept},
    }
    document = _object(
        load, "serving.kserve.io/v1beta1", "InferenceService", {"predictor": predictor}
    )
    return _yaml(document)
