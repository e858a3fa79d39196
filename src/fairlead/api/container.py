"""`serve container`: a folder from which a bundle is built into an image, watched and deployed."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fairlead.api.context import Context
from fairlead.core.bundle import Bundle, copy_bundle
from fairlead.core.files import digest_file, new_folder, user_path, write_text
from fairlead.core.report import Finding, Measure, Outcome, Report, Table

if TYPE_CHECKING:
    from fairlead.backends.dockerfile import ImagePlan
    from fairlead.backends.kubernetes import Workload
    from fairlead.backends.requirement_lock import Architecture

__all__ = ["ContainerChoices", "write_container", "write_kubernetes"]

_SKILL = "model-serving-patterns"
_MARKER = "Dockerfile"
_NOT_SERVING = frozenset({"onnx", "tritonclient", "uvicorn"})
"""What the extra `serve` brings for other things than answering requests."""
_OF_MLFLOW = frozenset({"mlflow", "pandas", "fairlead"})
"""What every bundle's requirements.txt lists for MLflow, and a server does without."""
_SECURITY = """# What the server allows; see `fairlead serve start --security`.
# Prometheus reads /metrics without credentials: the network decides who reaches the port.
# "admin" asks for FAIRLEAD_ADMIN_TOKEN instead.
metrics_access = "open"
"""


@dataclass(frozen=True)
class ContainerChoices:
    """What a person may choose about an image and how it is deployed.

    Attributes:
        name: Name of the service; the bundle's own when None.
        image: Reference of the image; `<name>:<version>` when None.
        base_image: Image that it is built on; a slim Python of this version when None.
        architecture: CPU of the image.
        lock: Whether packages are pinned by digest, which asks the package index.
        replicas: Servers at rest in Kubernetes.
        max_replicas: Most servers under load in Kubernetes.
        has_prometheus_operator: Whether a ServiceMonitor is written.
    """

    name: str | None = None
    image: str | None = None
    base_image: str | None = None
    architecture: Architecture = "amd64"
    lock: bool = True
    replicas: int = 2
    max_replicas: int = 10
    has_prometheus_operator: bool = False


def write_container(
    bundle: str | Path,
    *,
    out: str | Path,
    choices: ContainerChoices | None = None,
    replace: bool = False,
    context: Context | None = None,
) -> Outcome[Path]:
    """Write everything that a bundle needs to be built, run, watched and deployed.

    Args:
        bundle: What the image serves; it is copied.
        out: Folder to create.
        choices: What a person chose.
        replace: Whether an earlier folder of this kind may be replaced.
        context: Surroundings of the call.

    Raises:
        ConflictError: The target exists and may not be replaced.
        UsageError: The name cannot be that of a service, or the replicas contradict themselves.
        WorkspaceError: The target cannot be written, or the packages cannot be pinned.
    """
    ctx = (context or Context.open()).ready_to_record()
    source = Bundle.open(bundle)
    chosen = choices or ContainerChoices()
    target = user_path(out)
    ctx.progress.begin(f"container of {source.name}", 3)
    with new_folder(target, what="the container", replace=replace, marker=_MARKER) as folder:
        copy_bundle(source, folder / "bundle")
        ctx.progress.advance()
        plan, n_packages = _pinned(source, folder, chosen)
        ctx.progress.advance()
        load = _workload(plan, chosen)
        for name, text in _files(plan, load, chosen).items():
            write_text(folder / name, text)
        ctx.progress.advance()
    return ctx.record(_outcome(plan, load, target, n_packages))


