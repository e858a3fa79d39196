"""Options of the commands that ask servers which this workspace did not start."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["ApiKeyFile", "Ca", "Cert", "CertKey", "TokenFile", "shown"]

ApiKeyFile = Annotated[
    Path | None,
    typer.Option(help="File with the API key to show at a URL; or set FAIRLEAD_API_KEY."),
]
TokenFile = Annotated[
    Path | None,
    typer.Option(help="File with the bearer token to show at a URL; or set FAIRLEAD_TOKEN."),
]
Ca = Annotated[
    Path | None, typer.Option(help="PEM file of the authorities that vouch for an https URL.")
]
Cert = Annotated[
    Path | None, typer.Option(help="PEM file of the certificate to show at an https URL.")
]
CertKey = Annotated[
    Path | None, typer.Option("--key", help="PEM file of its key, when it is not in --cert.")
]


def shown(
    api_key_file: Path | None,
    token_file: Path | None,
    ca: Path | None,
    cert: Path | None,
    key: Path | None,
) -> dict[str, Any]:
    """Return the settings of the process that these options win over."""
    return {
        "api_key_file": api_key_file,
        "token_file": token_file,
        "ca_file": ca,
        "cert_file": cert,
        "cert_key_file": key,
    }
