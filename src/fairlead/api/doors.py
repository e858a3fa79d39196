"""How commands reach a server: by the record of the workspace, or by URL with what one shows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fairlead.api.context import Context
from fairlead.backends.access import Access
from fairlead.core.endpoint import Endpoint
from fairlead.core.errors import UsageError

if TYPE_CHECKING:
    from fairlead.backends.endpoint import EndpointClient

__all__ = ["Door", "find_door"]


@dataclass(frozen=True, slots=True)
class Door:
    """A server and what opens it.

    Attributes:
        url: Base URL.
        access: What is shown to it, and trusted.
        endpoint: Its record, when it runs in this workspace.
    """

    url: str
    access: Access
    endpoint: Endpoint | None = None

    @property
    def name(self) -> str:
        """What people call it."""
        return self.url if self.endpoint is None else self.endpoint.service

    def client(self, model: str = "", *, timeout_s: float = 30.0) -> EndpointClient:
        """Return a client of the server; close it."""
        from fairlead.backends.endpoint import EndpointClient

        service = model or ("" if self.endpoint is None else self.endpoint.service)
        return EndpointClient(self.url, service, timeout_s=timeout_s, access=self.access)


def find_door(reference: str, context: Context) -> Door:
    """Find a server by the name of its service, or by its URL.

    The record of a server of this workspace opens it; any other URL is asked with the key, token
    and certificates of the settings.

    Raises:
        NotFoundError: No service of that name runs in the workspace.
        UsageError: It is no URL, or a file of the settings cannot be read.
    """
    from fairlead.backends.client_calls import Place
    from fairlead.backends.endpoint import find_endpoint, list_services

    if "://" not in reference:
        endpoint, token = find_endpoint(context.workspace, reference)
        return Door(endpoint.url, Access.of_endpoint(endpoint, token), endpoint)
    url = Place.parse(reference).url
    for record in list_services(context.workspace):
        if record.is_alive and record.endpoint.url.rstrip("/") == url:
            access = Access.of_endpoint(record.endpoint, record.admin_token)
            return Door(url, access, record.endpoint)
    access = Access.of_settings(context.settings)
    if access.tls.certificate is None and access.tls.key is not None:
        raise UsageError(
            "there is a key without its certificate", hint="give --cert, or FAIRLEAD_CERT_FILE"
        )
    return Door(url, access)