def write_kubernetes(
    bundle: str | Path,
    *,
    out: str | Path,
    choices: ContainerChoices | None = None,
    replace: bool = False,
    context: Context | None = None,
) -> Outcome[Path]:
    """Write the Kubernetes manifests of a bundle alone.

    Args:
        bundle: What is served; its tuned threads and its size decide the resources.
        out: Folder to create.
        choices: What a person chose.
        replace: Whether an earlier folder of this kind may be replaced.
        context: Surroundings of the call.

    Raises:
        ConflictError: The target exists and may not be replaced.
        UsageError: The name cannot be that of a service, or the replicas contradict themselves.
        WorkspaceError: The target cannot be written.
    """
    from fairlead.backends.kubernetes import render_manifests

    ctx = (context or Context.open()).ready_to_record()
    source = Bundle.open(bundle)
    chosen = choices or ContainerChoices()
    target = user_path(out)
    load = _workload(_plan(source, chosen, wheel="", is_locked=False), chosen)
    marker = "kustomization.yaml"
    with new_folder(target, what="the manifests", replace=replace, marker=marker) as folder:
        files = render_manifests(load, has_prometheus_operator=chosen.has_prometheus_operator)
        for name, text in files.items():
            write_text(folder / name, text)
    report = Report(
        skill="scaling-and-load-balancing",
        title=f"Manifests of {load.service}",
        summary=f"{target} runs {load.replicas} to {load.max_replicas} servers of {load.image}.",
        measures=_measures(load),
        findings=(_apply(target),),
        files={"manifests": str(target.resolve())},
        details=_details(load),
    )
    return ctx.record(Outcome(target, report))


def _plan(source: Bundle, chosen: ContainerChoices, *, wheel: str, is_locked: bool) -> ImagePlan:
    from fairlead.backends.dockerfile import ImagePlan
    from fairlead.backends.kubernetes import dns_label
    from fairlead.backends.services import check_service_name

    service = check_service_name(chosen.name or source.name)
    base = chosen.base_image or f"python:{platform.python_version()}-slim-bookworm"
    image = chosen.image or f"{dns_label(service)}:{source.version}"
    return ImagePlan(service, source, base, wheel, is_locked, image)


def _workload(plan: ImagePlan, chosen: ContainerChoices) -> Workload:
    from fairlead.backends.kubernetes import Workload

    return Workload(
        service=plan.service,
        bundle=plan.bundle,
        image=plan.image,
        arguments=tuple(plan.arguments),
        replicas=chosen.replicas,
        max_replicas=chosen.max_replicas,
    )


def _pinned(source: Bundle, folder: Path, chosen: ContainerChoices) -> tuple[ImagePlan, int]:
    """Write the wheel of Fairlead and the pinned requirements."""
    from fairlead.backends.own_wheel import write_own_wheel
    from fairlead.backends.requirement_lock import lock_requirements

    (folder / "wheels").mkdir()
    wheel = write_own_wheel(folder / "wheels")
    needs = _needs(source)
    if chosen.lock:
        python = ".".join(platform.python_version_tuple()[:2])
        lines = lock_requirements(needs, python=python, architecture=chosen.architecture)
    else:
        lines = _exact(needs)
    digest = digest_file(wheel)
    own = f"./wheels/{wheel.name}" + (f" --hash={digest}" if chosen.lock else "")
    head = "# Every package of the image. Written by `fairlead serve container`."
    write_text(folder / "requirements.lock", "\n".join([head, own, *lines]) + "\n")
    plan = _plan(source, chosen, wheel=wheel.name, is_locked=chosen.lock)
    return plan, len(lines) + 1


def _needs(source: Bundle) -> list[str]:
    """Return what a server of this bundle imports: Fairlead's own needs and the bundle's."""
    from fairlead.backends.own_wheel import name_of, own_requirements

    file = source.path / "requirements.txt"
    lines = file.read_text().splitlines() if file.is_file() else []
    stated = [line for line in lines if line.strip() and not line.startswith("#")]
    is_mlflow = source.manifest.kind == "pyfunc"
    left_out = frozenset({"fairlead"}) if is_mlflow else _OF_MLFLOW
    own = [line for line in stated if name_of(line) not in left_out]
    named = {name_of(line) for line in own}
    needs = own_requirements("serve", without=_NOT_SERVING)
    return [*own, *(line for line in needs if name_of(line) not in named)]


