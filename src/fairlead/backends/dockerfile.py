"""The Dockerfile of a bundle: two stages, no root, every package by digest."""

from __future__ import annotations

import json
from dataclasses import dataclass

from fairlead.core.bundle import Bundle

__all__ = [
    "HEALTH_COMMAND",
    "HOME",
    "PORT",
    "USER",
    "ImagePlan",
    "render_dockerfile",
    "render_dockerignore",
]

PORT = 8080
"""Where the server listens within the container."""
USER = 10001
"""Numeric user and group of the server, so that Kubernetes can tell that it is not root."""
HOME = "/var/lib/fairlead"
"""The only place that the server writes to, beside /tmp."""
_CHECK = (
    "import sys, urllib.request as r; "
    f"sys.exit(r.urlopen('http://127.0.0.1:{PORT}/v2/health/ready', timeout=2).status != 200)"
)
HEALTH_COMMAND = ("python", "-c", _CHECK)
"""Ends with 0 when the server is ready; needs nothing but Python."""


@dataclass(frozen=True)
class ImagePlan:
    """What an image is made of.

    Attributes:
        service: Name of the service and of the model in the protocol.
        bundle: What it serves.
        base_image: Reference of the image that it is built on.
        wheel: File name of Fairlead's wheel in `wheels/`.
        is_locked: Whether requirements.lock holds digests.
        image: Reference that the manifests pull.
    """

    service: str
    bundle: Bundle
    base_image: str
    wheel: str
    is_locked: bool
    image: str

    @property
    def is_pinned(self) -> bool:
        """Whether the base image is named by digest, not only by tag."""
        return "@sha256:" in self.base_image

    @property
    def arguments(self) -> list[str]:
        """Arguments of `fairlead` within the container."""
        words = ["serve", "start", "/srv/bundle", "--name", self.service]
        words += ["--host", "0.0.0.0", "--http-port", str(PORT)]  # noqa: S104 (in a container)
        words += ["--security", "/etc/fairlead/security.toml"]
        return [*words, "--trust"] if self.bundle.manifest.needs_trust else words


def render_dockerfile(plan: ImagePlan) -> str:
    """Return the Dockerfile."""
    how = "--require-hashes " if plan.is_locked else ""
    pinned = "" if plan.is_pinned else (
        "# The tag is pinned, the digest is not: it cannot be known without the registry. Pin it:\n"
        f"#   docker build --build-arg BASE_IMAGE={plan.base_image}@sha256:... .\n"
    )  # fmt: skip
    labels = " \\\n".join(f"      {key}={json.dumps(text)}" for key, text in _labels(plan).items())
    return f"""# syntax=docker/dockerfile:1
# {plan.service} {plan.bundle.version}, written by `fairlead serve container`.
{pinned}ARG BASE_IMAGE={plan.base_image}

FROM ${{BASE_IMAGE}} AS build
WORKDIR /build
COPY requirements.lock ./
COPY wheels/ wheels/
RUN python -m venv /opt/fairlead \\
    && /opt/fairlead/bin/python -m pip install --no-cache-dir --no-deps --only-binary :all: \\
       {how}--requirement requirements.lock

FROM ${{BASE_IMAGE}} AS run
ARG BASE_IMAGE
LABEL {labels.lstrip()} \\
      org.opencontainers.image.base.name="${{BASE_IMAGE}}"
RUN groupadd --system --gid {USER} fairlead \\
    && useradd --system --uid {USER} --gid {USER} --home-dir {HOME} --shell /usr/sbin/nologin \\
       fairlead \\
    && install --directory --owner {USER} --group {USER} --mode 0750 {HOME}
COPY --from=build /opt/fairlead /opt/fairlead
COPY security.toml /etc/fairlead/security.toml
COPY bundle/ /srv/bundle/
ENV PATH=/opt/fairlead/bin:$PATH \\
    FAIRLEAD_HOME={HOME} \\
    PYTHONDONTWRITEBYTECODE=1 \\
    PYTHONUNBUFFERED=1
USER {USER}:{USER}
WORKDIR {HOME}
VOLUME {HOME}
EXPOSE {PORT}
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 \\
    CMD {json.dumps(list(HEALTH_COMMAND))}
ENTRYPOINT ["fairlead"]
CMD {json.dumps(plan.arguments)}
"""


def _labels(plan: ImagePlan) -> dict[str, str]:
    bundle = plan.bundle
    return {
        "org.opencontainers.image.title": plan.service,
        "org.opencontainers.image.version": bundle.version,
        "org.opencontainers.image.created": f"{bundle.manifest.created_at:%Y-%m-%dT%H:%M:%SZ}",
        "org.opencontainers.image.description": (
            f"{bundle.manifest.task} model behind the Open Inference Protocol"
        ),
        "dev.fairlead.bundle.digest": bundle.digest,
        "dev.fairlead.bundle.kind": bundle.manifest.kind,
        "dev.fairlead.bundle.source-digest": bundle.provenance.source_digest,
    }


def render_dockerignore() -> str:
    """Return a .dockerignore that lets in nothing but what the Dockerfile copies."""
    kept = ("Dockerfile", "requirements.lock", "security.toml", "wheels", "bundle")
    lines = ["# Nothing but what the Dockerfile copies.", "**", *(f"!{name}" for name in kept)]
    lines += ["!wheels/**", "!bundle/**", "**/__pycache__", "**/*.pyc"]
    return "\n".join(lines) + "\n"
