"""`fairlead serve container`: a bundle as an image, with what watches and deploys it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fairlead.entrypoints.cli.door import JsonFlag, finish, progress

__all__ = ["container_command", "manifests_command"]

BundlePath = Annotated[Path, typer.Argument(help="Bundle to use.", show_default=False)]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder to create.", show_default=False)]
Name = Annotated[str | None, typer.Option(help="Name of the service; the bundle's own by default.")]
Image = Annotated[
    str | None, typer.Option(help="Reference of the image; name and version by default.")
]
Replicas = Annotated[int, typer.Option(min=1, help="Servers at rest in Kubernetes.")]
MaxReplicas = Annotated[int, typer.Option(min=1, help="Most servers under load in Kubernetes.")]
Operator = Annotated[
    bool, typer.Option("--service-monitor", help="Write a ServiceMonitor for Prometheus Operator.")
]
Replace = Annotated[bool, typer.Option("--replace", help="Replace what was written before.")]


def container_command(
    bundle: BundlePath,
    out: Out,
    name: Name = None,
    image: Image = None,
    base_image: Annotated[
        str | None,
        typer.Option(help="Image to build on, best with @sha256:…; a slim Python by default."),
    ] = None,
    arch: Annotated[str, typer.Option(help="CPU of the image: amd64 or arm64.")] = "amd64",
    lock: Annotated[
        bool,
        typer.Option("--lock/--no-lock", help="Pin packages by digest, which asks pip's index."),
    ] = True,
    replicas: Replicas = 2,
    max_replicas: MaxReplicas = 10,
    service_monitor: Operator = False,
    replace: Replace = False,
    json_: JsonFlag = False,
) -> None:
    """Write a Dockerfile, compose file and Kubernetes manifests for a bundle.

    Examples: fairlead serve container bundle -o container
    """
    from fairlead.api.container import ContainerChoices, write_container
    from fairlead.api.context import Context
    from fairlead.core.errors import UsageError

    if arch not in ("amd64", "arm64"):
        raise UsageError(f"there is no architecture {arch!r}", hint="give amd64 or arm64")
    choices = ContainerChoices(
        name=name,
        image=image,
        base_image=base_image,
        architecture="arm64" if arch == "arm64" else "amd64",
        lock=lock,
        replicas=replicas,
        max_replicas=max_replicas,
        has_prometheus_operator=service_monitor,
    )
    with progress() as bars:
        context = Context.open(progress=bars)
        outcome = write_container(
            bundle, out=out, choices=choices, replace=replace, context=context
        )
    finish(outcome, as_json=json_)


def manifests_command(
    bundle: BundlePath,
    out: Out,
    image: Annotated[str, typer.Option(help="Reference of the image.", show_default=False)],
    name: Name = None,
    replicas: Replicas = 2,
    max_replicas: MaxReplicas = 10,
    service_monitor: Operator = False,
    replace: Replace = False,
    json_: JsonFlag = False,
) -> None:
    """Write Kubernetes manifests for a bundle: deployment, service, autoscaler and policies.

    `fairlead serve scale plan` says how many replicas a rate and a latency need.
    """
    from fairlead.api.container import ContainerChoices, write_kubernetes
    from fairlead.api.context import Context

    choices = ContainerChoices(
        name=name,
        image=image,
        replicas=replicas,
        max_replicas=max_replicas,
        has_prometheus_operator=service_monitor,
    )
    with progress() as bars:
        context = Context.open(progress=bars)
        outcome = write_kubernetes(
            bundle, out=out, choices=choices, replace=replace, context=context
        )
    finish(outcome, as_json=json_)