def _exact(needs: list[str]) -> tuple[str, ...]:
    """Return what is needed, and what that needs, in the versions that are installed here."""
    from fairlead.backends.requirement_lock import installed_closure

    return installed_closure(needs)


def _files(plan: ImagePlan, load: Workload, chosen: ContainerChoices) -> Mapping[str, str]:
    from fairlead.backends.compose import render_compose
    from fairlead.backends.dockerfile import render_dockerfile, render_dockerignore
    from fairlead.backends.kubernetes import render_kserve, render_manifests

    manifests = render_manifests(load, has_prometheus_operator=chosen.has_prometheus_operator)
    return {
        "Dockerfile": render_dockerfile(plan),
        ".dockerignore": render_dockerignore(),
        "security.toml": _SECURITY,
        **render_compose(load),
        **{f"kubernetes/{name}": text for name, text in manifests.items()},
        "kserve/inference-service.yaml": render_kserve(load),
    }


def _outcome(plan: ImagePlan, load: Workload, target: Path, n_packages: int) -> Outcome[Path]:
    findings = [
        Finding(
            level="info",
            text="the image runs as user 10001, needs no writable root, and checks its own health",
            advice=f"docker build -t {plan.image} {target}",
        ),
        _apply(target / "kubernetes"),
        Finding(
            level="info",
            text="/metrics is open to whoever reaches the port; inference is, too, until a key "
            "is made",
            advice="see security.toml, and `fairlead serve keys add`",
        ),
    ]
    if not plan.is_pinned:
        findings.insert(0, _unpinned(plan))
    if not plan.is_locked:
        text = "packages are pinned by version, not by digest"
        findings.insert(
            0, Finding(level="warning", text=text, advice="write it again without --no-lock")
        )
    report = Report(
        skill=_SKILL,
        title=f"Container of {plan.service}",
        summary=f"{target} builds {plan.image} with bundle {plan.bundle.version} and "
        f"{n_packages} packages.",
        measures=(
            Measure(name="packages", value=float(n_packages), unit="count"),
            *_measures(load),
        ),
        findings=tuple(findings),
        tables=(_contents(),),
        files={"container": str(target.resolve())},
        details={
            **_details(load),
            "base_image": plan.base_image,
            "is_base_image_pinned_by_digest": plan.is_pinned,
            "is_locked": plan.is_locked,
        },
    )
    return Outcome(target, report)


def _unpinned(plan: ImagePlan) -> Finding:
    return Finding(
        level="warning",
        text=f"the base image {plan.base_image} is pinned by tag only: its digest cannot be known "
        "without asking a registry",
        advice="give --base-image IMAGE@sha256:…, or --build-arg BASE_IMAGE=… when you build",
    )


def _apply(folder: Path) -> Finding:
    return Finding(
        level="info",
        text="CPUs follow the tuned threads, memory the size of the model",
        advice=f"kubectl apply -k {folder}",
    )


def _measures(load: Workload) -> tuple[Measure, ...]:
    return (
        Measure(name="cpus", value=float(load.cpus), unit="count", note="of one server"),
        Measure(name="memory", value=float(load.memory_mb << 20), unit="bytes",
                note="requested by one server; the limit is twice that"),
    )  # fmt: skip


def _details(load: Workload) -> dict[str, object]:
    return {
        "service": load.service,
        "image": load.image,
        "bundle_digest": load.bundle.digest,
        "version": load.bundle.version,
        "replicas": [load.replicas, load.max_replicas],
    }


def _contents() -> Table:
    return Table(
        title="Contents",
        columns=("file", "what it is for"),
        rows=(
            ("Dockerfile, .dockerignore", "two stages, no root, labelled with the bundle's digest"),
            ("requirements.lock, wheels/", "every package; Fairlead itself as it is installed"),
            ("bundle/, security.toml", "what is served, and who may do what"),
            ("compose.yaml", "the server with Prometheus, its alerts, and Grafana"),
            ("kubernetes/", "deployment, service, autoscaler, budget, network policy"),
            ("kserve/", "the same image as a custom predictor of KServe"),
        ),
    )
