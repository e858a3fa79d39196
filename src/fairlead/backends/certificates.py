"""How a client on the same machine trusts a server's own certificate."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fairlead.core.errors import EndpointError

if TYPE_CHECKING:
    import ssl

__all__ = ["trusting_context"]


def trusting_context(certificate: str) -> ssl.SSLContext:
    """Return a client's context that trusts exactly the server whose certificate this is.

    Args:
        certificate: PEM file, as it stands in the service's record.

    Raises:
        EndpointError: The file cannot be read.
    """
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # The very certificate is checked, whatever names it has.
    context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
    try:
        context.load_verify_locations(certificate)
    except (OSError, ValueError) as exc:
        raise EndpointError(
            f"the server's certificate {certificate} cannot be read: {exc}",
            hint="check the file and its permissions",
        ) from exc
    return context
